"""``lyap-optuna explain``: why a trial was kept or pruned."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from lyap_optuna._files import write_whole
from lyap_optuna.cli import _format, _storage


@click.command()
@_storage.study_options
@click.option("--trial-number", type=int, required=True, help="The number of the trial.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the story with its figure as an HTML page too.",
)
@_format.option(_format.NESTED_FORMATS)
def explain(
    storage: str | None,
    storage_class: str | None,
    study_name: str | None,
    trial_number: int,
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
    if not 0 <= trial_number < len(trials):
        numbers = f"numbered 0 to {len(trials) - 1}" if trials else "none yet"
        raise click.ClickException(
            f"There is no trial {trial_number}: the study has {len(trials)} trials, {numbers}."
        )
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


def _jsonable(value: Any) -> Any:
    from enum import Enum

    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value.name if isinstance(value, Enum) else value
