"""From named features to columns: the one place that knows about categories."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lyap_optuna.prediction.evidence import EVIDENCE, Feature, TrialView
from lyap_optuna.prediction.evidence.base import FloatArray


class FeatureTable:
    """Turns trials at a step into one matrix per kind of evidence.

    The columns are learned from the trials given at construction: one per numeric feature, one
    per category of a categorical one. Missing numbers are NaN, so that what only some
    trials have counts for those. A category that is missing is a row of zeros; a category that was
    not seen at construction, and one that is missing where none was, is a row of NaN.

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
        self._seen: dict[tuple[str, str], set[str | None]] = {}
        for kind in kinds:
            columns = {
                (name, value if isinstance(value, str) else None)
                for row in rows
                for name, value in row[kind].items()
            }
            # In order of name: the order of trials and of suggestions must not matter.
            self._columns[kind] = sorted(columns, key=lambda c: (c[0], c[1] or ""))
            for name in {name for name, category in columns if category is not None}:
                self._seen[kind, name] = {_category(row[kind].get(name)) for row in rows}
        self.fitted = self._matrices(rows)

    def matrices(self, trials: Iterable[TrialView]) -> dict[str, FloatArray]:
        """Return, by kind, a matrix of shape (n_trials, n_columns)."""
        return self._matrices([self._row(tuple(self._columns), trial) for trial in trials])

    def column(self, matrices: Mapping[str, FloatArray], kind: str, name: str) -> FloatArray | None:
        """Return the numbers of one feature, shape (n_trials,); None where no trial has it."""
        columns = self._columns.get(kind, [])
        return matrices[kind][:, columns.index((name, None))] if (name, None) in columns else None

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
                        if _category(value) in self._seen[kind, name]:
                            matrix[i, j] = float(value == category)
                    elif isinstance(value, (int, float)):
                        matrix[i, j] = value
            matrices[kind] = matrix
        return matrices


def _category(value: Feature | None) -> str | None:
    return value if isinstance(value, str) else None
