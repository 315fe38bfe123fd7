"""From named features to columns: the one place that knows about categories."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from lyap_optuna.prediction.evidence import EVIDENCE, Feature, TrialView
from lyap_optuna.prediction.evidence.base import FloatArray


class FeatureTable:
    """Turns trials at a step into one matrix per kind of evidence.

    The columns are learned from the trials given at construction: one per numeric feature, one
    per category of a categorical one. Of exponents and their displacement only features that all
    COMPLETE trials with that evidence have in common count: of the model, and of the layers that
    every one of them has. Missing numbers are NaN; a category that is missing, or
    that was not seen at construction, is a row of zeros.

    Args:
        kinds: Names of the kinds of evidence.
        trials: The trials to learn from.
        step: The step at which they are looked at.
    """

    def __init__(self, kinds: Sequence[str], trials: Iterable[TrialView], step: int | None) -> None:
        self._step = step
        self._columns: dict[str, list[tuple[str, str | None]]] = {}
        trials = list(trials)
        rows = [self._row(kinds, trial) for trial in trials]
        complete = [r for r, t in zip(rows, trials, strict=True) if t.value is not None]
        for kind in kinds:
            held = [set(row[kind]) for row in complete if row[kind]]
            shared = set.intersection(*held) if held and EVIDENCE[kind].shared_only else None
            columns: dict[tuple[str, str | None], None] = {}
            for row in rows:
                for name, value in row[kind].items():
                    if shared is None or name in shared:
                        columns[name, value if isinstance(value, str) else None] = None
            # In order of name: the order of trials and of suggestions must not matter.
            self._columns[kind] = sorted(columns, key=lambda c: (c[0], c[1] or ""))
        self.fitted = self._matrices(rows)

    def matrices(self, trials: Iterable[TrialView]) -> dict[str, FloatArray]:
        """Return, by kind, a matrix of shape (n_trials, n_columns)."""
        return self._matrices([self._row(tuple(self._columns), trial) for trial in trials])

    def _row(self, kinds: Sequence[str], trial: TrialView) -> dict[str, dict[str, Feature]]:
        return {kind: EVIDENCE[kind].features(trial, self._step) for kind in kinds}

    def _matrices(self, rows: list[dict[str, dict[str, Feature]]]) -> dict[str, FloatArray]:
        matrices = {}
        for kind, columns in self._columns.items():
            matrix = np.full((len(rows), len(columns)), math.nan)
            for i, row in enumerate(rows):
                features = row[kind]
                for j, (name, category) in enumerate(columns):
                    value = features.get(name)
                    if category is not None:
                        matrix[i, j] = float(value == category)
                    elif isinstance(value, (int, float)):
                        matrix[i, j] = value
            matrices[kind] = matrix
        return matrices
