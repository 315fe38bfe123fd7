"""How the running estimates of the exponents settle over time steps."""

import math
from typing import TYPE_CHECKING, NamedTuple

from lyap_optuna._logging import get_logger
from lyap_optuna.visualization import _style

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from lyap_optuna.spectrum import LyapunovSpectrum

_logger = get_logger(__name__)


class _Line(NamedTuple):
    column: int
    steps: list[int]
    estimates: list[float]


class _ConvergenceInfo(NamedTuple):
    lines: list[_Line]
    n_exponents: int


def plot_convergence(spectrum: "LyapunovSpectrum", *, n_exponents: int = 12) -> "go.Figure":
    """Plot the running estimates of the exponents over time steps.

    A line that still slopes at the end says that the window is too short for its exponent.

    Args:
        spectrum: A spectrum measured with ``keep_history=True``.
        n_exponents: How many exponents to draw, equally spaced from the largest to the smallest.

    Returns:
        The figure; an empty one, with a warning logged, where no history was kept.

    Raises:
        ValueError: ``n_exponents`` is not positive.

    Example:
        >>> import torch
        >>> import lyap_optuna as lyap
        >>> _ = torch.manual_seed(0)
        >>> spectrum = lyap.lyapunov_spectrum(
        ...     torch.nn.RNN(2, 3), torch.randn(30, 4, 2), keep_history=True
        ... )
        >>> len(lyap.visualization.plot_convergence(spectrum).data)  # three and the line at 0
        4
    """
    info = _get_info(spectrum, n_exponents)
    if not info.lines:
        _logger.warning("The spectrum has no history. Measure it with `keep_history=True`.")
    return _draw(info)


def _get_info(spectrum: "LyapunovSpectrum", n_exponents: int) -> _ConvergenceInfo:
    if n_exponents < 1:
        raise ValueError(f"n_exponents must be at least 1, not {n_exponents!r}.")
    history = spectrum.history
    if history is None:
        return _ConvergenceInfo([], 0)
    size = history.shape[1]
    lines = []
    for index in _style.spread(size, n_exponents):
        estimates = [float(value) for value in history[:, index]]
        kept = [(t, value) for t, value in enumerate(estimates, start=1) if math.isfinite(value)]
        lines.append(_Line(index, [t for t, _ in kept], [value for _, value in kept]))
    return _ConvergenceInfo(lines, size)


def _draw(info: _ConvergenceInfo) -> "go.Figure":
    import plotly.graph_objects as go

    figure = go.Figure(
        layout=_style.layout(
            "Convergence of the Lyapunov exponents",
            "time steps after the warm-up",
            _style.EXPONENT_AXIS,
        )
    )
    for line in info.lines:
        color = _style.shade(line.column / max(info.n_exponents - 1, 1))
        figure.add_scatter(
            x=line.steps,
            y=line.estimates,
            mode="lines",
            line={"color": color, "width": 1.5},
            name=f"exponent {line.column + 1} of {info.n_exponents}",
            hovertemplate="step %{x}: %{y:.4g}",
        )
    drawn = [step for line in info.lines for step in line.steps]
    if drawn:
        _style.zero_line(figure, drawn)
    return figure
