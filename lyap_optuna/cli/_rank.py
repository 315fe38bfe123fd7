"""``lyap-optuna rank``: all trials, best first, by value or predicted value."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from lyap_optuna.cli import _format, _storage

if TYPE_CHECKING:
    from optuna.study import Study
    from rich.table import Table

    from lyap_optuna import TrialPrediction

_COLUMNS = {
    "rank": "#",
    "number": "trial",
    "state": "state",
    "step": "step",
    "value": "value",
    "predicted_value": "predicted",
    "interval": "80 % interval",
    "max": "max λ",
    "mean": "mean λ",
}

LEGEND = "Predicted from what was known at that step; λ: exponents then, in nats/step."

OTHER_EVIDENCE = (
    "No trial of this study has Lyapunov readouts, so other evidence was used: the loss so far and "
    "the hyperparameters. `lyap-optuna spectra` says how to record readouts."
)


@click.command()
@_storage.study_options
@click.option("--step", type=int, help="Predict from what was known at this step.")
@click.option("--top", type=click.IntRange(min=1), help="Only the best so many trials.")
@click.option(
    "--enqueue",
    type=click.IntRange(min=1),
    metavar="N",
    help="Queue at most N pruned trials that promise more than a new one.",
)
@click.option(
    "-f", "--format", "output_format", type=click.Choice(_format.FORMATS), default="table"
)
def rank(
    storage: str | None,
    storage_class: str | None,
    study_name: str | None,
    step: int | None,
    top: int | None,
    enqueue: int | None,
    output_format: str,
) -> None:
    """Rank the trials of a study, best first.

    A COMPLETE trial stands by its value, beside the value predicted for it by a model that has
    not seen it; running and pruned trials stand by their prediction. Waiting and failed trials
    are left out. Lower and upper bound 80 % of the predicted outcomes.

    With --enqueue, the pruned trials whose chance of ending among the best is now above that of a
    new trial are queued as new trials, once each, to be run when the study goes on.
    """
    import lyap_optuna

    study = _storage.load_study(storage, storage_class, study_name)
    try:
        ranking = lyap_optuna.rank_trials(study, step=step)
    except ValueError as error:
        raise click.ClickException(_storage.scrub(str(error))) from None
    rows = ranking_rows(ranking)[:top]
    if output_format == "table":
        _format.console().print(ranking_table(rows))
        _storage.note(LEGEND)
    else:
        click.echo(_format.dump(rows, output_format), nl=False)
    if not has_readouts(study):
        _storage.note(OTHER_EVIDENCE)
    _storage.note(_predicted_by(ranking))
    audit = lyap_optuna.audited(study)
    if audit.condemned:
        _storage.note(str(audit))
    if enqueue is not None:
        _storage.note(str(lyap_optuna.second_chance(study, enqueue)))


def ranking_rows(ranking: Sequence["TrialPrediction"]) -> list[dict[str, Any]]:
    """Return one row per ranked trial."""
    rows = []
    for position, prediction in enumerate(ranking, start=1):
        row = {"rank": position, **dataclasses.asdict(prediction)}
        row["state"] = prediction.state.name
        rows.append(row)
    return rows


def ranking_table(rows: Sequence[_format.Row]) -> "Table":
    """Return the ranking as a table that fits a terminal of 80 columns."""
    shown = [
        {
            **{key: _short(value) for key, value in row.items()},
            "interval": _interval(row["lower"], row["upper"]),
        }
        for row in rows
    ]
    return _format.table(shown, _COLUMNS)


def _interval(lower: float | None, upper: float | None) -> str:
    """Write an interval that may be open at an end."""
    if lower is None or upper is None:
        if lower is None and upper is None:
            return ""
        return f"to {_short(upper)}" if lower is None else f"from {_short(lower)}"
    return f"{_short(lower)} to {_short(upper)}"


def _short(value: Any) -> Any:
    return f"{value:.3g}" if isinstance(value, float) else value


def has_readouts(study: "Study") -> bool:
    """Return whether any trial carries a readout."""
    from lyap_optuna.records import read_readouts

    return any(read_readouts(trial) for trial in study.get_trials(deepcopy=False))


def _predicted_by(ranking: Sequence["TrialPrediction"]) -> str:
    complete = sum(p.state.name == "COMPLETE" for p in ranking)
    if not any(p.predicted_value is not None for p in ranking):
        return f"Nothing is predicted yet: too few COMPLETE trials ({complete})."
    return f"Predicted with the default predictor, fitted on {complete} COMPLETE trials."
