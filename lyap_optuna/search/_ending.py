"""How a trial ends: what its objective did, as Optuna takes it."""

import math
import reprlib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import torch
from optuna.trial import Trial, TrialState

from lyap_optuna._logging import get_logger
from lyap_optuna.search._choice import Begun
from lyap_optuna.search._drivers import Outcome, Raised, Returned

_logger = get_logger(__name__)

_UNTRAINED = "it rested without a report"
_ELSEWHERE = "it rested, and is to go on from its checkpoint"
_ALLOCATORS = ("DefaultCPUAllocator", "MPS backend out of memory")  # in plain RuntimeErrors


@dataclass(frozen=True)
class Ending:
    """How a trial ends.

    Args:
        state: COMPLETE, PRUNED or FAIL.
        values: Its final value; None where it has none.
        message: Why it fails.
        error: What its objective raised.
    """

    state: TrialState
    values: list[float] | None = None
    message: str = ""
    error: BaseException | None = None

    @property
    def failure(self) -> BaseException | None:
        """What is wrong with the objective, as an exception."""
        if self.state != TrialState.FAIL or self.message in (_UNTRAINED, _ELSEWHERE):
            return None
        return self.error or ValueError(self.message)

    @property
    def is_for_good(self) -> bool:
        """Whether a trial that rested is given up, neither COMPLETE nor to go on elsewhere."""
        return self.error is None and self.values is None and self.message != _ELSEWHERE


def ending_of(
    outcome: Outcome, begun: Begun, rested: bool, goes_elsewhere: Callable[[Trial], bool]
) -> Ending:
    """Return how a trial ends.

    Args:
        outcome: What its objective did last.
        begun: The trial.
        rested: Whether the search ends it while it rests.
        goes_elsewhere: Whether a trial that does is to be begun again.
    """
    if isinstance(outcome, Returned) and not (rested and outcome.value is None):
        values, message = _values_of(outcome.value)
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        return Ending(state, values, message)
    if isinstance(outcome, Raised) and not isinstance(outcome.error, optuna.TrialPruned):
        return Ending(TrialState.FAIL, message=repr(outcome.error), error=outcome.error)
    if rested and goes_elsewhere(begun.trial):
        return Ending(TrialState.FAIL, message=_ELSEWHERE)
    if rested and not begun.frozen.intermediate_values:
        return Ending(TrialState.FAIL, message=_UNTRAINED)
    return Ending(TrialState.PRUNED)


def _values_of(value: Any) -> tuple[list[float] | None, str]:
    """Return the final value that an objective returned as Optuna takes it, or what is wrong."""
    try:
        several = isinstance(value, Sequence) and not isinstance(value, str)
        numbers = [float(item) for item in (value if several else [value])]
    except Exception:  # whatever the objective has returned: an int may overflow
        return None, f"the value {_shown(value)} could not be cast to float"
    if len(numbers) != 1:
        return None, f"the study has one objective, but {len(numbers)} values were returned"
    if math.isnan(numbers[0]):
        return None, "the value nan is not acceptable"
    return numbers, ""


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except Exception:
        return f"of type {type(value).__name__}"


def log(begun: Begun, ending: Ending) -> None:
    """Log how a trial has ended, as ``study.optimize`` does."""
    number, params = begun.trial.number, begun.frozen.params
    if ending.values is not None:
        value = ending.values[0]
        _logger.info(f"Trial {number} finished with value: {value} and parameters: {params}.")
    elif ending.state == TrialState.PRUNED:
        _logger.info(f"Trial {number} pruned after {begun.steps} steps.")
    elif ending.failure is None:
        _logger.info(f"Trial {number} ended: {ending.message}.")
    else:
        failed = f"Trial {number} failed with parameters: {params} because: {ending.message}."
        _logger.warning(failed, exc_info=ending.error)


def is_out_of_memory(outcome: Outcome) -> bool:
    """Whether an objective failed for want of memory, of the machine or of a device."""
    if not isinstance(outcome, Raised):
        return False
    if isinstance(outcome.error, MemoryError | torch.OutOfMemoryError):
        return True
    said = str(outcome.error) if isinstance(outcome.error, RuntimeError) else ""
    return any(name in said for name in _ALLOCATORS)


def release(outcome: Outcome) -> None:
    """Let go of what the frames of an exception hold: models, optimizers, batches."""
    error: BaseException | None = outcome.error if isinstance(outcome, Raised) else None
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
