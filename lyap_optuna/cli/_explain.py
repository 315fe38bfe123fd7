"""``lyap-optuna explain``: why a trial was kept or pruned."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lyap_optuna._files import write_whole
from lyap_optuna.cli import _format, _storage

if TYPE_CHECKING:
    from optuna.study import Study


@click.command()
@_storage.study_options
@click.option(
    "--trial-number", type=int, help="The number of the trial; not needed where there is one."
)
@click.option(
    "--plot",
    type=_format.OutputFile(),
    help="Write the story with its figure as an HTML page too.",
)
@_format.option(_format.NESTED_FORMATS)
def explain(
    storage: str | None,
    storage_class: str | None,
    study_name: str | None,
    trial_number: int | None,
    plot: Path | None,
    output_format: str,
) -> None:
    """Tell why a trial was kept or pruned, or why it rests.

    One sentence first; then what was reported, measured and decided at each step, as recorded while
    the trial ran; then what is known now, on all trials of the study.
    """
    import lyap_optuna

    study = _storage.load_study(storage, storage_class, study_name)
    trials = study.get_trials(deepcopy=False)
    if trial_number is None and len(trials) == 1:
        trial_number = 0
    if trial_number is None and trials:
        raise click.UsageError(f"Say which trial with --trial-number. {_held(study)}")
    if trial_number is None or not 0 <= trial_number < len(trials):
        wrong = "" if trial_number is None else f"There is no trial {trial_number}. "
        raise click.ClickException(f"{wrong}{_held(study)}")
    try:
        explanation = lyap_optuna.explain(study, trial_number)
    except ValueError as error:
        raise click.ClickException(_storage.scrub(str(error))) from None
    if plot is not None:
        from lyap_optuna.report import Section, Table, page
        from lyap_optuna.visualization import plot_explanation

        rows = explanation.table()
        told = Section(
            "What was reported, measured and decided",
            table=Table({key: key for key in (rows[0] if rows else {})}, rows),
            figure=plot_explanation(study, trial_number),
        )
        known = Section("What else is known", points=explanation.notes)
        title = f"Trial {trial_number} of {study.study_name}"
        write_whole(plot, page(title, [explanation.sentence], [told, known]))
        _storage.note(f"Figure: {_format.printable(plot)}")
    if output_format == "table":
        for line in explanation.text(_format.width()).splitlines():
            click.echo(_format.printable(line))
    else:
        click.echo(
            _format.dump(_jsonable(dataclasses.asdict(explanation)), output_format), nl=False
        )


def _held(study: "Study") -> str:
    """Say which trials of a study can be asked about."""
    trials = study.get_trials(deepcopy=False)
    name = _format.quoted(study.study_name)
    if not trials:
        return f"Study {name} has no trial yet."
    states = Counter(trial.state.name for trial in trials)
    counts = ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
    pruned = [trial.number for trial in trials if trial.state.name == "PRUNED"]
    latest = f" The latest PRUNED one is {pruned[-1]}." if pruned else ""
    numbered = "0" if len(trials) == 1 else f"0 to {len(trials) - 1}"
    return (
        f"Study {name} has {len(trials)} trial{'s' * (len(trials) > 1)}, numbered {numbered} "
        f"({counts}).{latest} `lyap-optuna rank` lists them, best first."
    )


def _jsonable(value: Any) -> Any:
    from enum import Enum

    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value.name if isinstance(value, Enum) else value
