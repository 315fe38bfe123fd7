"""One self-contained HTML page of plotly figures: plotly.js is in it, once."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
pre { overflow-x: auto; font: 13px/1.35 ui-monospace, monospace; padding: 1rem;
      border: 1px solid #8884; border-radius: 6px; }
section { margin: 2.5rem 0; }
.figure { background: #fff; border-radius: 6px; }
"""


def page(
    title: str, introduction: Sequence[str], figures: Sequence[tuple[str, "go.Figure"]]
) -> str:
    """Return the page. Every text is escaped; the figures escape their own.

    Args:
        title: Heading of the page.
        introduction: Paragraphs; one with a line break keeps its layout.
        figures: For each, what to see in it, and the figure.
    """
    import plotly.io
    from plotly.offline import get_plotlyjs

    parts = []
    for text in introduction:
        escaped = html.escape(text)
        parts.append(f"<pre>{escaped}</pre>" if "\n" in text else f"<p>{escaped}</p>")
    for index, (caption, figure) in enumerate(figures):
        drawn = plotly.io.to_html(
            figure, full_html=False, include_plotlyjs=False, div_id=f"figure-{index}"
        )
        parts.append(
            f'<section><p>{html.escape(caption)}</p><div class="figure">{drawn}</div></section>'
        )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n"
        f"<script>{get_plotlyjs()}</script>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )
