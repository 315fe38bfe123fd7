"""What is left to do, and how a worker does it. Here: ``prune``, the ordinary way."""

import abc
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna.campaign._config import CampaignConfig, make_pruner

if TYPE_CHECKING:
    from lyap_optuna.campaign._worker import Result, Worker

COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Turn:
    """What a worker is to do next.

    Args:
        task: What marks the trial that it runs.
        begin: Whether it may begin a trial.
        n_steps: After how many reports it has to end; None for as many as it takes.
    """

    task: str = field(default_factory=lambda: uuid.uuid4().hex)
    begin: bool = True
    n_steps: int | None = None


class Session(abc.ABC):
    """How one worker runs trials, turn by turn."""

    @abc.abstractmethod
    def run(self, turn: Turn) -> bool:
        """Run a trial; whether there was one to run."""

    def close(self, interrupted: bool) -> None:  # noqa: B027
        """End what is left, because the campaign is done or, ``interrupted``, was stopped."""


class Strategy(abc.ABC):
    """How a campaign goes about its trials. The parent asks what is left; workers run turns."""

    exhausted = False
    """Whether the sampler has no more to suggest, though trials that rest may go on."""

    @abc.abstractmethod
    def missing(self, trials: Sequence[FrozenTrial]) -> int:
        """Return how many trials are still to end as COMPLETE or PRUNED, those running included."""

    @abc.abstractmethod
    def turn(
        self, trials: Sequence[FrozenTrial], running: Sequence[Turn], alive: int
    ) -> Turn | None:
        """Return what the next idle worker is to do; None where there is nothing now.

        Args:
            trials: The trials of the study.
            running: The turns that run.
            alive: Workers that there are.
        """

    def took(self, turn: Turn, result: "Result") -> None:  # noqa: B027
        """Take note of how a turn ended."""

    @abc.abstractmethod
    def session(self, worker: "Worker") -> Session:
        """Return how a worker runs its turns."""

    def has_checkpoint(self, number: int) -> bool:
        """Return whether a trial that rested can go on in another process."""
        return False


class PruneStrategy(Strategy):
    """Every configuration is trained until it ends or the pruner gives it up.

    Args:
        config: What the campaign file says.
    """

    def __init__(self, config: CampaignConfig) -> None:
        self._config = config

    def missing(self, trials: Sequence[FrozenTrial]) -> int:
        """Return the total less the COMPLETE and PRUNED trials."""
        return max(self._config.trials - sum(t.state in COUNTED for t in trials), 0)

    def turn(
        self, trials: Sequence[FrozenTrial], running: Sequence[Turn], alive: int
    ) -> Turn | None:
        """Return a trial more, up to the total."""
        return Turn() if self.missing(trials) > len(running) else None

    def session(self, worker: "Worker") -> Session:
        """Return a session of ``study.optimize`` with the pruner that the file names."""
        worker.study.pruner = make_pruner(self._config.pruner)
        return _Optimize(worker)


class _Failed(Exception):
    """An objective's failure: what it raised may hold a password in its traceback."""


class _Optimize(Session):
    def __init__(self, worker: "Worker") -> None:
        self._worker = worker

    def run(self, turn: Turn) -> bool:
        begun = False

        def objective(trial: optuna.Trial) -> Any:
            nonlocal begun
            begun = True
            try:
                return self._worker.objective(self._worker.begin(trial))
            except optuna.TrialPruned:
                raise
            except BaseException as error:
                self._worker.failed(trial, error)
                raise _Failed from None

        self._worker.study.optimize(
            objective, n_trials=1, catch=(_Failed,), callbacks=[self._ended]
        )
        return begun

    def _ended(self, study: Study, trial: FrozenTrial) -> None:
        self._worker.ended(trial, otherwise="its value is not a finite number")
