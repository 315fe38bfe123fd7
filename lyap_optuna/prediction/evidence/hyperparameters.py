"""The trial's hyperparameters."""

import math

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lyap_optuna.prediction.evidence.base import Evidence, Feature, TrialView


class HyperparameterEvidence(Evidence):
    """One feature per suggested hyperparameter, known from the first step on.

    Numeric ones enter on the scale of their distribution (logarithm where it is logarithmic),
    categorical ones as categories. A hyperparameter that this trial did not suggest (conditional
    spaces) is missing; one whose distribution holds a single value is left out.
    """

    name = "hyperparameters"

    def features(self, trial: TrialView, step: int | None) -> dict[str, Feature]:
        """Return one feature per hyperparameter, by its name."""
        features: dict[str, Feature] = {}
        for name, distribution in trial.distributions.items():
            if name not in trial.params or distribution.single():
                continue
            value = trial.params[name]
            if isinstance(distribution, CategoricalDistribution):
                # By type too: 1, 1.0, True and "1" may be different choices.
                features[name] = f"{type(value).__name__}:{value}"
            elif isinstance(distribution, (FloatDistribution, IntDistribution)):
                log = distribution.log and value > 0
                features[name] = math.log(value) if log else float(value)
        return features
