"""The Lyapunov exponents of the network in training, as in *On Lyapunov Exponents for RNNs*."""

from lyap_optuna.prediction.evidence.base import Evidence, Feature, TrialView
from lyap_optuna.records import ReadoutRecord


class ExponentEvidence(Evidence):
    """Maximum and mean exponent (nats/step) of the latest readout up to the step.

    Of the model and, where several layers were measured, of each of them. The mean is missing
    where it could not be had.

    Readouts before the first reported step are the baseline and do not count here: a trial whose
    probe measured only before training has no exponents, rather than those of an untrained
    network beside those of trained ones.
    """

    name = "exponents"
    shared_only = True

    def features(self, trial: TrialView, step: int | None) -> dict[str, Feature]:
        """Return ``max``, ``mean``, ``LAYER:max`` ...; empty where there is no readout yet."""
        readout = trial.readout(step)
        if readout is None:
            return {}
        features = _of(readout, "")
        for name, layer in readout.layers.items():
            features |= _of(layer, f"{name}:")
        return features


def _of(readout: ReadoutRecord, prefix: str) -> dict[str, Feature]:
    features: dict[str, Feature] = {f"{prefix}max": readout.max}
    if readout.mean is not None:
        features[f"{prefix}mean"] = readout.mean
    return features
