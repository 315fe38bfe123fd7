"""Blocks of a page that a command writes, between two marks."""

from pathlib import Path

from lyap_optuna._files import write_whole

END = "<!-- end -->"


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
