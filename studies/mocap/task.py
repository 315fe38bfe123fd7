"""The motion task of the paper's section 5 and appendix A.2: network, training, objective."""

from dataclasses import dataclass

import optuna
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import lyap_optuna as lyap
from lyap_optuna.data import MotionCapture, windows

STEPS = 25
LR = 0.05
"""The learning rate that the paper's Table 3 prints; its dropout is 0."""
REPORT_EVERY = 100
PROBED_SEQUENCES, PROBED_STEPS, WARMUP = 10, 100, 20
"""What a spectrum is measured on, as in the paper, after a warm-up."""


@dataclass(frozen=True)
class Scale:
    """Sizes of the study.

    Args:
        units: Units of the LSTM.
        batch: Sequences of a batch, 25 frames each.
        iterations: Batches of a trial.
        networks: Values of the initialization parameter, from 0.05 to 0.5.
    """

    units: int
    batch: int
    iterations: int
    networks: int


SCALES = {
    "tiny": Scale(6, 4, 200, 6),
    "small": Scale(128, 125, 1_000, 30),
    "paper": Scale(256, 250, 4_000, 30),
}


class Predictor(nn.Module):
    """A single-layer LSTM that predicts the next frame at every step.

    Args:
        features: Numbers of a frame.
        units: Size of the hidden state.
        p: The LSTM's weights start uniform in [-p, p].
        generator: Draws them; trials in threads of one process need one each.
    """

    def __init__(self, features: int, units: int, p: float, generator: torch.Generator) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, units, batch_first=True)
        self.output = nn.Linear(units, features)
        for name, parameter in self.named_parameters():
            bound = p if name.startswith("lstm.weight") else units**-0.5
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, frames: Tensor) -> Tensor:
        """Return the predicted frames, ``(batch, steps, features)``."""
        predicted: Tensor = self.output(self.lstm(frames)[0])
        return predicted


@dataclass(frozen=True)
class Windows:
    """The recordings as sequences.

    Args:
        train: ``(windows, 26, features)``: 25 frames and the one that follows.
        valid: The same, every second one of those that were held out.
        probed: ``(10, 120, features)``, held-out sequences that spectra are measured on.
    """

    train: Tensor
    valid: Tensor
    probed: Tensor

    @classmethod
    def of(cls, motion: MotionCapture) -> "Windows":
        """Cut recordings into windows."""
        long = windows(motion.valid, WARMUP + PROBED_STEPS)
        evenly = torch.linspace(0, len(long) - 1, PROBED_SEQUENCES).long()
        return cls(
            train=windows(motion.train, STEPS + 1),
            valid=windows(motion.valid, STEPS + 1)[::2],
            probed=long[evenly],
        )


def error(model: Predictor, batch: Tensor) -> Tensor:
    """Return the mean squared error over frames 2 to 26."""
    return F.mse_loss(model(batch[:, :-1]), batch[:, 1:])


@torch.no_grad()
def validate(model: Predictor, valid: Tensor) -> float:
    """Return the mean squared error, in units of each feature's variance."""
    return float(sum(error(model, part) * len(part) for part in valid.split(250)) / len(valid))


def train(
    model: Predictor,
    optimizer: torch.optim.Optimizer,
    data: Tensor,
    batch: int,
    iterations: int,
    generator: torch.Generator,
) -> None:
    """Train on windows drawn at random."""
    for _ in range(iterations):
        loss = error(model, data[torch.randint(len(data), (batch,), generator=generator)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def objective(trial: optuna.Trial, data: Windows, scale: Scale, lr: float = LR) -> float:
    """Train one network, its spectrum stored every 100 iterations; return its lowest loss."""
    generator = torch.Generator().manual_seed(trial.number)
    p = trial.suggest_float("p", 0.01, 1.0)
    model = Predictor(data.train.shape[2], scale.units, p, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    reports = scale.iterations // REPORT_EVERY
    probe = lyap.LyapunovProbe(
        model, data.probed, full_spectrum=True, last_step=reports, state="hidden", warmup=WARMUP
    )
    best = float("inf")
    steps = tqdm(range(1, reports + 1), f"trial {trial.number}", leave=False, disable=None)
    for step in steps:  # of 100 iterations each
        train(model, optimizer, data.train, scale.batch, REPORT_EVERY, generator)
        loss = validate(model, data.valid)
        probe.report(trial, loss, step)
        best = min(best, loss)
        steps.set_postfix(loss=loss)
        if trial.should_prune():
            raise optuna.TrialPruned
    return best
