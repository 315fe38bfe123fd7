"""Whole spectra as files in Optuna's artifact stores, which optuna-dashboard opens."""

import csv
import math
import os
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

from optuna.storages import BaseStorage
from optuna.trial import BaseTrial, Trial

from lyap_optuna.records import _json

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore


def upload_spectrum(
    artifact_store: "ArtifactStore",
    trial: BaseTrial,
    step: int,
    *,
    exponents: Sequence[float],
    std: Sequence[float],
) -> str | None:
    """Upload a spectrum as the trial's file ``lyapunov-spectrum-step-N.csv``.

    Its columns are ``index`` (from 1), ``exponent`` and ``std`` (nats/step; empty for a single
    input). Optuna takes files of running trials only.

    Args:
        artifact_store: Any of :mod:`optuna.artifacts`.
        trial: The running trial; one without a storage (:class:`optuna.trial.FixedTrial`) uploads
            nothing.
        step: The step.
        exponents: Exponents, nats/step, descending; written floored at -16.
        std: Their standard deviations over the inputs.

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
            writer.writerow(["index", "exponent", "std"])
            for i, (e, s) in enumerate(zip(exponents, std, strict=True), start=1):
                error = f"{s:.6g}" if math.isfinite(s) else ""
                writer.writerow([i, f"{max(e, _json.FLOOR):.6g}", error])
        return upload_artifact(artifact_store=artifact_store, file_path=path, study_or_trial=trial)
