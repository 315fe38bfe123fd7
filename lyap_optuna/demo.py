"""The demo's task, which is also the model example: how a training loop gains its three lines.

Handwritten digits are shown one row of 8 pixels per step, then come 56 blank steps, and the answer
is due at the last. The network must remember for 56 steps what it saw, so the loss stays at
chance, ln 10 = 2.303, until the dynamics can carry a signal that far; many configurations never
get there. The loss on the plateau says nothing about which will.
"""

from dataclasses import dataclass

import numpy as np
import optuna
import torch
from torch import nn

import lyap_optuna as lyap

BLANK_STEPS = 56
BATCH_SIZE = 64
N_VALIDATION = 397
N_PROBED = 8
"""Input sequences that a readout averages over."""


@dataclass(frozen=True)
class Digits:
    """The 1,797 images as sequences, split once and for all.

    Args:
        train_x: ``(images, steps, pixels)``, in [0, 1], the blank steps 0.
        train_y: ``(images,)``, the digits 0 to 9.
        valid_x: Like ``train_x``.
        valid_y: Like ``train_y``.
    """

    train_x: torch.Tensor
    train_y: torch.Tensor
    valid_x: torch.Tensor
    valid_y: torch.Tensor


def load_digits(blank_steps: int = BLANK_STEPS) -> Digits:
    """Load the images that scikit-learn ships; nothing is downloaded.

    Example:
        >>> digits = load_digits()
        >>> tuple(digits.train_x.shape), tuple(digits.valid_x.shape)
        ((1400, 64, 8), (397, 64, 8))
    """
    from sklearn import datasets

    bunch = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    rows = torch.as_tensor(bunch.images[order] / 16.0, dtype=torch.float32)
    x = torch.cat([rows, torch.zeros(len(rows), blank_steps, rows.shape[2])], dim=1)
    y = torch.as_tensor(bunch.target[order])
    return Digits(x[N_VALIDATION:], y[N_VALIDATION:], x[:N_VALIDATION], y[:N_VALIDATION])


class Classifier(nn.Module):
    """One recurrent layer, read out at the last step.

    Args:
        cell: ``"GRU"`` or ``"LSTM"``.
        units: Size of the hidden state.
        weight_scale: Weights and biases start uniform in plus or minus this.
        gate_bias: Added to the bias of the gate that holds on to the state: the LSTM's forget
            gate, the GRU's update gate.
        dropout: Of the last hidden state.
    """

    def __init__(
        self, cell: str, units: int, weight_scale: float, gate_bias: float, dropout: float
    ) -> None:
        super().__init__()
        self.recurrent = {"GRU": nn.GRU, "LSTM": nn.LSTM}[cell](8, units, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(units, 10)
        with torch.no_grad():
            for weight in self.recurrent.parameters():
                weight.uniform_(-weight_scale, weight_scale)
            # Both the forget gate (of i, f, g, o) and the update gate (of r, z, n) come second.
            self.recurrent.bias_hh_l0[units : 2 * units] += gate_bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits ``(images, 10)`` for ``x (images, steps, 8)``."""
        hidden, _ = self.recurrent(x)
        logits: torch.Tensor = self.output(self.dropout(hidden[:, -1]))
        return logits


def train_one_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, digits: Digits) -> None:
    """Go through the training images once, in random order."""
    model.train()
    for batch in torch.randperm(len(digits.train_x)).split(BATCH_SIZE):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(digits.train_x[batch]), digits.train_y[batch])
        loss.backward()
        optimizer.step()


@torch.no_grad()
def validate(model: nn.Module, digits: Digits) -> tuple[float, float]:
    """Return cross-entropy and accuracy on the validation images."""
    model.eval()
    logits = model(digits.valid_x)
    loss = nn.functional.cross_entropy(logits, digits.valid_y)
    return loss.item(), (logits.argmax(1) == digits.valid_y).double().mean().item()


def objective(trial: optuna.Trial, digits: Digits, epochs: int, seed: int = 0) -> float:
    """Train one network; return its validation cross-entropy after the last epoch."""
    torch.manual_seed(1_000 * seed + trial.number)
    model = Classifier(
        cell=trial.suggest_categorical("cell", ["GRU", "LSTM"]),
        units=trial.suggest_int("units", 16, 48),
        weight_scale=trial.suggest_float("weight_scale", 0.01, 0.6, log=True),
        gate_bias=trial.suggest_float("gate_bias", 0.0, 4.0),
        dropout=trial.suggest_float("dropout", 0.0, 0.5),
    )
    lr = trial.suggest_float("lr", 1e-3, 3e-2, log=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    # Line 1 of 3: a probe, made after the model. It measures the exponents before training.
    probe = lyap.LyapunovProbe(model, digits.train_x[:N_PROBED], full_spectrum=True)

    loss = float("nan")
    for epoch in range(1, epochs + 1):
        train_one_epoch(model, optimizer, digits)
        loss, accuracy = validate(model, digits)
        # Line 2 of 3: in place of trial.report(loss, epoch).
        probe.report(trial, loss, epoch)
        trial.set_user_attr("accuracy", accuracy)
        if epoch < epochs and trial.should_prune():  # after the last epoch it would save nothing
            raise optuna.TrialPruned
    return loss


def create_study(
    storage: str | optuna.storages.BaseStorage | None, seed: int = 0, name: str = "lyap-optuna-demo"
) -> optuna.Study:
    """Create a study of the demo's task, or open it to go on with it.

    The demo's own two are searched by :func:`~lyap_optuna.freeze_thaw`, which asks no pruner, and
    by ``MedianPruner``.
    """
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        direction="minimize",
        # Line 3 of 3: the pruner.
        pruner=lyap.LyapunovPruner(),
        load_if_exists=True,
    )
    # A study that is continued must not draw its first trials a second time.
    study.sampler = optuna.samplers.TPESampler(seed=seed + 10_007 * len(study.get_trials()))
    return study
