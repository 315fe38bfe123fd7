"""The contract of a kind of evidence, and the view of a trial that it reads.

A *kind of evidence* is one thing that may predict a trial's final value: the loss so far, the
Lyapunov exponents, their displacement since before training, the hyperparameters. It turns a
trial at a step into named features, and nothing else. What the features are worth is not its
business: the predictor finds out, from the COMPLETE trials of the study.

To add a kind, write one file with a subclass of :class:`Evidence` and add one line to the
registry in ``evidence/__init__.py``. The rules:

* ``name`` is what people type in ``evidence=`` and read in decisions and tables.
* ``features(trial, step)`` looks only at what was known at ``step``: reports and readouts at
  later steps of the same trial do not exist. ``step`` is None for a trial that has reported
  nothing; then only what is known before training counts. How the trial ended is not known at
  any step: its state, value and end, whether it was cut short, and whether its constraints hold.
* A feature is a float or a string. A string is a category (one-hot encoded by
  :mod:`lyap_optuna.prediction._table`). What is missing is left out or NaN, never zero. Infinity
  is allowed and means larger than every finite value: features are ranked before they are used,
  so that only their order counts, and neither unit nor scale does.
* Losses come *oriented*: smaller is better in both directions of the study, and a reported NaN
  or infinity is plus infinity, worse than every finite value.
* It does not raise on any trial that Optuna can store, and does not depend on other trials.
  Features that are constant over the study are dropped by the predictor.
"""

import abc
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna.records import (
    ReadoutRecord,
    baseline_step,
    counting_of,
    pruned_at,
    read_readouts,
    report_order,
)

FloatArray = npt.NDArray[np.float64]
Feature = float | str


def oriented(value: float, sign: int) -> float:
    """Return ``value`` so that smaller is better; NaN and infinities are worst."""
    return sign * value if math.isfinite(value) else math.inf


def is_feasible(trial: FrozenTrial) -> bool | None:
    """Whether the recorded constraints hold; None where none is recorded."""
    constraints = trial.constraints
    return all(c <= 0.0 for c in constraints.values()) if constraints else None


