"""Which steps are warm-up, which are averaged, and where vectors are orthonormalised."""

import operator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Schedule:
    """The time line of a measurement.

    Args:
        steps: All time steps, T.
        warmup: Steps at the front in which states and vectors evolve and nothing is averaged.
        qr_every: Orthonormalisation interval, the paper's T_ON, in steps.
    """

    steps: int
    warmup: int
    qr_every: int = 1

    @property
    def averaged(self) -> int:
        """Steps that are averaged."""
        return self.steps - self.warmup

    def closes(self, t: int) -> bool:
        """Whether vectors are orthonormalised after step t.

        After every ``qr_every`` steps counted from the end of the warm-up, at that end, and at
        the last step, so that a partial interval counts too.
        """
        return (t + 1 - self.warmup) % self.qr_every == 0 or self.ends(t)

    def ends(self, t: int) -> bool:
        """Whether step t is the last of the warm-up or of all."""
        return t + 1 in (self.warmup, self.steps)

    def counts(self, t: int) -> bool:
        """Whether step t is averaged."""
        return t >= self.warmup


def make_schedule(steps: int, warmup: int | None, qr_every: int) -> Schedule:
    """Validate and complete a schedule.

    Raises:
        ValueError: The warm-up is negative or leaves no steps, or the interval is not positive.
    """
    warmup = min(20, steps // 5) if warmup is None else integer("warmup", warmup)
    if warmup < 0:
        raise ValueError(f"warmup must not be negative, but got {warmup}.")
    if warmup >= steps:
        raise ValueError(
            f"warmup={warmup} leaves no steps to average: the inputs have {steps}. Pass a smaller "
            "warmup or longer inputs."
        )
    qr_every = integer("qr_every", qr_every)
    if qr_every < 1:
        raise ValueError(f"qr_every must be at least 1, but got {qr_every}.")
    return Schedule(steps, warmup, qr_every)


def integer(name: str, value: Any) -> int:
    """Return ``value`` as an int.

    Raises:
        ValueError: It is not a whole number.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, but got {value!r}.") from None
