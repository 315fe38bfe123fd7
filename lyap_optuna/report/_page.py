"""One HTML page of text, tables and figures that needs nothing else, below a megabyte.

Plotly's own bundle takes 4.8 MB. ``page/plotly-cartesian.min.js.gz`` is the part of it that draws
on two axes, as `plotly.js-cartesian-dist-min` 4.1.1 of npm has it, unchanged (MIT licence beside
it): half a megabyte packed, which every browser since 2023 unpacks by itself. Nothing is fetched,
so a page works offline, and in ten years. To renew it: ``npm pack plotly.js-cartesian-dist-min``,
then ``gzip -9n`` of its ``plotly-cartesian.min.js``.
"""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

MAX_BYTES = 1_000_000
"""What a page may take; where it would take more, its figures show fewer trials."""

TRACES = (
    "bar",
    "box",
    "contour",
    "heatmap",
    "histogram",
    "histogram2d",
    "pie",
    "scatter",
    "violin",
)
"""Kinds of plotly's traces that the page can draw."""


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Args:
        columns: By key in the row, the heading.
        rows: The rows; what is None is an empty cell.
        below: The key of a text that is long: it takes a line of its own below each row.
    """

    columns: Mapping[str, str]
    rows: Sequence[Mapping[str, Any]]
    below: str = ""

    @property
    def used(self) -> dict[str, str]:
        """The columns that are not empty throughout."""
        filled = {k for row in self.rows for k, cell in row.items() if cell not in (None, "")}
        return {key: heading for key, heading in self.columns.items() if key in filled}


@dataclass(frozen=True)
class Section:
    """A card of a page: a heading, then whatever it has of text, points, a table and a figure."""

    heading: str
    text: Sequence[str] = ()
    points: Sequence[str] = ()
    table: Table | None = None
    figure: "go.Figure | None" = None
    legend: str = ""
    wide: bool = True


def page(title: str, introduction: Sequence[str], sections: Sequence[Section]) -> str:
    """Return the page. Every text is taken literally.

    Args:
        title: Its heading.
        introduction: Paragraphs.
        sections: Its cards; two that are not wide stand side by side where there is room.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lyap_optuna.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = [_drawn(s.heading, s.figure) for s in sections if s.figure is not None]
    text: str = environment.get_template("page.html").render(
        title=title,
        introduction=introduction,
        sections=sections,
        packed=_packed(json.dumps(figures).encode()) if figures else "",
        plotly=_plotly() if figures else "",
    )
    return text.translate(_CONTROLS)


_NO_TEXT = (*range(9), 11, 12, *range(14, 32), 127, *range(0xD800, 0xE000))
_CONTROLS = dict.fromkeys(_NO_TEXT, "\N{REPLACEMENT CHARACTER}")
"""What HTML or UTF-8 has no room for, or moves a terminal: names come from a shared database."""


def _drawn(heading: str, figure: "go.Figure") -> dict[str, Any]:
    """Return a figure whose title, in small letters, says only what the heading does not."""
    import plotly.graph_objects as go

    from lyap_optuna.visualization._publication import small

    lines = (figure.layout.title.text or "").split("<br>")
    title = "<br>".join(lines[1:] if lines[0] == heading else lines)
    drawn = small(go.Figure(figure).update_layout(title_text=title), heading)
    drawn.update_layout(title_font_size=13)
    found: dict[str, Any] = json.loads(drawn.to_json())
    return found


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


@cache
def _plotly() -> str:
    packed = files("lyap_optuna.report").joinpath("page/plotly-cartesian.min.js.gz").read_bytes()
    return base64.b64encode(packed).decode()
