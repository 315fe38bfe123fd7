"""The loss curve so far."""

from lyap_optuna.prediction.evidence.base import Evidence, Feature, TrialView


class LossEvidence(Evidence):
    """The last and the best reported value up to the step.

    Both are oriented (smaller is better); a reported NaN or infinity is worse than every finite
    value.
    """

    name = "loss"

    def features(self, trial: TrialView, step: int | None) -> dict[str, Feature]:
        """Return ``last`` and ``best``; empty before the first report."""
        n = trial.reports(step)
        if not n:
            return {}
        return {"last": float(trial.losses[n - 1]), "best": float(trial.best[n - 1])}
