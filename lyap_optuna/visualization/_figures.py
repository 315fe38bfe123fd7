"""The figures of a study, in the order in which they are best read.

optuna-dashboard, the report page and the tests go through :data:`FIGURES`; to add a figure is one
file with a :class:`FigureSpec`, and one line here.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lyap_optuna.visualization import (
    _exponent_value,
    _prediction_skill,
    _predictions,
    _pruning_timeline,
    _spectrum,
    _spectrum_evolution,
)
from lyap_optuna.visualization._spec import FigureSpec, Info

if TYPE_CHECKING:
    from optuna.study import Study

FIGURES: tuple[FigureSpec[Any], ...] = (
    _pruning_timeline.FIGURE,
    _predictions.FIGURE,
    _prediction_skill.FIGURE,
    _exponent_value.FIGURE,
    _spectrum_evolution.FIGURE,
    _spectrum.FIGURE,
)


class Numbers:
    """The numbers behind the figures of a study, each gathered once, when first asked for.

    Args:
        study: The study.
        known: By the id of a figure, its numbers, where they are at hand.

    Example:
        >>> import optuna
        >>> study = optuna.create_study()
        >>> study.add_trial(optuna.create_trial(value=1.0, intermediate_values={0: 1.0}))
        >>> numbers = Numbers(study)
        >>> [spec.id for spec in FIGURES if numbers.of(spec) is not None]
        []
    """

    def __init__(self, study: "Study", known: Mapping[str, Any] | None = None) -> None:
        self.study = study
        self._known = dict(known or {})

    def of(self, spec: FigureSpec[Info]) -> Info | None:
        """Return what a figure shows; None where the study has nothing of it."""
        if len(self.study.directions) > 1 and not spec.several_objectives:
            return None
        if spec.id not in self._known:
            self._known[spec.id] = spec.info(self.study)
        known: Info | None = self._known[spec.id]
        return known
