"""Output: rows as a table, JSON, YAML or CSV, and text that is harmless on a terminal."""

import csv
import io
import json
import math
import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from lyap_optuna._files import harmless
from lyap_optuna._numbers import aligned, number

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Row = Mapping[str, Any]

FORMATS = ("table", "json", "yaml", "csv")
NESTED_FORMATS = FORMATS[:3]
"""Of what is no list of rows."""


class OutputFile(click.Path):
    """A file to write, whose folder is made where it is absent.

    Args:
        stdout: Whether ``-`` is standard output.
    """

    def __init__(self, *, stdout: bool = False) -> None:
        super().__init__(dir_okay=False, allow_dash=stdout, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse a folder, also one that is not there."""
        if str(value).endswith(("/", os.sep)):
            self.fail(f"{quoted(value)} is a folder; name the file to write in it.", param, ctx)
        return super().convert(value, param, ctx)


def option(formats: Sequence[str]) -> Callable[[Any], Any]:
    """Return the option ``-f``, which says how rows are printed."""
    return click.option(
        "-f",
        "--format",
        "output_format",
        type=click.Choice(formats),
        default="table",
        show_default=True,
        help="How to print; docs/command_line.md lists the columns.",
    )


def printable(text: object) -> str:
    """Return ``text`` with control characters escaped: names come from a shared database."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def quoted(text: object) -> str:
    """Return ``text`` printable and in quotes."""
    return f"'{printable(text)}'"


def width(stream: int = 1) -> int | None:
    """Return how wide the output may be; None where it is piped and COLUMNS says nothing."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    return os.get_terminal_size(stream).columns if os.isatty(stream) else None


def wrapped(text: str, *, stderr: bool = False) -> str:
    """Return sentences with line breaks where the terminal ends; unchanged where it is piped."""
    columns = width(2 if stderr else 1)
    if columns is None:
        return text
    return "\n".join(
        textwrap.fill(line, max(columns, 20), break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )


def console(*, stderr: bool = False) -> "Console":
    """Return a console that takes every text literally and never shortens what is piped."""
    from rich.console import Console

    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=False)
    if not made.is_terminal:
        made.width = width() or 4096
    return made


def show(made: "Table") -> None:
    """Print a table without what nobody sees: blanks at the ends of its lines."""
    out = console()
    out.width = max(out.width, made.min_width or 0)  # rather wrapped by the terminal than cut
    with out.capture() as captured:
        out.print(made)
    click.echo(re.sub(r" +((?:\x1b\[[0-9;]*m)*)$", r"\1", captured.get(), flags=re.M), nl=False)


def cell(value: Any) -> str:
    """Return a value as a table shows it: by the rule for numbers, a dash for what is absent."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    return printable(value)


def table(rows: Sequence[Row], columns: Mapping[str, str], spare: Sequence[str] = ()) -> "Table":
    """Build a table of ``columns`` (key in the row, heading); words go left, numbers right.

    A column is one of words where any of its texts is; the points of its numbers are one below the
    other. Headings stand over what is below them.

    Args:
        rows: The rows.
        columns: By key in the row, the heading, in the order of the columns.
        spare: Keys of the columns that a narrow terminal does without, the first of them first.
            Words that do not fit even then are wrapped.
    """
    made, wide = _table(rows, columns)
    for key in spare:
        if wide <= console().width:
            break
        columns = {other: heading for other, heading in columns.items() if other != key}
        made, wide = _table(rows, columns)
    made.min_width = wide
    return made


def _table(rows: Sequence[Row], columns: Mapping[str, str]) -> tuple["Table", int]:
    """Return a table and how wide it is at least."""
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    total = -2
    cells: list[list[Text]] = []
    for key, heading in columns.items():
        values = [row.get(key) for row in rows]
        words = any(map(_is_word, values))
        texts = [cell(value) for value in values]
        if not words:
            texts = _in_line(values, texts)
        least = min(max(map(cell_len, [*heading.split("\n"), *texts])), _LONG)
        side: Literal["left", "right"] = "left" if words else "right"
        made.add_column(
            Text(heading, justify=side), vertical="top", overflow="fold", min_width=least
        )
        cells.append([Text(text if words else text.rjust(least)) for text in texts])
        total += least + 2
    for row in zip(*cells, strict=True):
        made.add_row(*row)
    return made, total


_NUMBER = r"[-+]?(\d[-+.\de%() ]*|inf|nan)"
_AS_NUMBER = re.compile(rf"(from |to )?{_NUMBER}( ?to {_NUMBER})?( [a-z]+)?|never|-|")
"""Texts that stand where numbers do: with a unit, open at an end, or of what never comes."""


def _is_word(value: Any) -> bool:
    if isinstance(value, str):
        return not _AS_NUMBER.fullmatch(value)
    return isinstance(value, bool) or not isinstance(value, (int, float, type(None)))


def _in_line(values: Sequence[Any], texts: Sequence[str]) -> list[str]:
    """Return the texts of a column, the points of its numbers one below the other."""
    points = aligned(
        [t if isinstance(v, float) else "" for v, t in zip(values, texts, strict=True)]
    )
    return [p if isinstance(v, float) else t for v, t, p in zip(values, texts, points, strict=True)]


_LONG = 30
"""Cells of more characters may be wrapped, to no fewer."""


def dump(records: Sequence[Row] | Row, output_format: str) -> str:
    """Return records as JSON, YAML or CSV.

    JSON knows no infinity and no NaN; there they are null. In CSV a list becomes one column per
    element and an absent value an empty field, and no cell begins as a spreadsheet's formula.
    """
    if output_format == "json":
        return json.dumps(_finite(records), ensure_ascii=False, indent=2) + "\n"
    if output_format == "yaml":
        import yaml

        text: str = yaml.safe_dump(_plain(records), sort_keys=False, allow_unicode=True)
        return text
    if output_format == "csv":
        rows = [_flat(row) for row in (records if isinstance(records, Sequence) else [records])]
        header = list(dict.fromkeys(key for row in rows for key in row))
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(harmless(header))
        writer.writerows(harmless(row.get(key, "") for key in header) for row in rows)
        return buffer.getvalue()
    raise ValueError(f"output_format must be one of {FORMATS}, not {output_format!r}")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return str(value)


def _finite(value: Any) -> Any:
    plain = _plain(value)
    if isinstance(plain, dict):
        return {key: _finite(item) for key, item in plain.items()}
    if isinstance(plain, list):
        return [_finite(item) for item in plain]
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def _flat(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, (list, tuple)):
            flat |= {f"{key}_{i}": item for i, item in enumerate(value)}
        else:
            flat[key] = value
    return flat
