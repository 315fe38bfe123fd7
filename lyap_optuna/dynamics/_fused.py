"""One call of one layer of PyTorch's fused recurrent kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor


def run_kernel(
    kernel: str,
    inputs: Tensor,
    initial: Sequence[Tensor],
    weights: Sequence[Tensor],
    directions: int = 1,
    batch_sizes: Tensor | None = None,
) -> Tensor:
    """Run one layer by PyTorch's fused kernel.

    Args:
        kernel: ``"rnn_tanh"``, ``"rnn_relu"``, ``"gru"`` or ``"lstm"``.
        inputs: ``(batch, time, features)``.
        initial: State before the first step, tensors of ``(directions, batch, units)``.
        weights: Of each direction: W, U, the biases if there are any, the projection if there is
            one.
        directions: 1 or 2.
        batch_sizes: Where sequences are packed.

    Returns:
        The outputs of all steps, ``(batch, time, directions * units)``.
    """
    function = getattr(torch, kernel)
    state = list(initial) if kernel == "lstm" else initial[0]
    projected = kernel == "lstm" and initial[0].shape[-1] != initial[1].shape[-1]
    has_biases = len(weights) // directions - projected == 4
    options = (has_biases, 1, 0.0, False, directions == 2)
    if batch_sizes is None:
        outputs: Tensor = function(inputs, state, weights, *options, True)[0]
        return outputs
    packed = pack(inputs, batch_sizes)
    return padded(function(packed, batch_sizes, state, weights, *options)[0], batch_sizes)


def pack(sequences: Tensor, batch_sizes: Tensor) -> Tensor:
    """Return ``(batch, time, ...)`` as the data of a packed sequence of these batch sizes."""
    return torch.cat([sequences[:n, t] for t, n in enumerate(batch_sizes.tolist())])


def padded(data: Tensor, batch_sizes: Tensor) -> Tensor:
    """Return the data of a packed sequence as ``(batch, time, ...)``, zeros after the end."""
    sizes = batch_sizes.tolist()
    out = data.new_zeros(sizes[0], len(sizes), *data.shape[1:])
    for t, part in enumerate(data.split(sizes)):
        out[: len(part), t] = part
    return out
