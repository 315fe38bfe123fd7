"""Which trials were pruned when, and what that saved; which rested, and when they ran."""

from textwrap import shorten
from typing import TYPE_CHECKING, NamedTuple

from optuna.trial import TrialState

from lyap_optuna._logging import get_logger
from lyap_optuna.records import _keys, read_decisions, read_stretches
from lyap_optuna.visualization import _style
from lyap_optuna.visualization._spec import FigureSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import plotly.graph_objects as go
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from lyap_optuna.records import Stretch

_logger = get_logger(__name__)

_MAX_BARS = 120
"""Up to this many trials have a bar each; of more, a marker shows where each one ended."""


class _Stretch(NamedTuple):
    start: float  # seconds since the first trial began
    end: float
    told: str


class _Bar(NamedTuple):
    number: int
    state: TrialState
    n_reports: int
    saved: int
    reason: str
    stretches: tuple[_Stretch, ...] = ()
    rests: tuple[tuple[float, float], ...] = ()


class _TimelineInfo(NamedTuple):
    bars: list[_Bar]
    n_spent: int
    n_saved: int
    paused: bool = False


def plot_pruning_timeline(study: "Study") -> "go.Figure":
    """Plot, for each trial, how many steps it reported and how many its pruning saved.

    A full trial is taken to be as long as the longest COMPLETE one. Up to 120 trials are bars, and
    the hover text of a pruned one gives the reason that the pruner recorded; of more trials, a
    marker shows where each one ended.

    Where trials have rested (:func:`~lyap_optuna.freeze_thaw`), the axis is time: each trial is
    drawn where it ran, with a thin line where it rested, and the hover text says what was thought
    of it.

    Args:
        study: A study of any storage.

    Returns:
        The figure; an empty one, with a warning logged, where no trial has reported anything.

    Example:
        >>> import optuna
        >>> from lyap_optuna.visualization import plot_pruning_timeline
        >>> study = optuna.create_study()
        >>> study.add_trial(
        ...     optuna.create_trial(value=1.0, intermediate_values={0: 2.0, 1: 1.5, 2: 1.0})
        ... )
        >>> study.add_trial(
        ...     optuna.create_trial(
        ...         state=optuna.trial.TrialState.PRUNED, intermediate_values={0: 5.0}
        ...     )
        ... )
        >>> plot_pruning_timeline(study).layout.title.text
        'Pruning: 2 of 6 steps saved (33 %)'
    """
    info = _get_info(study)
    if not info.bars:
        _logger.warning("No trial has reported an intermediate value.")
    return _draw(info)


def _get_info(study: "Study") -> _TimelineInfo:
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.FAIL)
    trials = [
        trial
        for trial in study.get_trials(deepcopy=False, states=states)
        if trial.intermediate_values or trial.state == TrialState.PRUNED
    ]
    full = max(
        (len(t.intermediate_values) for t in trials if t.state == TrialState.COMPLETE), default=0
    )
    stretches = {trial.number: read_stretches(trial) for trial in trials}
    paused = any(stretches.values())
    ran = _when_each_ran(trials, stretches) if paused else {}
    bars = []
    for trial in trials:
        n_reports = len(trial.intermediate_values)
        pruned = trial.state == TrialState.PRUNED
        decisions = read_decisions(trial) if pruned else []
        bars.append(
            _Bar(
                trial.number,
                trial.state,
                n_reports,
                max(full - n_reports, 0) if pruned else 0,
                decisions[-1].reason if decisions and decisions[-1].verdict == "pruned" else "",
                *ran.get(trial.number, ((), ())),
            )
        )
    bars = [bar for bar in bars if bar.n_reports or bar.saved or bar.stretches]
    n_spent, n_saved = sum(bar.n_reports for bar in bars), sum(bar.saved for bar in bars)
    return _TimelineInfo(bars, n_spent, n_saved, paused)


def _when_each_ran(
    trials: "Sequence[FrozenTrial]", stored: "Mapping[int, Sequence[Stretch]]"
) -> dict[int, tuple[tuple[_Stretch, ...], tuple[tuple[float, float], ...]]]:
    """Return by trial number when it ran and when it rested, seconds since the first began."""
    began = {t.number: t.datetime_start.timestamp() for t in trials if t.datetime_start}
    first = min(began.values(), default=0.0)
    # Of what runs or rests, the end is the last moment that is known of the study.
    known = [t.datetime_complete.timestamp() - first for t in trials if t.datetime_complete]
    for number, stretches in stored.items():
        if stretches and number in began:
            ran = stretches[-1]
            known.append(began[number] - first + ran.start + ran.seconds)
    last = max(known, default=0.0)
    found = {}
    for trial in trials:
        if trial.number not in began:
            continue
        start, completed = began[trial.number] - first, trial.datetime_complete
        end = completed.timestamp() - first if completed else max(last, start)
        drawn = [
            _Stretch(start + s.start, start + s.start + s.seconds, _of_stretch(trial.number, s))
            for s in stored[trial.number]
        ] or [_Stretch(start, end, f"trial {trial.number}, without a pause")]
        ends_resting = trial.user_attrs.get(_keys.RESTING) is True or completed is not None
        until = [s.start for s in drawn[1:]] + [end if ends_resting else drawn[-1].end]
        rests = [(s.end, then) for s, then in zip(drawn, until, strict=True) if then > s.end]
        found[trial.number] = tuple(drawn), tuple(rests)
    return found


