"""What a search may spend and has spent, and the bar that shows it."""

import contextlib
import math
import time
from typing import Any

from optuna.study import Study


class Budget:
    """Trials, steps and time.

    Args:
        n_trials: Trials after which no new one begins.
        n_steps: Steps after which trials rest.
        deadline: When they do, by :func:`time.perf_counter`.
    """

    def __init__(
        self, n_trials: int | None = None, n_steps: int | None = None, deadline: float = math.inf
    ) -> None:
        self.n_trials, self.n_steps, self.deadline = n_trials, n_steps, deadline
        self.begun = 0
        """Trials that the search has begun."""
        self.steps = 0
        """Steps of all of them together."""

    def allow(self, begin: bool, n_steps: int | None) -> None:
        """Allow so many steps from now on, and a new trial only where ``begin``."""
        self.n_trials = None if begin else self.begun
        self.n_steps = None if n_steps is None else self.steps + n_steps

    def may_begin(self) -> bool:
        """Whether a new trial may begin."""
        return self.n_trials is None or self.begun < self.n_trials

    def is_spent(self) -> bool:
        """Whether steps or time are spent."""
        spent = self.n_steps is not None and self.steps >= self.n_steps
        return spent or time.perf_counter() >= self.deadline

    def ends(self) -> bool:
        """Whether steps or time can be spent at all."""
        return self.n_steps is not None or math.isfinite(self.deadline)


class Progress:
    """Steps done of the budget, time left, the best value, what runs and how many trials rest.

    Args:
        budget: The budget.
        show: Whether there is a bar.
    """

    def __init__(self, budget: Budget, show: bool) -> None:
        self._budget = budget
        self._bar: Any = None
        self._best = ""
        if show:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=budget.n_steps, unit="step")

    def update(self, new: int, running: int | None, resting: int) -> None:
        """Show ``new`` steps more, and what runs: a trial number, None between two trials."""
        if self._bar is None:
            return
        budget = self._budget
        parts = [self._best] if self._best else []
        if budget.n_trials is not None:
            parts.append(f"{budget.begun}/{budget.n_trials} trials begun")
        if running is not None:
            parts.append(f"trial {running} runs")
        parts.append(f"{resting} rest")
        if math.isfinite(budget.deadline):
            left = max(budget.deadline - time.perf_counter(), 0.0)
            parts.append(f"{self._bar.format_interval(left)} left at most")
        self._bar.set_postfix_str(", ".join(parts), refresh=False)
        self._bar.update(new)

    def ended(self, study: Study) -> None:
        """Look for the best value: a trial has ended."""
        if self._bar is not None:
            with contextlib.suppress(ValueError):  # no trial is COMPLETE
                self._best = f"best {study.best_value:.4g}"

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
