"""Whole spectra as files in Optuna's artifact stores, which optuna-dashboard opens."""

import csv
import io
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import BaseTrial, Trial

from lyap_optuna._files import harmless, written_whole
from lyap_optuna.records import _json
from lyap_optuna.records._readouts import baseline_step, read_readouts
from lyap_optuna.records._spectra import holds_spectra, load_spectra

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore


def upload_spectrum(
    artifact_store: "ArtifactStore",
    trial: BaseTrial,
    step: int,
    layers: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> str | None:
    """Upload the spectra of a network as the trial's file ``lyapunov-spectrum-step-N.csv``.

    Its columns are ``layer`` (empty for the model itself), ``index`` (from 1), ``exponent`` and
    ``std`` (nats/step; empty for a single input). Optuna takes files of running trials only.

    Args:
        artifact_store: Any of :mod:`optuna.artifacts`.
        trial: The running trial; one without a storage (:class:`optuna.trial.FixedTrial`) uploads
            nothing.
        step: The step.
        layers: By the layer's name its exponents, nats/step, descending, written floored at -16,
            and their standard deviations over the inputs.

    Returns:
        The artifact's id, or None where nothing was uploaded.
    """
    trial = getattr(trial, "_delegate", trial)  # of optuna_integration's TorchDistributedTrial
    if not isinstance(trial, Trial) or not isinstance(trial.storage, BaseStorage):
        return None
    from optuna.artifacts import upload_artifact

    with tempfile.TemporaryDirectory(prefix="lyap-") as folder:
        path = os.path.join(folder, f"lyapunov-spectrum-step-{step}.csv")
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["layer", "index", "exponent", "std"])
            for layer, (exponents, std) in layers.items():
                for i, (e, s) in enumerate(zip(exponents, std, strict=True), start=1):
                    error = f"{s:.6g}" if math.isfinite(s) else ""
                    number = f"{max(e, _json.FLOOR):.6g}"
                    writer.writerow(harmless([layer, i, number, error]))
        return upload_artifact(artifact_store=artifact_store, file_path=path, study_or_trial=trial)


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
