"""Open a storage and find a study, for reading, with errors that say what to do.

Reading creates nothing: no empty SQLite file, no tables in a database that is not Optuna's.
"""

import difflib
import os
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, quote_plus, unquote, unquote_plus

import click

from lyap_optuna._logging import without_passwords
from lyap_optuna.cli._format import printable, quoted, wrapped

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study

STORAGE_CLASSES = ("RDBStorage", "JournalFileBackend", "JournalRedisBackend")

_HIDDEN = "***"
_secrets: set[str] = set()
_F = TypeVar("_F", bound=Callable[..., Any])


def study_options(command: _F) -> _F:
    """Add ``--storage``, ``--study-name``, ``-v`` and the like, as in Optuna's command."""
    for option in (
        click.option(
            "-q",
            "--quiet",
            is_flag=True,
            expose_value=False,
            callback=_be_quiet,
            help="Print no notes, only the result and errors.",
        ),
        click.option(
            "-v",
            "--verbose",
            count=True,
            expose_value=False,
            callback=_be_verbose,
            help="Show the log; -vv with details.",
        ),
        click.option("--study-name", help="The name of the study; not needed where there is one."),
        click.option(
            "--storage-class",
            type=click.Choice(STORAGE_CLASSES),
            help="Storage class, where it cannot be guessed from --storage.",
        ),
        click.option(
            "--storage",
            metavar="URL",
            help="DB URL (e.g. sqlite:///example.db), redis URL or journal file. "
            "Can also be given as the environment variable OPTUNA_STORAGE.",
        ),
    ):
        command = option(command)
    return command


def note(text: str) -> None:
    """Print a note beside the result, on the error stream, unless ``--quiet`` was given."""
    if not click.get_current_context().meta.get("lyap_optuna.quiet"):
        click.echo(wrapped(text, stderr=True), err=True)


def _be_quiet(ctx: click.Context, _: click.Parameter, quiet: bool) -> None:
    ctx.meta["lyap_optuna.quiet"] = quiet


def _be_verbose(ctx: click.Context, _: click.Parameter, count: int) -> None:
    import optuna

    before = optuna.logging.get_verbosity()
    ctx.call_on_close(lambda: optuna.logging.set_verbosity(before))
    levels = (optuna.logging.WARNING, optuna.logging.INFO, optuna.logging.DEBUG)
    optuna.logging.set_verbosity(levels[min(count, 2)])


