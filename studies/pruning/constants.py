"""Which constants of the rule decide anything: each halved and doubled, on a few replays."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from types import ModuleType

import lyap_optuna as lyap
from lyap_optuna import pruner as rule
from lyap_optuna.prediction import _posterior, _scores, _study
from lyap_optuna.replay import Recording
from lyap_optuna.replay._replay import run

MODULES = (_posterior, _scores, _study, rule)
USERS = ("n_startup_trials", "top_fraction", "min_probability")
"""Arguments of the pruner: the user's."""


def constants() -> list[tuple[ModuleType, str]]:
    """Return every number at the top level of the modules that predict and decide."""
    return [
        (module, name)
        for module in MODULES
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, (int, float)) and not isinstance(value, bool)
        if module is not rule or name not in vars(_study)
    ]


@contextmanager
def changed(module: ModuleType, name: str, factor: float) -> Iterator[None]:
    """Multiply a constant."""
    before = getattr(module, name)
    _posterior.shares_prior.cache_clear()
    try:
        setattr(module, name, type(before)(before * factor))
        yield
    finally:
        setattr(module, name, before)
        _posterior.shares_prior.cache_clear()


def lengths(
    recordings: Sequence[Recording], orders: int, arguments: dict[str, float] | None = None
) -> list[int]:
    """Return how many reports every trial made, in all replays."""
    found: list[int] = []
    for recording in recordings:
        for order in range(orders):
            pruner = lyap.LyapunovPruner(**(arguments or {}))  # type: ignore[arg-type]
            _, study = run(recording, pruner, order)
            found += [len(t.intermediate_values) for t in study.get_trials(deepcopy=False)]
    return found


def table(recordings: Sequence[Recording], orders: int) -> list[tuple[str, str, str, str]]:
    """Return name, value, and what halving and doubling change: decisions, and epochs spent."""
    base = lengths(recordings, orders)

    def told(other: list[int]) -> str:
        moved = sum(a != b for a, b in zip(base, other, strict=True))
        return f"{moved} of {len(base)} trials, {100 * (sum(other) / sum(base) - 1):+.0f} % epochs"

    rows: list[tuple[str, str, str, str]] = []
    for module, name in constants():
        cells = []
        for factor in (0.5, 2.0):
            with changed(module, name, factor):
                cells.append(told(lengths(recordings, orders)))
        rows.append((name, f"{getattr(module, name):g}", cells[0], cells[1]))
    parameters = signature(lyap.LyapunovPruner).parameters
    for name in USERS:
        value = parameters[name].default
        cells = [
            told(lengths(recordings, orders, {name: type(value)(value * factor)}))
            for factor in (0.5, 2.0)
        ]
        rows.append((f"{name} (the user's)", f"{value:g}", cells[0], cells[1]))
    return rows
