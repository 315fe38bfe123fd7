"""The Lyapunov exponents of the network in training, as in *On Lyapunov Exponents for RNNs*."""

from lyap_optuna.prediction.evidence.base import Evidence, Feature, TrialView
from lyap_optuna.records import ReadoutRecord


class ExponentEvidence(Evidence):
    """Maximum and mean exponent (nats/step) of the latest readout up to the step, and |maximum|.

    |maximum| is the distance from the edge between decay and growth: both too small and too large
    are bad. Of the model and, where several layers were measured, of each of them. The mean is
    missing where it could not be had. Until a readout is taken in training, the baseline counts.
    """

    name = "exponents"

    def features(self, trial: TrialView, step: int | None) -> dict[str, Feature]:
        """Return ``max``, ``distance``, ``mean``, ``LAYER:max`` ...; empty without a readout."""
        readout = trial.readout(step) or trial.baseline
        if readout is None:
            return {}
        features = _of(readout, "")
        for name, layer in readout.layers.items():
            features |= _of(layer, f"{name}:")
        return features


def _of(readout: ReadoutRecord, prefix: str) -> dict[str, Feature]:
    features: dict[str, Feature] = {
        f"{prefix}max": readout.max,
        f"{prefix}distance": abs(readout.max),
    }
    if readout.mean is not None:
        features[f"{prefix}mean"] = readout.mean
    return features
