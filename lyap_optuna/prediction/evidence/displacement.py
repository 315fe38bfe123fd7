"""How far training has moved the exponents (design, section 1, lesson 1)."""

import math

from lyap_optuna.prediction.evidence.base import Evidence, Feature, TrialView


class DisplacementEvidence(Evidence):
    """The latest readout up to the step minus the baseline, in nats/step.

    ``max`` and ``mean`` are signed; ``rms`` is the root of the mean squared displacement of the
    spectrum's quantiles, where both readouts have equally many. Without a baseline, or without a
    readout in training, the displacement is missing, never zero.
    """

    name = "displacement"

    def features(self, trial: TrialView, step: int | None) -> dict[str, Feature]:
        """Return ``max``, ``mean`` and, for whole spectra, ``rms``; empty without a baseline."""
        readout, baseline = trial.readout(step), trial.baseline
        if readout is None or baseline is None:
            return {}
        features: dict[str, Feature] = {
            "max": readout.max - baseline.max,
            "mean": readout.mean - baseline.mean,
        }
        now, then = readout.quantiles, baseline.quantiles
        if now is not None and then is not None and len(now) == len(then):
            squares = [(a - b) ** 2 for a, b in zip(now, then, strict=True)]
            features["rms"] = math.sqrt(math.fsum(squares) / len(squares))
        return features
