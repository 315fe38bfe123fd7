"""What a measurement of exponents returns."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LyapunovSpectrum:
    """Lyapunov exponents of a driven recurrent network, in nats/step.

    Attributes:
        exponents: ``(k,)`` float64, descending, the mean over inputs.
        std: ``(k,)``, the sample standard deviation over inputs; NaN for a single input and
            where an exponent is minus infinity.
        per_input: ``(batch, k)``, the exponents of each input, columns in the order of
            ``exponents``; a row need not descend.
        history: ``(steps, k)``, running estimates after each averaged step, mean over inputs, in
            the same order, or None. Between orthonormalisations a row repeats the last estimate;
            before the first one it is NaN.
        state_size: Dimension of the state, S; k of its exponents were measured.
        steps: Averaged time steps, after the warm-up.
        warmup: Steps of the warm-up.
        method: How they were computed: ``"textbook"``, ``"tangent"``, ``"qr"`` or ``"lu"``.
    """

    exponents: Tensor
    std: Tensor
    per_input: Tensor
    history: Tensor | None
    state_size: int
    steps: int
    warmup: int
    method: str

    @property
    def max(self) -> float:
        """The maximum exponent, nats/step: above 0 the dynamics is chaotic."""
        return float(self.exponents[0])

    @property
    def mean(self) -> float:
        """The mean exponent, nats/step: the rate of change of volume, per dimension."""
        return float(self.exponents.mean())

    @property
    def variance(self) -> float:
        """The variance of the exponents over the spectrum (paper, section 3), (nats/step)^2."""
        return float(self.exponents.var(correction=0))

    @property
    def kaplan_yorke_dimension(self) -> float:
        """The Kaplan-Yorke (Lyapunov) dimension of the attractor.

        ``j + (sum of the first j exponents) / |exponent j + 1|``, j the last with a sum >= 0.

        0 where every exponent is negative, S where the sum of all S is not; NaN where only the
        leading k < S were measured and their sum is still not negative.
        """
        return kaplan_yorke_dimension(self.exponents, self.state_size)

    @property
    def entropy_rate(self) -> float:
        """The sum of the positive exponents, nats/step (Pesin's bound of the entropy rate)."""
        return float(self.exponents.clamp(min=0).sum())

    def quantiles(self, n: int = 32) -> Tensor:
        """Return n quantiles at equally spaced probabilities from 0 to 1, ascending, ``(n,)``.

        Linear interpolation between exponents; minus infinity where it meets one.

        Raises:
            ValueError: ``n`` is less than 2.
        """
        if n < 2:
            raise ValueError(f"n must be at least 2, but got {n}.")
        ascending = self.exponents.flip(0)
        position = torch.linspace(0, len(ascending) - 1, n, dtype=torch.float64, device="cpu")
        below, above = ascending[position.floor().long()], ascending[position.ceil().long()]
        weight = position - position.floor()
        return torch.where(
            (weight == 0) | (below == above), below, below * (1 - weight) + above * weight
        )

    def __repr__(self) -> str:
        return (
            f"LyapunovSpectrum(max={self.max:.4g}, mean={self.mean:.4g}, "
            f"exponents={len(self.exponents)} of {self.state_size}, "
            f"inputs={len(self.per_input)}, steps={self.steps}, warmup={self.warmup}, "
            f"method={self.method!r})"
        )


@dataclass(frozen=True, eq=False)
class LyapunovReadout:
    """The cheap pair: maximum and mean Lyapunov exponent, in nats/step.

    Attributes:
        max: Maximum exponent: the largest of the leading exponents averaged over inputs.
        mean: Mean exponent: (1/S) times the rate of log-volume.
        max_stderr: Standard error of ``max`` over the inputs; None for a single input. It does
            not hold the effect of the starting vectors, which decays as 1 / steps.
        mean_stderr: Standard error of ``mean`` over the inputs (it contains the sampling
            error); None for a single input.
        mean_sampling_error: Estimated standard error of ``mean`` against this batch's exact
            mean, where log-determinants were sampled in time; 0 where it is exact.
        exponents: The k leading exponents averaged over inputs, descending, ``(k,)`` float64.
        inputs: Number of input sequences.
        steps: Averaged time steps, after the warm-up.
        warmup: Steps of the warm-up.
        state_size: Dimension of the state.
        spectrum: The whole spectrum, where the probe measured it.
    """

    max: float
    mean: float
    max_stderr: float | None
    mean_stderr: float | None
    mean_sampling_error: float
    exponents: Tensor
    inputs: int
    steps: int
    warmup: int
    state_size: int
    spectrum: LyapunovSpectrum | None = None

    @classmethod
    def from_spectrum(cls, spectrum: LyapunovSpectrum) -> "LyapunovReadout":
        """Return the readout that a whole spectrum contains."""
        inputs = len(spectrum.per_input)
        return cls(
            max=spectrum.max,
            mean=spectrum.mean,
            max_stderr=standard_error(spectrum.per_input[:, 0]),
            mean_stderr=standard_error(spectrum.per_input.mean(1)),
            mean_sampling_error=0.0,
            exponents=spectrum.exponents,
            inputs=inputs,
            steps=spectrum.steps,
            warmup=spectrum.warmup,
            state_size=spectrum.state_size,
            spectrum=spectrum,
        )


def kaplan_yorke_dimension(exponents: Tensor, state_size: int) -> float:
    """Return the Kaplan-Yorke dimension, as :class:`LyapunovSpectrum` describes it."""
    sums = exponents.cumsum(0)
    j = int((sums >= 0).long().cumprod(0).sum())
    if j == len(sums):
        return float(state_size) if j == state_size else math.nan
    if j == 0:
        return 0.0
    return j + float(sums[j - 1] / exponents[j].abs())


def standard_error(values: Tensor) -> float | None:
    """Return the standard error of the mean of ``(batch,)``; None for one value or infinities."""
    if len(values) < 2 or not bool(torch.isfinite(values).all()):
        return None
    return float(values.std() / math.sqrt(len(values)))
