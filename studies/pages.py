"""Code blocks of a page, and blocks that a command writes, between two marks."""

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

from lyap_optuna._files import write_whole

END = "<!-- end -->"
FENCE = re.compile(r"^( *)```(\S*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A code block: its language, and what it says."""

    language: str
    code: str

    @property
    def file(self) -> str | None:
        """The name of the file that the first line says this is."""
        found = re.match(r"# (\w+\.(?:py|yaml))\n", self.code)
        return found[1] if found else None


def block_of(fence: re.Match[str]) -> Block:
    """Return what a match of ``FENCE`` holds."""
    return Block(fence[2], textwrap.dedent(fence[3]))


def begin(name: str) -> str:
    """Return the mark at which the block ``name`` begins."""
    return f"<!-- {name}: begin -->"


def read_block(text: str, name: str) -> str:
    """Return what stands between the marks of ``name``; nothing where there are none."""
    return text.partition(begin(name))[2].partition(END)[0]


def write_block(page: Path, name: str, block: str) -> None:
    """Put ``block`` in the place of what stands between the marks.

    Raises:
        ValueError: The page has no such marks.
    """
    text = page.read_text(encoding="utf-8")
    before, mark, rest = text.partition(begin(name))
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{page} has no place for {name!r}: it needs {begin(name)} and {END}.")
    write_whole(page, f"{before}{mark}\n\n{block.strip()}\n\n{end}{after}")
