"""What a measurement of exponents returns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

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
        method: How they were computed: ``"textbook"``, ``"tangent"``, ``"qr"``, ``"lu"``,
            ``"images"`` or ``"closed form"``.
        layer: The layer's name within the model; ``""`` where it was given itself.
        state: What was followed, ``"hidden"`` or ``"full"``.
        leading: ``(batch,)``, the growth of the first four vectors taken together, from which a
            readout has its maximum; it depends less on the starting vectors than ``exponents[0]``.
            None in closed form.
    """

    exponents: Tensor
    std: Tensor
    per_input: Tensor
    history: Tensor | None
    state_size: int
    steps: int
    warmup: int
    method: str
    layer: str = ""
    state: str = "full"
    leading: Tensor | None = None

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

    Of a model with several recurrent layers: the largest maximum and the mean of all dimensions;
    ``layers`` has each layer's own, and what is not a mean is that of the layer with the maximum.

    Attributes:
        max: Maximum exponent, the mean over inputs: ``exponents[0]`` or, if that is larger, the
            growth of all k vectors taken together (and not below ``mean``).
        mean: Mean exponent: (1/S) times the rate of log-volume; None where it cannot be had.
        max_stderr: Standard error of ``max`` over the inputs; None for a single input. It does
            not hold the effect of the starting vectors, which decays as 1 / steps.
        mean_stderr: Standard error of ``mean`` over the inputs (it contains the sampling
            error); None for a single input. Of several layers the weighted sum of theirs, an
            upper bound, for they are driven by the same inputs.
        mean_sampling_error: Estimated standard error of ``mean`` against this batch's exact
            mean, where log-determinants were sampled in time; 0 where it is exact.
        exponents: The k leading exponents averaged over inputs, descending, ``(k,)`` float64.
        sequences: Number of input sequences that were averaged.
        steps: Averaged time steps of the longest, after the warm-up.
        warmup: Steps of the warm-up.
        state_size: Dimension of the state, of all layers together.
        state: What was followed, ``"hidden"`` or ``"full"``.
        layer: Name of the layer that the maximum belongs to; ``""`` where it was given itself.
        layers: Each layer's readout, by name; empty in these.
        spectrum: The whole spectrum, where the probe measured it.
    """

    max: float
    mean: float | None
    max_stderr: float | None
    mean_stderr: float | None
    mean_sampling_error: float | None
    exponents: Tensor
    sequences: int
    steps: int
    warmup: int
    state_size: int
    state: str = "full"
    layer: str = ""
    layers: dict[str, "LyapunovReadout"] = field(default_factory=dict)
    spectrum: LyapunovSpectrum | None = None

    @classmethod
    def from_layers(cls, layers: Sequence["LyapunovReadout"]) -> "LyapunovReadout":
        """Return the readout of a model from those of its layers."""
        leader = max(layers, key=lambda r: r.max)
        size = sum(r.state_size for r in layers)

        def weighted(values: list[float | None]) -> float | None:
            known = [v * r.state_size for v, r in zip(values, layers, strict=True) if v is not None]
            return sum(known) / size if len(known) == len(layers) else None

        exponents = torch.cat([r.exponents for r in layers]).sort(descending=True).values
        return replace(
            leader,
            mean=weighted([r.mean for r in layers]),
            mean_stderr=weighted([r.mean_stderr for r in layers]),
            mean_sampling_error=weighted([r.mean_sampling_error for r in layers]),
            exponents=exponents[: max(len(r.exponents) for r in layers)],
            state_size=size,
            layers={r.layer: r for r in layers},
        )

    @classmethod
    def from_spectrum(cls, spectrum: LyapunovSpectrum) -> "LyapunovReadout":
        """Return the readout that a whole spectrum contains."""
        whole = len(spectrum.exponents) == spectrum.state_size
        maximum, max_stderr = maximum_of(spectrum.per_input[:, 0], spectrum.leading)
        own = cls(
            max=maximum,
            mean=spectrum.mean if whole else None,
            max_stderr=max_stderr,
            mean_stderr=standard_error(spectrum.per_input.mean(1)) if whole else None,
            mean_sampling_error=0.0 if whole else None,
            exponents=spectrum.exponents,
            sequences=len(spectrum.per_input),
            steps=spectrum.steps,
            warmup=spectrum.warmup,
            state_size=spectrum.state_size,
            state=spectrum.state,
            layer=spectrum.layer,
            spectrum=spectrum,
        )
        return cls.from_layers([own])


def kaplan_yorke_dimension(exponents: Tensor, state_size: int) -> float:
    """Return the Kaplan-Yorke dimension, as :class:`LyapunovSpectrum` describes it."""
    sums = exponents.cumsum(0)
    j = int((sums >= 0).long().cumprod(0).sum())
    if j == len(sums):
        return float(state_size) if j == state_size else math.nan
    if j == 0:
        return 0.0
    return j + float(sums[j - 1] / exponents[j].abs())


def maximum_of(column: Tensor, block: Tensor | None) -> tuple[float, float | None]:
    """Return the maximum exponent and its standard error over the inputs.

    Args:
        column: The largest of the leading exponents, of each input.
        block: Growth of the leading vectors taken together, of each input.
    """
    own = column
    if block is not None:
        own = max(column, block.cpu().double(), key=lambda rates: float(rates.mean()))
    return float(own.mean()), standard_error(own)


def standard_error(values: Tensor) -> float | None:
    """Return the standard error of the mean of ``(batch,)``; None for one value or infinities."""
    if len(values) < 2 or not bool(torch.isfinite(values).all()):
        return None
    return float(values.std() / math.sqrt(len(values)))
