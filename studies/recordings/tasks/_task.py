"""What a recorded task is, and what several of them share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch
from torch import nn


@dataclass(frozen=True)
class Run:
    """One network in training.

    Args:
        model: The network, with one recurrent module, before its first update.
        probe_inputs: What its ``forward`` takes, ten sequences.
        train_epoch: Trains for one epoch.
        validate: Returns the loss on the validation set.
    """

    model: nn.Module
    probe_inputs: torch.Tensor
    train_epoch: Callable[[], None]
    validate: Callable[[], float]


@dataclass(frozen=True)
class Task:
    """A task to record.

    Args:
        name: Its name, also of the file.
        kind: ``"memory"`` where the loss rests on a plateau before it falls, else ``"easy"``.
        description: One line.
        epochs: Epochs of a trial.
        states: Which exponents are measured: an LSTM has ``"hidden"`` and ``"full"`` ones.
        start: Takes a trial and a folder with data, suggests the hyperparameters, and returns the
            network, ready to train.
        trials: Trials of the recording.
        needs_data: Whether it takes data from the folder, or else downloads them.
    """

    name: str
    kind: str
    description: str
    epochs: int
    states: tuple[str, ...]
    start: Callable[[optuna.trial.BaseTrial, Path | None], Run]
    trials: int = 80
    needs_data: bool = False


class SequenceModel(nn.Module):
    """A recurrent layer and a linear readout of its hidden state.

    Args:
        recurrent: The layer, ``batch_first``.
        outputs: Size of the output.
        last: How many steps, counted from the end, are read out; all for None.
        dropout: Of what is read out.
    """

    def __init__(
        self,
        recurrent: nn.RNNBase,
        outputs: int,
        *,
        last: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(recurrent.hidden_size, outputs)
        self._last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, steps read out, outputs)`` for ``x (batch, time, features)``."""
        hidden, _ = self.recurrent(x)
        if self._last is not None:
            hidden = hidden[:, -self._last :]
        read: torch.Tensor = self.output(self.dropout(hidden))
        return read


def uniform_(layer: nn.RNNBase, scale: float, gate_bias: float = 0.0) -> None:
    """Draw all parameters of ``layer`` from plus or minus ``scale``.

    ``gate_bias`` is added to the gate that holds on to the state: forget (of i, f, g, o) and
    update (of r, z, n) both come second.
    """
    n = layer.hidden_size
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-scale, scale)
        if not isinstance(layer, nn.RNN):
            layer.get_parameter("bias_hh_l0")[n : 2 * n] += gate_bias


def suggest_optimizer(
    trial: optuna.trial.BaseTrial,
    model: nn.Module,
    lr: float,
    names: tuple[str, ...],
    weight_decay: tuple[float, float] = (1e-9, 1e-6),
) -> torch.optim.Optimizer:
    """Suggest which optimizer, and a weight decay: by default one too small to matter."""
    name = trial.suggest_categorical("optimizer", names)
    decay = trial.suggest_float("weight_decay", *weight_decay, log=True)
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=decay)
    kind = torch.optim.Adam if name == "adam" else torch.optim.RMSprop
    return kind(model.parameters(), lr=lr, weight_decay=decay)


def step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, clip: float | None = None) -> None:
    """Take one step of ``optimizer`` down the gradient of ``loss``."""
    optimizer.zero_grad()
    loss.backward()
    if clip is not None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()


def fresh_sequences(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    sequences: Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    batches: int,
    batch_size: int,
    clip: float,
    n_valid: int,
    seed: int,
) -> Run:
    """Return a run on sequences that are drawn anew for every batch.

    Args:
        model: The network.
        optimizer: Of its parameters.
        sequences: Draws so many inputs and targets.
        loss: Of the model's answer, with the targets.
        batches: Batches of an epoch.
        batch_size: Sequences of a batch.
        clip: Largest norm of the gradient.
        n_valid: Sequences of the validation set, the same for all trials.
        seed: Of the batches.
    """
    valid_x, valid_y = sequences(n_valid, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1 + seed)

    def train_epoch() -> None:
        for _ in range(batches):
            x, y = sequences(batch_size, generator)
            step(optimizer, loss(model(x), y), clip)

    @torch.no_grad()
    def validate() -> float:
        return loss(model(valid_x), valid_y).item()

    return Run(model, valid_x[:10], train_epoch, validate)


def predict_next_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: torch.Tensor,
    valid: torch.Tensor,
    *,
    batches: int,
    batch_size: int,
    noise: float,
    seed: int,
) -> Run:
    """Return a run that predicts each step of a series from those before it.

    Args:
        model: The network.
        optimizer: Of its parameters.
        train: Sequences ``(n, steps + 1, features)``.
        valid: The same, held out.
        batches: Batches of an epoch.
        batch_size: Sequences of a batch.
        noise: Standard deviation of what is added to a batch.
        seed: Of the batches and the noise.
    """
    generator = torch.Generator().manual_seed(seed)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(model(x[:, :-1]), x[:, 1:])

    def train_epoch() -> None:
        for _ in range(batches):
            rows = torch.randint(0, len(train), (batch_size,), generator=generator)
            x = train[rows]
            step(optimizer, loss(x + noise * torch.randn(x.shape, generator=generator)))

    @torch.no_grad()
    def validate() -> float:
        return loss(valid).item()

    return Run(model, valid[:10, :-1], train_epoch, validate)
