"""The Lyapunov exponents of the network in training, as in *On Lyapunov Exponents for RNNs*."""

from lyap_optuna.prediction.evidence.base import Evidence, Feature, TrialView


class ExponentEvidence(Evidence):
    """Maximum and mean exponent (nats/step) of the latest readout up to the step.

    Readouts before the first reported step are the baseline and do not count here: a trial whose
    probe measured only before training has no exponents, rather than those of an untrained
    network beside those of trained ones.
    """

    name = "exponents"

    def features(self, trial: TrialView, step: int | None) -> dict[str, Feature]:
        """Return ``max`` and ``mean``; empty where there is no readout yet."""
        readout = trial.readout(step)
        return {} if readout is None else {"max": readout.max, "mean": readout.mean}