def _of_stretch(number: int, stretch: "Stretch") -> str:
    reports = f"{stretch.reports} report{'' if stretch.reports == 1 else 's'}"
    told = f"trial {number}, {reports} in {stretch.seconds:.3g} s"
    for when, chance in (("before", stretch.before), ("afterwards", stretch.after)):
        if chance is not None:
            told += f"<br>chance of ending among the best {when}: {chance:.2g}"
    return told


def _draw(info: _TimelineInfo, most: int | None = None) -> "go.Figure":
    """Draw at most ``most`` trials, evenly spaced over the study."""
    import plotly.graph_objects as go

    total = info.n_spent + info.n_saved
    saved = f"Pruning: {info.n_saved} of {total} steps saved ({info.n_saved / max(total, 1):.0%}"
    drawn, remarks = _style.thinned(info.bars, most, "trials drawn")
    figure = go.Figure(
        layout={
            "title": _style.title(saved.replace("%", " %)") if drawn else "Pruning", remarks),
            "showlegend": True,
            "legend": _style.LEGEND,
        }
    )
    if info.paused:
        _add_stretches(figure, drawn)
        return figure
    steps, trials = {"title": {"text": "reported steps"}}, {"title": {"text": "trial"}}
    if len(drawn) <= _MAX_BARS:
        figure.update_layout(barmode="stack", bargap=0.15)
        figure.update_xaxes(steps, zeroline=False)
        figure.update_yaxes(trials, autorange="reversed", zeroline=False)
        _add_bars(figure, drawn)
    else:
        figure.update_xaxes(trials, zeroline=False)
        figure.update_yaxes(steps, rangemode="tozero", zeroline=False)
        _add_ends(figure, drawn)
    return figure


def _add_bars(figure: "go.Figure", drawn: list[_Bar]) -> None:
    for state, color in _style.STATE_COLORS.items():
        bars = [bar for bar in drawn if bar.state == state]
        if bars:
            figure.add_bar(
                x=[bar.n_reports for bar in bars],
                y=[bar.number for bar in bars],
                orientation="h",
                marker={"color": color, "line": {"width": 0}},
                name=state.name,
                text=[_hover(bar) for bar in bars],
                textposition="none",
                hovertemplate="%{text}<extra></extra>",
            )
    bars = [bar for bar in drawn if bar.saved]
    if bars:
        figure.add_bar(
            x=[bar.saved for bar in bars],
            y=[bar.number for bar in bars],
            orientation="h",
            marker={"color": "rgba(230, 159, 0, 0.4)", "line": {"width": 0}},
            name="saved",
            hovertemplate="trial %{y}: %{x} steps saved<extra></extra>",
        )


def _add_stretches(figure: "go.Figure", drawn: list[_Bar]) -> None:
    last = max((s.end for bar in drawn for s in bar.stretches), default=0.0)
    unit, name = (3600, "h") if last > 10_800 else (60, "min") if last > 180 else (1, "s")
    title = {"text": f"time since the first trial began ({name})"}
    figure.update_xaxes(title=title, zeroline=False)
    figure.update_yaxes(title={"text": "trial"}, autorange="reversed", zeroline=False)
    rests = [(bar.number, a, b) for bar in drawn for a, b in bar.rests]
    figure.add_scatter(
        x=[x for _, a, b in rests for x in (a / unit, b / unit, None)],
        y=[y for number, _, _ in rests for y in (number, number, None)],
        mode="lines",
        line={"color": _style.GREY, "width": 1},
        name="rests",
        hoverinfo="skip",
    )
    width = max(2.0, min(12.0, 360 / max(len(drawn), 1)))
    for state, color in _style.STATE_COLORS.items():
        bars = [(bar, s) for bar in drawn if bar.state == state for s in bar.stretches]
        if bars:
            figure.add_scatter(
                x=[x for _, s in bars for x in (s.start / unit, s.end / unit, None)],
                y=[y for bar, _ in bars for y in (bar.number, bar.number, None)],
                mode="lines",
                line={"color": color, "width": width},
                name=state.name,
                text=[text for _, s in bars for text in (s.told, s.told, "")],
                hovertemplate="%{text}<extra></extra>",
            )


def _add_ends(figure: "go.Figure", drawn: list[_Bar]) -> None:
    for state, color in _style.STATE_COLORS.items():
        bars = [bar for bar in drawn if bar.state == state]
        if bars:
            figure.add_scatter(
                x=[bar.number for bar in bars],
                y=[bar.n_reports for bar in bars],
                mode="markers",
                marker={"color": color, "symbol": _style.STATE_SYMBOLS[state], "size": 6},
                name=state.name,
                hovertemplate=f"trial %{{x}}, {state.name} after %{{y}} reports<extra></extra>",
            )


def _hover(bar: _Bar) -> str:
    lines = [f"trial {bar.number}, {bar.state.name} after {bar.n_reports} reports"]
    if bar.reason:
        words = _style.text(shorten(bar.reason, 400, placeholder=" ...")).split(" ")
        line = ""
        for word in words:
            if len(line) + len(word) > 60:
                lines.append(line)
                line = ""
            line = f"{line} {word}".strip()
        lines.append(line)
    return "<br>".join(lines)


def _of_study(study: "Study") -> _TimelineInfo | None:
    info = _get_info(study)
    return info if info.n_saved or info.paused else None


FIGURE = FigureSpec(
    id="pruning",
    name="Pruning",
    call="plot_pruning_timeline(study)",
    caption="Which trial was ended when, and the steps that this saved; where trials rest, when "
    "each of them ran.",
    info=_of_study,
    draw=lambda info, _, most: _draw(info, most),
    several_objectives=True,
)
