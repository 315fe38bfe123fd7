"""``lyap-optuna dashboard``: optuna-dashboard with the figures of each study, kept fresh."""

import signal
import threading
from pathlib import Path

import click

from lyap_optuna.cli import _format, _storage


@click.command(short_help="Start optuna-dashboard with figures and notes.")
@_storage.study_options
@click.option(
    "--artifact-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of artifact files; the spectra of finished trials go there too.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="The port; 0 for any that is free.",
)
def dashboard(
    storage: str | None,
    storage_class: str | None,
    study_name: str | None,
    artifact_dir: Path | None,
    host: str,
    port: int,
) -> None:
    """Start optuna-dashboard with figures and a note of the exponents in each study.

    They are published into every study that has readouts (with --study-name, into that one), and
    again while trials run, at most every 60 seconds and only when something changed; into a
    journal only when its trials have ended. Ctrl-C ends it.
    """
    from optuna.artifacts import FileSystemArtifactStore

    from lyap_optuna.dashboard import Publisher, make_dashboard

    opened = _storage.open_storage(storage, storage_class)
    if study_name is not None:
        _storage.load_study(storage, storage_class, study_name)  # an error if there is none
    store = None
    if artifact_dir is not None:
        artifact_dir.mkdir(parents=True, exist_ok=True)
        store = FileSystemArtifactStore(artifact_dir)
    try:
        server = make_dashboard(opened, host, port, artifact_store=store)
    except ImportError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(
            f"Nothing can listen at {_format.printable(host)}:{port} ({error.strerror}). "
            "Choose another --port."
        ) from None
    stop = threading.Event()
    publisher = Publisher(opened, artifact_store=store, study_name=study_name)
    thread = threading.Thread(target=publisher.run, args=(stop,), daemon=True)
    # What stops services stops this as Ctrl-C does: no figure is left half written. So does an
    # interrupt where a shell began it in the background, and had it ignore interrupts.
    before = {
        number: signal.signal(number, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    thread.start()
    try:
        click.echo(f"optuna-dashboard: http://{host}:{server.server_port}/  (Ctrl-C ends it)")
        server.serve_forever()
    except KeyboardInterrupt:
        _storage.note("Stopping.")
    finally:
        server.server_close()
        stop.set()
        thread.join()
        for number, handler in before.items():
            signal.signal(number, handler)
