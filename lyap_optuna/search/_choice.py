"""Whom to go on with: the resting trial that promises the most for its cost, or a new one."""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from optuna.trial import FrozenTrial, Trial

from lyap_optuna._warnings import LyapunovWarning
from lyap_optuna.prediction._step_model import StepModel, StepPrediction
from lyap_optuna.prediction._study import StudyModels, model_step
from lyap_optuna.prediction.evidence import TrialView
from lyap_optuna.records import Decision, baseline_step, read_readouts
from lyap_optuna.search._drivers import Driver

N_STARTUP_TRIALS = 4
"""COMPLETE trials before the first choice; until then trials run to their end."""

GROWTH = 0.5
"""A trial that is chosen makes this share of the reports that it has made again, at least one."""

EXPLORE = 0.1
"""How often the choice is drawn in proportion to what the trials promise, not the best of them."""


@dataclass(eq=False)
class Begun:
    """A trial that has begun and not ended.

    Args:
        trial: The trial.
        driver: What runs its objective.
        frozen: What the storage held of it at its last pause.
        steps: Steps so far: reports, or pauses of an objective that never reports.
        seconds: Time that its objective has run.
        marked: Whether the storage says that it rests.
        again: Whether it repeats one that ran out of memory.
        view: What evidence may be read of it.
        step: The step of the model that judges it.
        model: The model that judged it last.
        predicted: What that predicted; None where nothing can be.
    """

    trial: Trial
    driver: Driver
    frozen: FrozenTrial
    steps: int = 0
    seconds: float = 0.0
    marked: bool = False
    again: bool = False
    view: TrialView | None = field(default=None, repr=False)
    step: int | None = None
    model: StepModel | None = field(default=None, repr=False)
    predicted: StepPrediction | None = None

    @property
    def trial_id(self) -> int:
        """Id of the trial in its storage."""
        return self.trial._trial_id

    @property
    def chance(self) -> float:
        """Chance of ending among the best; 1 where it is unknown, so that it goes on."""
        known = None if self.predicted is None else self.predicted.probability
        return 1.0 if known is None else known

    def goal(self) -> int:
        """Return the number of steps after which it may rest again, when it goes on."""
        return self.steps + max(1, math.floor(GROWTH * self.steps))


class Choice:
    """Judges resting trials by the posterior of the study, and chooses.

    What a trial promises is its chance of ending among the best ``top_fraction``, over the cost of
    what is left of it: the cost of one of its steps, times the steps that the longest COMPLETE
    trial has made more. A new trial promises ``top_fraction`` over the cost of a whole one whose
    steps cost the median. So of two trials with the same chance the one that is further goes on.

    The best is chosen, except that one choice in ten is drawn in proportion to what the trials
    promise (probability matching: Thompson, *Biometrika* 25 (1933) 285). So a trial that the
    posterior wrongly takes for poor gets its turn as often as the posterior itself admits that it
    may be wrong, and no turn goes to what is surely hopeless.

    Args:
        models: The finished trials and the posteriors.
        top_fraction: The fraction of trials that are the best.
        seconds: Whether the cost of a step is its measured time; else all steps cost the same.
        rng: What exploration draws from.
    """

    def __init__(
        self,
        models: StudyModels,
        top_fraction: float,
        seconds: bool,
        rng: np.random.Generator,
    ) -> None:
        self._models = models
        self._top_fraction = top_fraction
        self._seconds = seconds
        self._rng = rng
        self._costs: dict[int, float] = {}  # of a step, by trial number
        self._warned = False

    @property
    def n_complete(self) -> int:
        """COMPLETE trials of the study."""
        return self._models.n_complete

    def update(self, trials: Iterable[FrozenTrial]) -> None:
        """Read what has finished."""
        self._models.update(trials)

    def goal(self, begun: Begun) -> float:
        """Return after how many steps a trial may rest: a new one at its first pause."""
        if self._starts_up():
            return math.inf
        return begun.goal() if begun.driver.paused else 0

    def _starts_up(self) -> bool:
        return self.n_complete < N_STARTUP_TRIALS

    def is_whole(self, begun: Begun) -> bool:
        """Whether a trial has made as many reports as the longest COMPLETE one."""
        length = self._models.length
        return 0 < length <= len(begun.frozen.intermediate_values)

    def paused(self, begun: Begun) -> None:
        """Take note of what a trial has cost, and that what is thought of it is out of date."""
        if begun.steps:
            self._costs[begun.trial.number] = max(begun.seconds / begun.steps, 1e-9)
        begun.model = begun.view = None

    def judge(self, resting: Sequence[Begun]) -> None:
        """Predict the trials whose model or whose reports are new, those of a step together."""
        try:
            stale: dict[int | None, list[Begun]] = {}
            for begun in resting:
                if begun.model is None or begun.model is not self._models.at(begun.step):
                    view = self._models.view(begun.frozen)
                    last = int(view.steps[-1]) if view.steps.size else None
                    begun.view, begun.step = view, model_step(view.steps, last)
                    stale.setdefault(begun.step, []).append(begun)
            for step, group in stale.items():
                model = self._models.at(step)
                predicted = model.predict([b.view for b in group if b.view is not None])
                for begun, prediction in zip(group, predicted, strict=True):
                    begun.model, begun.predicted = model, prediction if model.kinds else None
        except Exception as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    "freeze_thaw could not judge the trials that rest and uses its last "
                    f"predictions of them: {type(error).__name__}: {error}. Further failures "
                    "of this search are silent.",
                    LyapunovWarning,
                    stacklevel=5,
                )

    def choose(self, resting: Sequence[Begun]) -> Begun | None:
        """Return the trial to go on with; None where a new one promises as much as any."""
        if self._starts_up():  # a trial that has paused was to run to its end
            return resting[0] if resting else None
        promises = self._promises(resting)
        new = self._top_fraction / (self._typical_cost() * max(1, self._models.length))
        if not resting or promises.max() < new:
            return None
        if self._rng.random() < EXPLORE and promises.sum() > 0:
            return resting[int(self._rng.choice(len(resting), p=promises / promises.sum()))]
        return resting[int(promises.argmax())]

    def best(self, resting: Sequence[Begun]) -> Begun:
        """Return the resting trial that promises the most."""
        return resting[int(self._promises(resting).argmax())]

    def least_promising(self, resting: Sequence[Begun]) -> Begun:
        """Return the resting trial whose chance is smallest, of equal ones the newest."""
        self.judge(resting)
        return min(reversed(resting), key=lambda begun: begun.chance)

    def _promises(self, resting: Sequence[Begun]) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        self.judge(resting)
        typical, length = self._typical_cost(), self._models.length
        costs = [
            (self._costs.get(begun.trial.number, typical) if self._seconds else 1.0)
            * max(1, length - len(begun.frozen.intermediate_values))
            for begun in resting
        ]
        return np.array([begun.chance for begun in resting]) / np.array(costs, np.float64)

    def _typical_cost(self) -> float:
        known = list(self._costs.values()) if self._seconds else []
        return float(np.median(known)) if known else 1.0

    def decision(self, begun: Begun) -> Decision:
        """Return why a trial that rests ends here."""
        step = begun.frozen.last_step
        if step is None:
            step = baseline_step(begun.frozen, read_readouts(begun.frozen)) or 0
        model, predicted = begun.model, begun.predicted
        if model is None or predicted is None:
            n_trials = self.n_complete
            return Decision(step, verdict="pruned", because="rested", n_trials=n_trials)
        return Decision(step, verdict="pruned", because="rested", **model.grounds(predicted))
