"""``lyap-optuna report``: a study as one HTML page."""

from pathlib import Path

import click

from lyap_optuna.cli import _format, _storage


@click.command(short_help="Write what a study found as one HTML page.")
@_storage.study_options
@click.option(
    "-o",
    "--output",
    type=_format.OutputFile(stdout=True),
    default=Path("report.html"),
    show_default=True,
    help="The file to write; - is standard output.",
)
def report(
    storage: str | None, storage_class: str | None, study_name: str | None, output: Path
) -> None:
    """Write what a study found as one HTML page that needs nothing else, below a megabyte.

    Pruning, skill by step and kind of evidence, the figures, the best trials, and what to hold
    against these numbers; light or dark as the browser is.
    """
    from lyap_optuna.report import report_page, write_report

    study = _storage.load_study(storage, storage_class, study_name)
    if str(output) == "-":
        click.echo(report_page(study), nl=False)
        return
    write_report(study, output)
    _storage.note(f"Written: {_format.printable(output)}")
