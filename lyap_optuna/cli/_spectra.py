"""``lyap-optuna spectra``: export the readouts of a study."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lyap_optuna._files import write_whole
from lyap_optuna.cli import _format, _storage

if TYPE_CHECKING:
    from optuna.study import Study

HOW_TO_RECORD = """\
To record readouts, give the objective a probe (three lines):

    probe = lyap_optuna.LyapunovProbe(model, inputs)       # after the model
    probe.report(trial, value, step)                       # in place of trial.report
    study = optuna.create_study(pruner=lyap_optuna.LyapunovPruner())\
"""

_COLUMNS = {
    "number": "trial",
    "state": "state",
    "step": "step",
    "baseline": "baseline",
    "layer": "layer",
    "max": "max",
    "max_stderr": "±",
    "mean": "mean",
    "mean_stderr": "±",
    "intermediate_value": "reported",
    "value": "final value",
}


@click.command(short_help="Export the readouts, by trial and step.")
@_storage.study_options
@click.option(
    "--trial-number", "trial_numbers", type=int, multiple=True, help="Only this trial; repeatable."
)
@_format.option(_format.FORMATS)
@click.option(
    "-o",
    "--output",
    type=_format.OutputFile(),
    help="Write to this file instead of the terminal.",
)
def spectra(
    storage: str | None,
    storage_class: str | None,
    study_name: str | None,
    trial_numbers: tuple[int, ...],
    output_format: str,
    output: Path | None,
) -> None:
    """Export the readouts of a study, one row per trial and step.

    Exponents are in nats per time step; the baseline was measured before training. Where several
    layers were measured, each has a row below that of the model. Where whole
    spectra were measured, json, yaml and csv carry their quantiles, ascending.
    """
    study = _storage.load_study(storage, storage_class, study_name)
    rows = readout_rows(study, trial_numbers)
    if not rows:
        raise click.ClickException(
            f"No readouts in study {_format.quoted(study.study_name)}"
            + (f", trial {', '.join(map(str, trial_numbers))}" if trial_numbers else "")
            + f".\n\n{HOW_TO_RECORD}"
        )
    if output_format == "table":
        if output is not None:
            raise click.UsageError("A table goes to the terminal; use -f csv, json or yaml.")
        several = any(row["layer"] is not None for row in rows)
        shown = {key: head for key, head in _COLUMNS.items() if several or key != "layer"}
        _format.show(_format.table(rows, shown, spare=("mean_stderr", "max_stderr", "baseline")))
        return
    text = _format.dump(rows, output_format)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_whole(output, text)
        _storage.note(f"{len(rows)} readouts written to {_format.printable(output)}")


def readout_rows(study: "Study", trial_numbers: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Return one row per trial and step, then one for each of several layers.

    Raises:
        click.ClickException: A trial that was asked for does not exist.
    """
    from optuna.trial import TrialState

    from lyap_optuna.records import ReadoutRecord, baseline_step, read_readouts

    trials = study.get_trials(deepcopy=False)
    for number in trial_numbers:
        if not 0 <= number < len(trials):
            raise click.ClickException(
                f"There is no trial {number}: the study has {len(trials)} trials, numbered from 0."
            )
    rows: list[dict[str, Any]] = []
    for trial in trials:
        if trial_numbers and trial.number not in trial_numbers:
            continue
        readouts = read_readouts(trial)
        baseline = baseline_step(trial, readouts)
        complete = trial.state == TrialState.COMPLETE and len(trial.values or ()) == 1
        for step, readout in readouts.items():
            measured: list[tuple[str | None, ReadoutRecord]] = [(None, readout)]
            measured += readout.layers.items()
            for layer, numbers in measured:
                rows.append(
                    {
                        "number": trial.number,
                        "state": trial.state.name,
                        "step": step,
                        "baseline": step == baseline,
                        "layer": layer,
                        "layer_state": readout.state,
                        "max": numbers.max,
                        "max_stderr": numbers.max_stderr,
                        "mean": numbers.mean,
                        "mean_stderr": numbers.mean_stderr,
                        "floored": numbers.floored,
                        "intermediate_value": trial.intermediate_values.get(step),
                        "value": trial.value if complete else None,
                        "quantiles": list(numbers.quantiles or ()),
                    }
                )
    return rows
