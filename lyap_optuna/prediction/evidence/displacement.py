"""How far training has moved the exponents."""

import math

from lyap_optuna.prediction.evidence.base import Evidence, Feature, TrialView
from lyap_optuna.records import ReadoutRecord


class DisplacementEvidence(Evidence):
    """The latest readout up to the step minus the baseline, in nats/step.

    ``max`` and ``mean`` are signed; ``rms`` is the root of the mean squared displacement of the
    spectrum's quantiles, where both readouts have equally many. Without a baseline, or without a
    readout in training, the displacement is missing, never zero; so is that between readouts of
    different states. Where several layers were measured, each has its own besides the model's. In
    cross-validation a readout of a later fold's network has a baseline of its own.
    """

    name = "displacement"

    def features(self, trial: TrialView, step: int | None) -> dict[str, Feature]:
        """Return ``max``, ``mean`` and, for whole spectra, ``rms``; empty without a baseline."""
        readout = trial.readout(step)
        baseline = None if readout is None else trial.baseline_of(readout)
        if readout is None or baseline is None or readout.state != baseline.state:
            return {}
        features = _between(readout, baseline, "")
        for name, layer in readout.layers.items():
            before = layer.baseline or baseline.layers.get(name)
            if before is not None:
                features |= _between(layer, before, f"{name}:")
        return features


def _between(readout: ReadoutRecord, baseline: ReadoutRecord, prefix: str) -> dict[str, Feature]:
    features: dict[str, Feature] = {f"{prefix}max": readout.max - baseline.max}
    if readout.mean is not None and baseline.mean is not None:
        features[f"{prefix}mean"] = readout.mean - baseline.mean
    now, then = readout.quantiles, baseline.quantiles
    if now is not None and then is not None and len(now) == len(then):
        squares = [(a - b) ** 2 for a, b in zip(now, then, strict=True)]
        features[f"{prefix}rms"] = math.sqrt(math.fsum(squares) / len(squares))
    return features
