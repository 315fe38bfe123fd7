"""What the four wide tasks share: one space of 14 hyperparameters, such as people search.

``cell``, ``layers``, ``units``, ``embedding``, ``initialisation``, ``gain``, ``input_scale``,
``gate_bias`` (of gated cells alone, so that trials share it only in part), ``dropout``, ``lr``,
``optimizer``, ``weight_decay``, ``batch_size`` and ``clip``. The same seed draws the same
configurations for all four.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
import torch
from torch import nn

from studies.recordings.tasks._task import Run, SequenceModel, step, suggest_optimizer

N_TRIALS = 90
"""Trials of a wide study: more than the 80 of a narrow one, for there is more to learn."""

CELLS = ("tanh", "relu", "GRU", "LSTM")

UNITS = (16, 48)
EMBEDDING = (4, 32)
"""Sizes that train on one core in seconds, log-uniform: what counts is the factor."""

GAIN = (0.3, 3.0)
"""Factor of the recurrent weights. At 1 a normal or orthogonal matrix neither shrinks nor
stretches a vector on average; a factor of three to either side is far off the edge."""

INPUT_SCALE = (0.1, 3.0)
"""Factor of PyTorch's own input weights: from inputs that a state hardly sees to saturation."""

GATE_BIAS = (0.0, 4.0)
"""Added to the gate that holds on to the state; at 4 it holds for about 50 steps."""

DROPOUT = (0.0, 0.5)
LR = (3e-4, 3e-2)
"""A factor of ten to either side of 3e-3, from too slow for so few epochs to divergence."""

BATCH_SIZE = (16, 64)
"""An epoch has the same number of sequences whatever the batch: small ones take more steps."""

CLIP = (0.1, 10.0)
"""Largest norm of the gradient, from nearly always cut to hardly ever."""

WEIGHT_DECAY = (1e-7, 1e-3)
"""From nothing to what keeps small weights small."""


def _each_gate(draw: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], None]:
    def draw_gates(weight: torch.Tensor) -> None:
        for gate in weight.split(weight.shape[1]):
            draw(gate)

    return draw_gates


def _uniform(weight: torch.Tensor) -> None:
    weight.uniform_(-(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5)


def _normal(weight: torch.Tensor) -> None:
    weight.normal_(0.0, weight.shape[1] ** -0.5)


INITIALISATIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    "uniform": _uniform,
    "xavier": nn.init.xavier_uniform_,
    "normal": _normal,
    "orthogonal": _each_gate(nn.init.orthogonal_),
    "identity": _each_gate(nn.init.eye_),
}
"""How recurrent weights ``(gates * units, units)`` are drawn, before ``gain``: as PyTorch does;
Glorot and Bengio (2010), of the whole matrix; normal with the circular law's radius 1; orthogonal
(Saxe, McClelland and Ganguli, 2014) and the identity (Le, Jaitly and Hinton, 2015), gate by gate.
"""


@dataclass(frozen=True)
class Sequences:
    """What a wide task trains on.

    Args:
        draw: Draws so many inputs ``(n, time, features)`` and their targets.
        valid: Inputs and targets of the validation set.
        outputs: Size of an answer.
        loss: Of answers ``(n, steps, outputs)``, with targets.
        epoch: Sequences of an epoch.
        last: How many steps, counted from the end, are answered; all for None.
    """

    draw: Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]
    valid: tuple[torch.Tensor, torch.Tensor]
    outputs: int
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    epoch: int
    last: int | None = None


def cross_entropy(answers: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the mean over all answers ``(n, steps, outputs)``, in nats."""
    return nn.functional.cross_entropy(answers.flatten(0, 1), classes.flatten())


def make_layer(cell: str, inputs: int, units: int, layers: int) -> nn.RNNBase:
    """Return PyTorch's own layer, which runs its fused kernels."""
    if cell in ("tanh", "relu"):
        return nn.RNN(inputs, units, layers, nonlinearity=cell, batch_first=True)
    gated = nn.GRU if cell == "GRU" else nn.LSTM
    return gated(inputs, units, layers, batch_first=True)


@torch.no_grad()
def initialise_(
    layer: nn.RNNBase, scheme: str, gain: float, input_scale: float, gate_bias: float | None
) -> None:
    """Draw recurrent weights by ``scheme``, and scale them and the input weights, layer by layer.

    ``gate_bias`` is added to the gate that holds on to the state: forget (of i, f, g, o) and
    update (of r, z, n) both come second. None for cells without gates.
    """
    n = layer.hidden_size
    for i in range(layer.num_layers):
        recurrent = layer.get_parameter(f"weight_hh_l{i}")
        INITIALISATIONS[scheme](recurrent)
        recurrent.mul_(gain)
        layer.get_parameter(f"weight_ih_l{i}").mul_(input_scale)
        if gate_bias is not None:
            layer.get_parameter(f"bias_hh_l{i}")[n : 2 * n] += gate_bias


def suggest_model(
    trial: optuna.trial.BaseTrial, features: int, outputs: int, last: int | None
) -> nn.Sequential:
    """Suggest the first nine hyperparameters and return the network.

    Inputs reach the recurrent layer through a linear map, which for one-hot ones is an embedding.
    """
    cell = trial.suggest_categorical("cell", CELLS)
    layers = trial.suggest_int("layers", 1, 2)
    units = trial.suggest_int("units", *UNITS, log=True)
    embedding = trial.suggest_int("embedding", *EMBEDDING, log=True)
    scheme = trial.suggest_categorical("initialisation", tuple(INITIALISATIONS))
    gain = trial.suggest_float("gain", *GAIN, log=True)
    input_scale = trial.suggest_float("input_scale", *INPUT_SCALE, log=True)
    gated = cell in ("GRU", "LSTM")
    gate_bias = trial.suggest_float("gate_bias", *GATE_BIAS) if gated else None
    dropout = trial.suggest_float("dropout", *DROPOUT)
    layer = make_layer(cell, embedding, units, layers)
    initialise_(layer, scheme, gain, input_scale, gate_bias)
    reader = SequenceModel(layer, outputs, last=last, dropout=dropout)
    return nn.Sequential(nn.Linear(features, embedding), reader)


def start_on(trial: optuna.trial.BaseTrial, sequences: Sequences) -> Run:
    """Suggest all hyperparameters and return the network, ready to train on ``sequences``."""
    valid_x, valid_y = sequences.valid
    model = suggest_model(trial, valid_x.shape[2], sequences.outputs, sequences.last)
    lr = trial.suggest_float("lr", *LR, log=True)
    optimizer = suggest_optimizer(trial, model, lr, ("adam", "rmsprop", "sgd"), WEIGHT_DECAY)
    batch_size = trial.suggest_int("batch_size", *BATCH_SIZE, log=True)
    clip = trial.suggest_float("clip", *CLIP, log=True)
    generator = torch.Generator().manual_seed(1 + trial.number)

    def train_epoch() -> None:
        model.train()
        for _ in range(sequences.epoch // batch_size):
            x, y = sequences.draw(batch_size, generator)
            step(optimizer, sequences.loss(model(x), y), clip)

    @torch.no_grad()
    def validate() -> float:
        model.eval()
        return sequences.loss(model(valid_x), valid_y).item()

    return Run(model, valid_x[:10], train_epoch, validate)