@dataclass(frozen=True, eq=False)
class TrialView:
    """What the evidence may read of a trial, prepared once.

    Args:
        number: Trial number.
        state: Trial state at the time of reading.
        value: Oriented final value of a COMPLETE trial that was not cut short; None for others.
        steps: Reported steps, ascending, shape (n_reports,).
        losses: Oriented reported values, shape (n_reports,).
        best: Running minimum of ``losses``, shape (n_reports,).
        readouts: Readouts in training, by ascending step; empty before the first report.
        baseline: The readout before training; None where there is none.
        params: Hyperparameters.
        distributions: Their distributions.
        feasible: Whether the recorded constraints hold; None where none is recorded.
        completed: When it finished; None while it runs.
        reported: The steps in the order in which they were reported.
        cut_at: Where it is COMPLETE although a callback pruned it, the step at which it did: a
            library caught the exception. Its value is no final one.
        counting: What its steps count.
    """

    number: int
    state: TrialState
    value: float | None
    steps: npt.NDArray[np.int64]
    losses: FloatArray
    best: FloatArray
    readouts: Mapping[int, ReadoutRecord]
    baseline: ReadoutRecord | None
    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    feasible: bool | None = None
    completed: datetime | None = field(default=None)
    reported: tuple[int, ...] = ()
    cut_at: int | None = None
    counting: str = "epoch"

    @classmethod
    def of(cls, trial: FrozenTrial, sign: int, ordered: bool = True) -> "TrialView":
        """Read ``trial``.

        Args:
            trial: Any trial.
            sign: 1 where the study minimises and -1 where it maximises.
            ordered: Whether it comes from where the order of its reports is kept.
        """
        steps = np.array(sorted(trial.intermediate_values), dtype=np.int64)
        losses = np.array(
            [oriented(trial.intermediate_values[int(s)], sign) for s in steps], dtype=np.float64
        )
        readouts = read_readouts(trial)
        before = baseline_step(trial, readouts)
        complete = trial.state == TrialState.COMPLETE and trial.values is not None
        cut_at = pruned_at(trial, ordered) if complete else None
        return cls(
            number=trial.number,
            state=trial.state,
            value=oriented(trial.values[0], sign) if complete and cut_at is None else None,
            steps=steps,
            losses=losses,
            best=np.minimum.accumulate(losses) if losses.size else losses,
            readouts={
                s: r for s, r in readouts.items() if steps.size and (before is None or s > before)
            },
            baseline=None if before is None else readouts[before],
            params=trial.params,
            distributions=trial.distributions,
            feasible=is_feasible(trial),
            completed=trial.datetime_complete,
            reported=report_order(trial, ordered),
            cut_at=cut_at,
            counting=counting_of(trial),
        )

    @property
    def in_order(self) -> bool:
        """Whether it reported at ascending steps."""
        return self.reported == tuple(self.steps.tolist())

    def counted(self) -> "TrialView":
        """Return the view with reports counted, 0, 1, 2, ..., in place of their steps.

        ``reported`` still says which step each of them was.
        """
        at = {step: i for i, step in enumerate(self.reported)}
        losses = self.losses[np.searchsorted(self.steps, self.reported)]
        return replace(
            self,
            steps=np.arange(len(losses)),
            losses=losses,
            best=np.minimum.accumulate(losses),
            readouts=dict(sorted((at[s], r) for s, r in self.readouts.items() if s in at)),
        )

    @property
    def measured_at(self) -> int | None:
        """The step of its latest readout in training; None without one."""
        last = max(self.readouts, default=None)
        if self.in_order:
            return last
        return next((s for s in reversed(self.reported) if s in self.readouts), last)

    @functools.cached_property
    def measured_state(self) -> str | None:
        """What its latest readout followed, ``"hidden"`` or ``"full"``; None without readouts."""
        latest = self.readouts[max(self.readouts)] if self.readouts else self.baseline
        return None if latest is None else latest.state

    def baseline_of(self, readout: ReadoutRecord) -> ReadoutRecord | None:
        """Return what was measured before the network of ``readout`` was trained, or None."""
        return readout.baseline or self.baseline

    def counted_by(self, counting: str) -> "TrialView":
        """Return the view without reports and readouts in training where its steps count others."""
        if self.counting == counting:
            return self
        nothing = self.losses[:0]
        return replace(
            self, steps=self.steps[:0], losses=nothing, best=nothing, readouts={}, reported=()
        )

    def with_readouts_of(self, state: str | None) -> "TrialView":
        """Return the view with the readouts of one state only; all of them for None."""
        if state is None or self._measured_states <= {state}:
            return self
        before = self.baseline
        return replace(
            self,
            readouts={s: r for s, r in self.readouts.items() if r.state == state},
            baseline=before if before is not None and before.state == state else None,
        )

    @functools.cached_property
    def _measured_states(self) -> set[str]:
        before = set() if self.baseline is None else {self.baseline.state}
        return before | {readout.state for readout in self.readouts.values()}

    @property
    def diverged(self) -> bool:
        """Whether it reported NaN or infinity."""
        return bool(np.isinf(self.losses).any())

    def reached(self, step: int | None) -> bool:
        """Whether it was training at ``step``: it reported there or before, and there or after."""
        if step is None:
            return True
        return bool(self.steps.size and self.steps[0] <= step <= self.steps[-1])

    def reports(self, step: int | None) -> int:
        """Return the number of reports up to ``step``."""
        return 0 if step is None else int(np.searchsorted(self.steps, step, side="right"))

    def readout(self, step: int | None) -> ReadoutRecord | None:
        """Return the latest readout in training up to ``step``, or None."""
        if step is None:
            return None
        latest = max((s for s in self.readouts if s <= step), default=None)
        return None if latest is None else self.readouts[latest]


class Evidence(abc.ABC):
    """A kind of evidence: a trial at a step, turned into named features."""

    name: str
    """What people type and read."""

    @abc.abstractmethod
    def features(self, trial: TrialView, step: int | None) -> dict[str, Feature]:
        """Return the features of ``trial`` as known at ``step``; empty where there are none."""
