"""The recordings, and our pruner with some of them as earlier studies."""

from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.pruners import BasePruner

import lyap_optuna as lyap
from lyap_optuna.replay import Recording

DATA = Path(__file__).parents[1] / "recordings" / "data"

PRIOR_STATE = "full"
"""Exponents of the full state are the ones that can be compared between architectures."""


def load(name: str, state: str | None = None) -> Recording:
    """Load a recording of the source, with the readouts of ``state`` where it has them."""
    recording = Recording.load(DATA / f"{name}.json.gz")
    return recording.with_state(state) if state in recording.states else recording


@dataclass(frozen=True)
class WithPrior:
    """Makes our pruner with other recordings as earlier studies."""

    names: tuple[str, ...]

    def __call__(self) -> BasePruner:
        """Return a fresh pruner."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        studies = [load(name, PRIOR_STATE).to_study() for name in self.names]
        return lyap.LyapunovPruner(prior_studies=studies)
