"""Which steps are warm-up, which are averaged, and where vectors are orthonormalised."""

import operator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from lyap_optuna.dynamics import NotMeasurableError


@dataclass(frozen=True)
class Schedule:
    """The time line of a measurement. Plain numbers: nothing waits for a device.

    Args:
        warmup: Steps at the front in which states and vectors evolve and nothing is averaged.
        qr_every: Orthonormalisation interval, the paper's T_ON, in steps.
        lengths: Steps of each sequence; 0 for one that is left out.
    """

    warmup: int
    qr_every: int
    lengths: tuple[int, ...]

    @property
    def steps(self) -> int:
        """Steps of the longest sequence."""
        return max(self.lengths)

    @property
    def averaged(self) -> int:
        """Averaged steps of the longest sequence."""
        return self.steps - self.warmup

    @property
    def kept(self) -> list[int]:
        """The sequences that are averaged."""
        return [i for i, length in enumerate(self.lengths) if length]

    @property
    def counts(self) -> list[int]:
        """Averaged steps of each of the ``kept`` sequences."""
        return [length - self.warmup for length in self.lengths if length]

    @cached_property
    def _ends(self) -> frozenset[int]:
        return frozenset(self.lengths) | {self.warmup}

    def select(self, inputs: slice) -> "Schedule":
        """Return the time line of some of the sequences."""
        return replace(self, lengths=self.lengths[inputs])

    def closes(self, t: int) -> bool:
        """Whether vectors are orthonormalised after step t.

        After every ``qr_every`` steps counted from the end of the warm-up, at that end, and where
        a sequence ends, so that a partial interval counts too.
        """
        return (t + 1 - self.warmup) % self.qr_every == 0 or self.ends(t)

    def ends(self, t: int) -> bool:
        """Whether step t is the last of the warm-up or of a sequence."""
        return t + 1 in self._ends


def make_schedule(
    steps: int,
    warmup: int | None = None,
    qr_every: int = 1,
    *,
    batch: int = 1,
    lengths: Tensor | None = None,
) -> Schedule:
    """Validate and complete a schedule.

    The warm-up follows from the longest sequence; one with fewer averaged steps than warm-up
    steps is left out.

    Args:
        steps: Steps of every sequence, where there are no ``lengths``.
        warmup: Steps of warm-up; ``min(20, T // 5)`` of the longest sequence where it is None.
        qr_every: Orthonormalisation interval.
        batch: Number of sequences.
        lengths: Steps of each, ``(batch,)``.

    Raises:
        ValueError: The warm-up is negative or leaves no steps, or the interval is not positive.
        NotMeasurableError: No sequence is left.
    """
    own = (steps,) * batch if lengths is None else tuple(int(n) for n in lengths.tolist())
    longest = max(own)
    warmup = min(20, longest // 5) if warmup is None else integer("warmup", warmup)
    if warmup < 0:
        raise ValueError(f"warmup must not be negative, but got {warmup}.")
    if warmup >= longest:
        raise ValueError(
            f"warmup={warmup} leaves no steps to average: the inputs have {longest}. Pass a "
            "smaller warmup or longer inputs."
        )
    qr_every = integer("qr_every", qr_every)
    if qr_every < 1:
        raise ValueError(f"qr_every must be at least 1, but got {qr_every}.")
    if lengths is not None:
        own = tuple(n if n - warmup >= max(1, warmup) else 0 for n in own)
        if not any(own):
            raise NotMeasurableError(
                f"No sequence has as many steps after the warm-up as the warm-up of {warmup} has; "
                f"the longest has {longest} in all. Pass a smaller warmup or longer sequences."
            )
    return Schedule(warmup, qr_every, own)


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
