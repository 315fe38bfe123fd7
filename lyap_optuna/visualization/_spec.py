"""What a figure of a study consists of, so that code that shows figures needs no list of them.

A figure is one file, which ends with its :class:`FigureSpec`, and one line in ``_figures.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from optuna.study import Study

Info = TypeVar("Info")


@dataclass(frozen=True)
class FigureSpec(Generic[Info]):
    """One figure of a study: the numbers in it, and how they are drawn.

    Args:
        id: Short and fixed: optuna-dashboard keeps the figure under it, files are named after it.
        name: What it is called in a list of figures.
        caption: What to see in it, one or two plain sentences; no markup.
        info: The numbers of a study; None where there is nothing to draw.
        draw: The figure of these numbers, of at most so many trials (None: of all). What it leaves
            out, it says.
        call: How one calls the function of :mod:`lyap_optuna.visualization` that draws it, where
            there is one.
        several_objectives: Whether studies of several objectives have it.
    """

    id: str
    name: str
    caption: str
    info: "Callable[[Study], Info | None]"
    draw: "Callable[[Info, Study, int | None], go.Figure]"
    call: str = ""
    several_objectives: bool = False
