"""What is left to run, and when a trial stops: the strategies ``prune`` and ``screen``."""

import abc
import math

import optuna
from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna._logging import get_logger
from lyap_optuna.campaign._config import CampaignConfig, Screen, make_pruner
from lyap_optuna.prediction import rank_trials
from lyap_optuna.records import Decision, number_in, repeat, write_decision
from lyap_optuna.records._keys import CONTINUES

_logger = get_logger(__name__)

ROLE = "lyapunov:screen"
"""What a trial is for in a screening: ``train``, ``screen`` or ``continue``."""

_COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)


class Strategy(abc.ABC):
    """How a campaign goes about its trials. The parent asks what is left; workers use the rest."""

    @abc.abstractmethod
    def missing(self, study: Study) -> int:
        """Return how many trials are still to end as COMPLETE or PRUNED, those running included."""

    def advance(self, study: Study) -> bool:
        """Queue what comes next, when nothing is missing and nothing runs; whether there was."""
        return False

    @abc.abstractmethod
    def total(self, study: Study) -> int:
        """Return how many trials the campaign will have, as far as is known."""

    @abc.abstractmethod
    def pruner(self) -> BasePruner:
        """Return the pruner of a worker's study."""

    def begin(self, trial: optuna.Trial) -> None:  # noqa: B027
        """Prepare a trial that begins."""

    def must_stop(self, trial: FrozenTrial) -> bool:
        """Whether a trial that ignored ``should_prune`` is stopped at its next report."""
        return False


class PruneStrategy(Strategy):
    """Every configuration is trained until it ends or the pruner gives it up."""

    def __init__(self, config: CampaignConfig) -> None:
        self._config = config

    def missing(self, study: Study) -> int:
        """Return the total less the COMPLETE and PRUNED trials."""
        done = len(study.get_trials(deepcopy=False, states=_COUNTED))
        return max(self._config.trials - done, 0)

    def total(self, study: Study) -> int:
        """Return the number of trials in the file."""
        return self._config.trials

    def pruner(self) -> BasePruner:
        """Return the pruner that the file names."""
        return make_pruner(self._config.pruner)


class ScreenStrategy(Strategy):
    """Most configurations stop after a few epochs; the best of them are continued.

    The first ``n_startup_trials`` run to the end and train the predictor (or an earlier study
    did). When all the configurations of the file are done, those that were stopped are ranked by
    :func:`~lyap_optuna.rank_trials`, and the best are queued as new trials with the same
    parameters, each once.
    """

    def __init__(self, config: CampaignConfig, screen: Screen) -> None:
        self._config = config
        self._screen = screen

    def missing(self, study: Study) -> int:
        """Return the configurations to try; when all were, the continued trials to end."""
        trials = study.get_trials(deepcopy=False)
        tried = sum(t.state in _COUNTED and number_in(t, CONTINUES) is None for t in trials)
        if tried < self._config.trials:
            return self._config.trials - tried
        ended = {number_in(t, CONTINUES) for t in trials if t.state in _COUNTED}
        pending = {
            number_in(t, CONTINUES)
            for t in trials
            if t.state in (TrialState.WAITING, TrialState.RUNNING)
        }
        return len(pending - ended - {None})

    def advance(self, study: Study) -> bool:
        """Queue the best of the screened trials, where that was not done yet."""
        trials = study.get_trials(deepcopy=False)
        chosen = {number_in(t, CONTINUES) for t in trials} - {None}
        n_more = self._screen.best - len(chosen)
        ranked = [t for t in self.ranked(study) if t.number not in chosen][: max(n_more, 0)]
        for trial in ranked:
            repeat(study, trial, mark=CONTINUES)
        return bool(ranked)

    def ranked(self, study: Study) -> list[FrozenTrial]:
        """Return the screened trials, best first.

        Where nothing can be predicted, they stand by their last reported value.
        """
        trials = study.get_trials(deepcopy=False)
        screened = [
            t for t in trials if t.state == TrialState.PRUNED and number_in(t, CONTINUES) is None
        ]
        basis = [t for t in trials if t.state == TrialState.COMPLETE]
        if self._screen.study is not None:
            earlier = optuna.load_study(study_name=self._screen.study, storage=study._storage)
            basis = earlier.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) + basis
        # One study of both: the predictor judges what it was not fitted on.
        optuna_verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            together = optuna.create_study(direction=self._config.direction)
        finally:
            optuna.logging.set_verbosity(optuna_verbosity)
        for trial in basis + screened:
            together.add_trial(trial)
        place = {}
        for position, entry in enumerate(rank_trials(together)):
            if entry.number >= len(basis) and entry.predicted_value is not None:
                place[screened[entry.number - len(basis)].number] = position
        sign = -1.0 if self._config.direction == "maximize" else 1.0

        def order(trial: FrozenTrial) -> tuple[float, float]:
            last = trial.intermediate_values.get(trial.last_step or 0, math.nan)
            value = math.inf if math.isnan(last) else sign * last
            return (place.get(trial.number, math.inf), value)

        return sorted(screened, key=order)

    def total(self, study: Study) -> int:
        """Return the number of configurations and of those to be continued."""
        screened = self._config.trials - (self._screen.n_startup_trials or 0)
        return self._config.trials + min(self._screen.best, screened)

    def pruner(self) -> BasePruner:
        """Return a pruner that stops screened trials after their epochs."""
        return ScreenPruner(self._screen.steps)

    def begin(self, trial: optuna.Trial) -> None:
        """Give the trial its role, whatever role it may have inherited."""
        trial.set_user_attr(ROLE, self._role(trial))

    def _role(self, trial: optuna.Trial) -> str:
        continues = trial.user_attrs.get(CONTINUES)
        if isinstance(continues, int):
            return "continue"
        n_training = 0
        for other in trial.study.get_trials(deepcopy=False)[: trial.number]:
            # Earlier trials come first; one that failed is replaced by the next.
            if other.state in (TrialState.RUNNING, *_COUNTED):
                n_training += other.user_attrs.get(ROLE, "train") == "train"
        return "train" if n_training < (self._screen.n_startup_trials or 0) else "screen"

    def must_stop(self, trial: FrozenTrial) -> bool:
        """Whether it has gone on for an epoch more than it should."""
        is_screened = trial.user_attrs.get(ROLE) == "screen"
        return is_screened and len(trial.intermediate_values) > self._screen.steps


class ScreenPruner(BasePruner):
    """Stops the trials that are only screened.

    Args:
        steps: After so many reported epochs.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Judge whether the trial has had its epochs."""
        if trial.user_attrs.get(ROLE) != "screen" or trial.last_step is None:
            return False
        if len(trial.intermediate_values) < self._steps:
            return False
        reason = (
            f"Screened: it stops after {self._steps} epoch{'s' if self._steps > 1 else ''}, is "
            "ranked by its predicted value, and continued as a new trial if it is among the best."
        )
        write_decision(
            study,
            trial,
            Decision(step=trial.last_step, verdict="pruned", because="screen", told=reason),
        )
        return True


def strategy_of(config: CampaignConfig) -> Strategy:
    """Return the strategy that the file names."""
    if isinstance(config.strategy, Screen):
        return ScreenStrategy(config, config.strategy)
    return PruneStrategy(config)
