"""The character task of the paper's section 5 and appendix A.1: network, training, objective."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import optuna
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import lyap_optuna as lyap
from lyap_optuna.data import CharacterText, streams

PROBED_SEQUENCES, PROBED_STEPS, WARMUP = 10, 100, 20
"""What a spectrum is measured on, as in the paper, after a warm-up."""

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Scale:
    """Sizes of the study.

    Args:
        units: Units of the LSTM.
        batch: Sequences of a batch, 100 characters each (fewer at the scale of the tests).
        steps: Characters of a sequence.
        batches: Batches of an epoch.
        epochs: Epochs of a trial.
        valid_batches: Batches that the validation loss is a mean of.
        pairs: Random pairs of dropout and learning rate.
        p_values: Initialization parameters whose spectra are followed over training.
    """

    units: int
    batch: int
    steps: int
    batches: int
    epochs: int
    valid_batches: int
    pairs: int
    p_values: tuple[float, ...]


P_VALUES = (0.04, 0.08, 0.12, 0.16, 0.2, 0.5)
SCALES = {
    "tiny": Scale(8, 2, 20, 2, 3, 1, 6, (0.04, 0.5)),
    "small": Scale(128, 32, 100, 100, 10, 20, 24, P_VALUES),
    "paper": Scale(512, 100, 100, 256, 40, 32, 60, P_VALUES),
}


class CharRNN(nn.Module):
    """A single-layer LSTM without bias, read out at every step through dropout.

    Args:
        characters: Size of the alphabet.
        units: Size of the hidden state.
        p: The LSTM's weights start uniform in [-p, p].
        dropout: Fraction of the hidden state that is dropped before the readout.
        seed: Of the weights and of dropout. The network has a generator of its own, so that trials
            in threads of one process do not draw each other's numbers.
    """

    def __init__(self, characters: int, units: int, p: float, dropout: float, seed: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(characters, units, bias=False, batch_first=True)
        self.output = nn.Linear(units, characters)
        self.dropout = dropout
        self.generator = torch.Generator().manual_seed(seed)
        for weight in self.lstm.parameters():
            nn.init.uniform_(weight, -p, p, generator=self.generator)
        for weight in self.output.parameters():
            nn.init.uniform_(weight, -(units**-0.5), units**-0.5, generator=self.generator)

    def forward(
        self, codes: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return logits ``(batch, steps, characters)`` for ``(batch, steps)``, and the state."""
        hidden, state = self.lstm(F.one_hot(codes, self.lstm.input_size).float(), state)
        if self.training and self.dropout > 0:
            kept = torch.rand(hidden.shape, generator=self.generator) >= self.dropout
            hidden = hidden * kept / (1 - self.dropout)
        return self.output(hidden), state


def train(model: CharRNN, optimizer: torch.optim.Optimizer, batches: Batches) -> None:
    """Train on consecutive batches; the state is carried over, gradients are cut between them."""
    model.train()
    state = None
    for inputs, targets in batches:
        logits, state = model(inputs, state)
        state = (state[0].detach(), state[1].detach())
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def validate(model: CharRNN, batches: Batches) -> float:
    """Return the mean cross-entropy, nats per character."""
    model.eval()
    state, losses = None, []
    for inputs, targets in batches:
        logits, state = model(inputs, state)
        losses.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    return float(torch.stack(losses).mean())


def probed_inputs(text: CharacterText) -> Tensor:
    """Return the sequences that spectra are measured on, from the text's test split."""
    return next(streams(text.test, PROBED_SEQUENCES, WARMUP + PROBED_STEPS))[0]


def objective(trial: optuna.Trial, text: CharacterText, scale: Scale) -> float:
    """Train one network, its spectrum stored after every epoch; return its lowest loss."""
    model = CharRNN(
        characters=len(text.alphabet),
        units=scale.units,
        p=trial.suggest_float("p", 0.01, 1.0),
        dropout=trial.suggest_float("dropout", 0.0, 0.5),
        seed=trial.number,
    )
    lr = trial.suggest_float("lr", 1e-4, 1e-1)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda e: 0.95 ** max(0, e - 9))
    probe = lyap.LyapunovProbe(
        model,
        probed_inputs(text),
        full_spectrum=True,
        last_step=scale.epochs,
        state="hidden",  # the paper's
        warmup=WARMUP,
    )
    passes = itertools.cycle([text.train])  # an epoch goes on where the last one ended
    endless = (b for codes in passes for b in streams(codes, scale.batch, scale.steps))

    best = float("inf")
    epochs = tqdm(range(1, scale.epochs + 1), f"trial {trial.number}", leave=False, disable=None)
    for epoch in epochs:
        train(model, optimizer, itertools.islice(endless, scale.batches))
        decay.step()
        valid = streams(text.valid, scale.batch, scale.steps)
        loss = validate(model, itertools.islice(valid, scale.valid_batches))
        probe.report(trial, loss, epoch)
        best = min(best, loss)
        epochs.set_postfix(loss=loss)
        if trial.should_prune():
            raise optuna.TrialPruned
    return best
