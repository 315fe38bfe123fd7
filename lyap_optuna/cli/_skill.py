"""``lyap-optuna skill``: which evidence predicts, how early and how surely; what pruning saved."""

import dataclasses
from typing import TYPE_CHECKING

import click

from lyap_optuna.cli import _format, _storage

if TYPE_CHECKING:
    from lyap_optuna.report import StudySummary

_SPARE = ("share_interval", "share", "n_trials")


@click.command(short_help="Which evidence predicts, and how surely.")
@_storage.study_options
@click.option(
    "--step",
    "steps",
    type=int,
    multiple=True,
    help="Only this step; repeatable. By default the table has the first three.",
)
@_format.option(_format.FORMATS)
def skill(
    storage: str | None,
    storage_class: str | None,
    study_name: str | None,
    steps: tuple[int, ...],
    output_format: str,
) -> None:
    """Show which evidence predicts the final value of a study, how early, and how surely.

    Then what the exponents themselves added to all other evidence, what pruning saved and what it
    lost, where that can be known, and what to hold against these numbers.
    """
    study = _storage.load_study(storage, storage_class, study_name)
    if output_format == "table":
        from lyap_optuna.report import summarize
        from lyap_optuna.report._summary import N_STEPS

        if len(study.directions) > 1:
            raise click.ClickException("Nothing is predicted in a study of several objectives.")
        show_skill(summarize(study, steps=steps or None, most_steps=None if steps else N_STEPS))
        return
    import lyap_optuna

    try:
        skills = lyap_optuna.prediction_skill(study, steps=steps or None)
    except ValueError as error:
        raise click.ClickException(_storage.scrub(str(error))) from None
    rows = []
    for found in skills:
        lower, upper = found.interval or (None, None)
        rows.append({**dataclasses.asdict(found), "lower": lower, "upper": upper})
    click.echo(_format.dump(rows, output_format), nl=False)


def show_skill(summary: "StudySummary") -> None:
    """Print the table of skill, and in words what it means."""
    from lyap_optuna.report._tables import TOO_FEW, skill_table

    columns, rows, legend = skill_table(summary)
    if rows:
        _format.show(_format.table(rows, columns, _SPARE))
        _storage.note(legend)
        click.echo()
    else:
        click.echo(TOO_FEW)
    words = summary.hindsight_in_words, summary.added_in_words, summary.pruning_in_words
    for text in filter(None, words):
        click.echo(_format.wrapped(_format.printable(text)))
    for text in summary.caveats:
        _storage.note(f"- {text}")
