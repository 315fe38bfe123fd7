"""``lyap-optuna rank``: all trials, best first, by value or predicted value."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
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
    "last_step": "step",
    "value": "value",
    "predicted_then": "predicted\nthen",
    "predicted_value": "predicted\nnow",
    "interval": "80 % interval\nnow",
    "max": "max λ",
    "mean": "mean λ",
    "params": "hyperparameters",
}

_SPARE = ("mean", "max", "interval", "predicted_then")
"""What a narrow terminal does without."""

_LEGENDS = {
    "step": "Step: the last reported one.",
    "predicted\nthen": "Predicted then: when a pruner last decided on it, as recorded.",
    "predicted\nnow": "Predicted now: at the last report, or for a COMPLETE trial at its last "
    "readout, by a model that has not seen its value.",
    "max λ": "λ: exponents there, in nats/step.",
}
"""What is said of a column below the table, if it is shown."""

OTHER_EVIDENCE = (
    "No trial of this study has Lyapunov readouts, so other evidence was used: the loss so far and "
    "the hyperparameters. `lyap-optuna spectra` says how to record readouts."
)


@click.command()
@_storage.study_options
@click.option("--step", type=int, help="Predict from what was known at this step.")
@click.option("--top", type=click.IntRange(min=1), help="Only the best so many trials.")
@click.option("--params", is_flag=True, help="Show the hyperparameters of each trial.")
@click.option(
    "--enqueue",
    type=click.IntRange(min=1),
    metavar="N",
    help="Queue at most N pruned trials that promise more than a new one.",
)
@_format.option(_format.FORMATS)
def rank(
    storage: str | None,
    storage_class: str | None,
    study_name: str | None,
    step: int | None,
    top: int | None,
    params: bool,
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
    ranking = ranking[:top] if top else ranking
    rows = ranking_rows(ranking)
    given = {t.number: t.params for t in study.get_trials(deepcopy=False)} if params else {}
    if not rows and output_format == "table":
        trials = Counter(trial.state.name for trial in study.get_trials(deepcopy=False))
        held = ", ".join(f"{n} {state}" for state, n in sorted(trials.items()))
        name = _format.quoted(study.study_name)
        click.echo(f"Study {name} has no trial to rank yet{f': {held}' if held else ''}.")
        return
    if output_format == "table":
        made = ranking_table(rows, given)
        _format.show(made)
        headings = [str(column.header) for column in made.columns]
        _storage.note(" ".join(_LEGENDS[name] for name in headings if name in _LEGENDS))
    else:
        for row in rows:
            if output_format == "csv":
                row["evidence"] = " + ".join(row["evidence"])
            row |= {f"params_{name}": v for name, v in given.get(row["number"], {}).items()}
        click.echo(_format.dump(rows, output_format), nl=False)
    if not has_readouts(study):
        _storage.note(OTHER_EVIDENCE)
    for line in predicted_from(study, ranking):
        _storage.note(line)
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


def ranking_table(
    rows: Sequence[_format.Row], params: Mapping[int, Mapping[str, Any]] | None = None
) -> "Table":
    """Return the ranking as a table, with the hyperparameters by trial number where given."""
    from lyap_optuna.report._tables import in_a_cell, interval

    shown = [
        {
            **row,
            "interval": interval(row["lower"], row["upper"]),
            "params": in_a_cell((params or {}).get(row["number"], {})),
        }
        for row in rows
    ]
    columns = {key: heading for key, heading in _COLUMNS.items() if params or key != "params"}
    for key in ("predicted_then", "max", "mean"):  # which not every study has
        if all(row[key] is None for row in rows):
            del columns[key]
    return _format.table(shown, columns, _SPARE)


def has_readouts(study: "Study") -> bool:
    """Return whether any trial carries a readout."""
    from lyap_optuna.records import read_readouts

    return any(read_readouts(trial) for trial in study.get_trials(deepcopy=False))


def predicted_from(study: "Study", ranking: Sequence["TrialPrediction"]) -> list[str]:
    """Say by what, on what and from what trials are predicted, those with the same together."""
    from lyap_optuna.prediction.evidence import in_words

    complete = sum(t.state.name == "COMPLETE" for t in study.get_trials(deepcopy=False))
    groups: dict[tuple[str, ...], list[int]] = {}
    for prediction in ranking:
        if prediction.predicted_value is not None:
            groups.setdefault(prediction.evidence, []).append(prediction.number)
    if not groups:
        return [f"Nothing is predicted yet: too few COMPLETE trials ({complete})."]
    sign = -1 if study.direction.name == "MAXIMIZE" else 1
    (most, _), *others = sorted(groups.items(), key=lambda item: -len(item[1]))

    def told(kinds: tuple[str, ...]) -> str:
        return in_words(kinds, sign) or "no evidence that varies"

    lines = [
        f"Predictions are those of the default predictor, fitted on {complete} COMPLETE trials, "
        f"from {told(most)}."
    ]
    for kinds, numbers in others:
        named = ", ".join(map(str, sorted(numbers)[:_NAMED]))
        more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
        trials = f"trial{'s' * (len(numbers) > 1)}"
        lines.append(f"Those of {trials} {named}{more} are from {told(kinds)}.")
    return lines


_NAMED = 10
"""Trials that a note names at most."""
