"""``lyap-optuna storage``: the table of whole spectra in a relational database."""

import click

from lyap_optuna.cli import _format, _storage


@click.group(short_help="Upgrade or copy the table of whole spectra.")
def storage() -> None:
    """Upgrade the table of whole spectra, or copy a study with its spectra."""


@storage.command()
@_storage.study_options
def upgrade(storage: str | None, storage_class: str | None, study_name: str | None) -> None:
    """Bring the table lyapunov_spectra to the schema of this release.

    Creates it where it is absent, so that workers need no right to create tables, and removes
    the spectra of deleted studies that an SQLite file still holds. Concerns every study of the
    database. Optuna's own tables are upgraded by `optuna storage upgrade`.
    """
    from lyap_optuna.records import SpectraError, upgrade_spectra

    try:
        before, after = upgrade_spectra(_storage.open_storage(storage, storage_class))
    except SpectraError as error:
        raise click.ClickException(str(error)) from None
    if before is None:
        click.echo(f"Created the table lyapunov_spectra, schema {after}.")
    elif before == after:
        click.echo(f"The table lyapunov_spectra is up to date, schema {after}.")
    else:
        click.echo(f"Upgraded the table lyapunov_spectra from schema {before} to {after}.")


@storage.command()
@_storage.study_options
@click.option(
    "--to-storage",
    required=True,
    metavar="URL",
    help="DB URL of the database to copy to; may be the same one.",
)
@click.option("--to-study-name", help="The name of the copy; that of the study where not given.")
def copy(
    storage: str | None,
    storage_class: str | None,
    study_name: str | None,
    to_storage: str,
    to_study_name: str | None,
) -> None:
    """Copy a study with its whole spectra, which optuna.copy_study leaves behind.

    A copy that fails leaves none. One that was interrupted or killed is made anew by the same
    command.
    """
    import optuna

    from lyap_optuna.records import SpectraError, copy_study

    study = _storage.load_study(storage, storage_class, study_name)
    shown = _storage.shown_url(to_storage)
    name = to_study_name or study.study_name
    try:
        target = optuna.storages.get_storage(to_storage)
    except Exception as error:
        raise _storage.does_not_open(to_storage, error) from None
    try:
        copied, n_spectra = copy_study(study, target, name)
    except optuna.exceptions.DuplicatedStudyError:
        raise click.ClickException(
            f"{shown} already holds a study {_format.quoted(name)}. Give the copy another name: "
            "--to-study-name."
        ) from None
    except SpectraError as error:
        raise click.ClickException(str(error)) from None
    click.echo(
        f"Copied study {_format.quoted(study.study_name)} to {_format.quoted(name)} in {shown}: "
        f"{len(copied.get_trials(deepcopy=False))} trials, {n_spectra} spectra."
    )