def scrub(text: str) -> str:
    """Hide every password that was given to this command, and any that a URL shows."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    return without_passwords(text)


def shown_url(url: str) -> str:
    """Return a storage URL that may be printed."""
    _remember_secrets(url)
    return printable(scrub(url))


def open_storage(url: str | None, storage_class: str | None = None) -> "BaseStorage":
    """Open an existing storage for reading.

    The class is guessed as Optuna's own command does: a URL that begins with ``redis``, else the
    path of a journal file, else the URL of a relational database.

    Raises:
        click.ClickException: It does not open; the message shows no password.
    """
    url = url or os.environ.get("OPTUNA_STORAGE")
    if not url:
        raise click.UsageError(
            "Say where the study is stored: --storage sqlite:///example.db, "
            "or set the environment variable OPTUNA_STORAGE."
        )
    _remember_secrets(url)
    if storage_class is None:
        if url.startswith("redis"):
            storage_class = "JournalRedisBackend"
        elif os.path.isfile(url):
            storage_class = "JournalFileBackend"
        else:
            storage_class = "RDBStorage"
    opener = {
        "JournalRedisBackend": _open_redis,
        "JournalFileBackend": _open_journal,
        "RDBStorage": _open_rdb,
    }[storage_class]
    try:
        return opener(url)
    except click.ClickException:
        raise
    except Exception as error:
        raise does_not_open(url, error) from None


def does_not_open(url: str, error: Exception) -> click.ClickException:
    """Return the error that says of a storage that it does not open, and why."""
    reason = scrub(str(getattr(error, "orig", None) or error)).strip()
    return click.ClickException(
        f"The storage {shown_url(url)} does not open: {type(error).__name__}: {reason}"
    )


def load_study(url: str | None, storage_class: str | None, study_name: str | None) -> "Study":
    """Load a study by name, or the only one that the storage holds.

    Raises:
        click.ClickException: There is none of that name; the message names those that exist.
    """
    import optuna

    from lyap_optuna.records import is_incomplete

    storage = open_storage(url, storage_class)
    shown = shown_url(url or os.environ["OPTUNA_STORAGE"])
    names = sorted(study.study_name for study in storage.get_all_studies())
    if not names:
        raise click.ClickException(f"The storage {shown} holds no study.")
    if study_name is None:
        if len(names) > 1:
            raise click.UsageError(f"Choose one with --study-name. {shown} holds {_listed(names)}.")
        study_name = names[0]
    if study_name not in names:
        near = difflib.get_close_matches(study_name, names, n=10, cutoff=0.3)
        names = near + [name for name in names if name not in near]
        raise click.ClickException(
            f"There is no study {quoted(study_name)} in {shown}. It holds {_listed(names)}."
        )
    study = optuna.load_study(study_name=study_name, storage=storage)
    if is_incomplete(study):
        note(
            f"{quoted(study_name)} is an incomplete copy: it was interrupted, or it is still "
            "being made. The same `lyap-optuna storage copy` makes it anew."
        )
    return study


def _listed(names: list[str], most: int = 10) -> str:
    text = ", ".join(quoted(name) for name in names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most} more"


def _remember_secrets(url: str) -> None:
    found: list[str] = []
    for pattern in (
        r"\w[\w+.-]*://[^:/@]*:(.*)@",
        r".*:([^/].*)@",  # a URL with a slip in it holds one too
    ):
        if login := re.match(pattern, url):
            found.append(login[1])
    found += re.findall(r"[?&][^=&]*(?:pass|pwd|secret|token)[^=&]*=([^&#]+)", url, re.IGNORECASE)
    for secret in found:
        plain = {secret, unquote(secret), unquote_plus(secret)}
        _secrets.update(form for p in plain for form in (p, quote(p), quote_plus(p), repr(p)[1:-1]))
    _secrets.discard("")


def _open_redis(url: str) -> "BaseStorage":
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalRedisBackend

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # the user asked for it by its URL
        return JournalStorage(JournalRedisBackend(url))


def _open_journal(path: str) -> "BaseStorage":
    from lyap_optuna.records import JournalError, open_journal

    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise click.ClickException(
            f"The journal file {printable(path)} does not open: {error.strerror}."
        ) from None
    if head == b"SQLite format 3\0":
        raise click.ClickException(
            f"{printable(path)} is an SQLite file. Write --storage sqlite:///{printable(path)}"
        )
    try:
        return open_journal(path)
    except JournalError as error:
        raise click.ClickException(printable(error)) from None
    except Exception as error:
        raise click.ClickException(
            f"{printable(path)} is not an Optuna journal file ({type(error).__name__})."
        ) from None


def _open_rdb(url: str) -> "BaseStorage":
    import sqlalchemy
    from optuna.storages import RDBStorage

    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise click.ClickException(
            f"{shown_url(url)} is neither a file nor the URL of a database "
            "(sqlite:///example.db, postgresql://user@host/name, ...)."
        ) from None
    if parsed.get_backend_name() == "sqlite":
        path = parsed.database or ":memory:"
        if path == ":memory:":
            raise click.ClickException("An SQLite database in memory ends with its process.")
        if not path.startswith("file:") and not os.path.isfile(path):
            raise click.ClickException(
                f"There is no file {printable(scrub(path))} ({shown_url(url)})."
            )
    engine = sqlalchemy.create_engine(parsed)
    try:
        has_studies = sqlalchemy.inspect(engine).has_table("studies")
    finally:
        engine.dispose()
    if not has_studies:
        raise click.ClickException(f"The database {shown_url(url)} holds no Optuna studies.")
    return RDBStorage(url, skip_table_creation=True)
