"""Whole spectra as files in Optuna's artifact stores, which optuna-dashboard opens."""

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from optuna.study import Study

from lyap_optuna._files import harmless, written_whole
from lyap_optuna.records._readouts import baseline_step, read_readouts
from lyap_optuna.records._spectra import holds_spectra, load_spectra
from lyap_optuna.records._storages import place_of

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore


def publish_spectra(study: Study, artifact_store: "ArtifactStore", name: str) -> bool:
    """Write the spectra of a study's finished trials as its file, which optuna-dashboard shows.

    A later call replaces the file under the same id, as a whole or not at all. A copy of the
    study has its entries and not its files: the first call for the copy makes a file of its own.

    Args:
        study: A study of any storage.
        artifact_store: Any of :mod:`optuna.artifacts`.
        name: The name that the file is shown under.

    Returns:
        Whether anything was written.
    """
    storage, study_id = study._storage, study._study_id

    def set_entry(key: str, entry: str) -> None:
        storage.set_study_system_attr(study_id, key, entry)

    with tempfile.TemporaryDirectory(prefix="lyap-") as folder:
        path = os.path.join(folder, name)
        if not write_study_spectra(path, study):
            return False
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        attrs = storage.get_study_system_attrs(study_id)
        known = attrs.get(_FILE_ATTR)
        known = known if isinstance(known, dict) else {}
        artifact_id = str(known.get("artifact_id"))
        # What tells a study from its copies, which have all its attributes.
        about = f"{place_of(storage)} {study_id} {study.study_name}"
        home = hashlib.sha256(about.encode()).hexdigest()[:16]
        key = f"{ARTIFACT}{artifact_id}"
        # Who deletes a file in the dashboard leaves "null" here.
        has_entry = attrs.get(key) not in (None, "null")
        if has_entry and known.get("home") == home:
            if known.get("sha256") == digest and _holds(artifact_store, artifact_id):
                return False
            # First beside it: a disk that has no space for both leaves the old one whole.
            part = f"{artifact_id}.part"
            _write(artifact_store, part, path)
            _write(artifact_store, artifact_id, path)
            artifact_store.remove(part)
        else:
            if has_entry:  # the file of the study that this is a copy of
                set_entry(key, "null")
            artifact_id = upload(artifact_store, path, set_entry)
    storage.set_study_system_attr(
        study_id, _FILE_ATTR, {"artifact_id": artifact_id, "sha256": digest, "home": home}
    )
    return True


_FILE_ATTR = "lyapunov:spectra_file"

ARTIFACT = "artifacts:"
"""What Optuna's system attributes of files begin with; the id follows."""


def upload(
    artifact_store: "ArtifactStore", path: str, set_entry: Callable[[str, str], None]
) -> str:
    """Upload a CSV file, then list it: Optuna's ``upload_artifact`` lists what may never arrive."""
    from optuna.artifacts import ArtifactMeta

    artifact_id = str(uuid.uuid4())
    meta = ArtifactMeta(artifact_id, os.path.basename(path), mimetype="text/csv", encoding=None)
    _write(artifact_store, artifact_id, path)
    set_entry(f"{ARTIFACT}{artifact_id}", json.dumps(dataclasses.asdict(meta)))
    return artifact_id


def _write(artifact_store: "ArtifactStore", artifact_id: str, path: str) -> None:
    try:
        with open(path, "rb") as file:
            artifact_store.write(artifact_id, file)
    except BaseException:
        with contextlib.suppress(Exception):
            artifact_store.remove(artifact_id)
        raise


def _holds(artifact_store: "ArtifactStore", artifact_id: str) -> bool:
    from optuna.artifacts.exceptions import ArtifactNotFound

    try:
        artifact_store.open_reader(artifact_id).close()
    except ArtifactNotFound:
        return False
    return True


def write_study_spectra(path: str, study: Study) -> int:
    """Write the spectra of a study's finished trials into one CSV file.

    A row for each layer at each trial's baseline and latest readout, with ``trial``, ``state``,
    ``value`` (``value_0``, ... of several objectives), ``step``, ``baseline``, ``layer``,
    ``layer_state``, ``kind`` and, in ``exponent_1``, ..., the exponents from the largest,
    nats/step: all of them (``kind`` is ``spectrum``) where the study's database holds them, else
    the quantiles stored with the trial (``quantiles``).

    Args:
        path: The file.
        study: A study of any storage.

    Returns:
        How many rows there are.
    """
    n_values = len(study.directions)
    values = ["value"] if n_values == 1 else [f"value_{i}" for i in range(n_values)]
    head = ["trial", "state", *values, "step", "baseline", "layer", "layer_state", "kind"]
    in_database = holds_spectra(study)
    n_rows = widest = 0
    with tempfile.TemporaryFile() as body:
        text = io.TextIOWrapper(body, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        for trial in study.get_trials(deepcopy=False):
            readouts = {s: r for s, r in read_readouts(trial).items() if r.spectra()}
            if not trial.state.is_finished() or not readouts:
                continue
            stored = load_spectra(study, trial_number=trial.number) if in_database else []
            known = [f"{v:.6g}" for v in trial.values or ()] or [""] * n_values
            baseline = baseline_step(trial, readouts)
            latest = max(readouts)
            for step in [latest] if baseline in (None, latest) else [baseline, latest]:
                rows: list[tuple[str, str, str, Sequence[float]]] = [
                    (record.layer, record.state, "spectrum", record.exponents)
                    for record in stored
                    if record.step == step
                ] or [
                    (layer, readouts[step].state, "quantiles", quantiles[::-1])
                    for layer, quantiles in readouts[step].spectra().items()
                ]
                for *about, exponents in rows:
                    is_baseline = "yes" if step == baseline else "no"
                    cells = [trial.number, trial.state.name, *known, step, is_baseline, *about]
                    writer.writerow(harmless([*cells, *(f"{e:.6g}" for e in exponents)]))
                    widest = max(widest, len(exponents))
                    n_rows += 1
        body.seek(0)
        with written_whole(path) as file:
            columns = [*head, *(f"exponent_{i + 1}" for i in range(widest))]
            file.write((",".join(columns) + "\n").encode())
            shutil.copyfileobj(body, file)
    return n_rows
