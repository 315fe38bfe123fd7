"""Every trial of a study, best first, by its value or by its predicted value."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna._logging import get_logger
from lyap_optuna.prediction._predictor import RankPredictor
from lyap_optuna.prediction._study import (
    StepPrediction,
    StudyModels,
    earlier_studies,
    model_step,
    single_direction,
)
from lyap_optuna.prediction.evidence import TrialView, check_evidence

_logger = get_logger(__name__)

NO_READOUTS = (
    "No trial of this study has Lyapunov readouts: the prediction rests on the other evidence. "
    "Record readouts with lyap_optuna.LyapunovProbe."
)


@dataclass(frozen=True)
class TrialPrediction:
    """A trial in a ranking.

    Args:
        number: Trial number.
        state: Trial state.
        step: The reported step at which it is judged; None where it has reported nothing.
        value: The known value of a COMPLETE trial; None for every other.
        predicted_value: Predicted final value, for a COMPLETE trial by a model that has not seen
            its value (out of fold); None where no evidence has skill.
        lower: Lower end of the 80 % prediction interval.
        upper: Upper end of it.
        max: Maximum exponent of the latest readout up to ``step``, nats/step; None without one.
        mean: Mean exponent of it, nats/step; None without one.
        evidence: Kinds of evidence that the prediction used.
        feasible: Whether it meets its constraints, always true in a study without constraints;
            None where its own are not recorded yet.
    """

    number: int
    state: TrialState
    step: int | None
    value: float | None
    predicted_value: float | None
    lower: float | None
    upper: float | None
    max: float | None
    mean: float | None
    evidence: tuple[str, ...] = ()
    feasible: bool | None = True


def rank_trials(
    study: Study,
    step: int | None = None,
    *,
    evidence: Iterable[str] | None = None,
    prior_studies: Iterable[Study] = (),
) -> list[TrialPrediction]:
    """Rank the trials of a study, best first.

    COMPLETE trials stand by their known value, beside their out-of-fold prediction. Running and
    pruned trials stand by their prediction; those about which nothing can be predicted come
    last. WAITING and FAIL trials are left out. Where the study uses constraints, infeasible
    trials come after all others. The ranking depends on no unit and no offset of the values.

    The default predictor is used, with every COMPLETE trial of the study, whichever pruner the
    study ran with: Optuna does not store pruners.

    Args:
        study: A study with one objective.
        step: Judge every trial by what was known at this step. By default running and pruned
            trials are judged at their last report, and COMPLETE ones at their last readout, or
            without readouts at their first report.
        evidence: Kinds of evidence to choose from (see :class:`~lyap_optuna.LyapunovPruner`).
        prior_studies: Earlier studies (see :class:`~lyap_optuna.LyapunovPruner`). With them a
            study without a single COMPLETE trial is ranked too, though no value is predicted.

    Returns:
        One :class:`TrialPrediction` for each trial, best first.

    Raises:
        ValueError: The study has several objectives, or a kind of evidence is unknown.

    Example:
        >>> import optuna
        >>> from lyap_optuna.prediction import rank_trials
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> study = optuna.create_study()
        >>> for value in (0.3, 0.1, 0.2):
        ...     study.add_trial(optuna.create_trial(value=value))
        >>> [t.number for t in rank_trials(study)]
        [1, 2, 0]
    """
    sign = single_direction(study)
    kinds = check_evidence(evidence)
    trials = study.get_trials(deepcopy=False)
    models = StudyModels(sign, kinds, RankPredictor, earlier_studies(prior_studies, kinds))
    models.update(trials)
    complete = {view.number: view for view in models.complete}
    listed = [
        (trial, complete.get(trial.number) or models.view(trial))
        for trial in trials
        if trial.state in (TrialState.COMPLETE, TrialState.RUNNING, TrialState.PRUNED)
    ]
    if listed and not any(view.readouts or view.baseline for _, view in listed):
        _logger.info(NO_READOUTS)
    constrained = any(view.feasible is not None for _, view in listed)
    known = np.unique([view.value for view in complete.values() if view.value is not None])

    ranked: list[tuple[tuple[float, ...], TrialPrediction]] = []
    for trial, view in listed:
        entry, predicted = predict_trial(models, trial, view, step)
        if view.feasible is None and (not constrained or view.value is not None):
            entry = replace(entry, feasible=True)
        place: tuple[float, ...]
        if view.value is not None:
            place = (0.0, float(np.searchsorted(known, view.value)), 0.0, 0.0)
        elif predicted is not None:
            # Its place among the known values, by rank: no scale enters.
            among = 0.0
            if known.size:
                scores = models.at(predicted.step, refit=True).predictor.score_of(known)
                among = float(np.interp(predicted.score, scores, np.arange(len(known))))
            place = (0.0, among, 1.0, predicted.score)
        else:
            place = (1.0,)
        infeasible = float(entry.feasible is False)
        ranked.append(((place[0], infeasible, *place[1:], view.number), entry))
    return [prediction for _, prediction in sorted(ranked, key=lambda pair: pair[0])]


def predict_trial(
    models: StudyModels, trial: FrozenTrial, view: TrialView, step: int | None = None
) -> tuple[TrialPrediction, StepPrediction | None]:
    """Predict one trial with a model of every COMPLETE trial.

    Returns:
        What is known of it, with ``feasible`` as recorded, and the prediction behind it.
    """
    at: int | None = None
    if view.steps.size:
        if step is not None:
            before = view.reports(step)
            at = int(view.steps[before - 1]) if before else None
        elif view.value is None:
            at = int(view.steps[-1])
        else:
            last = max(view.readouts, default=int(view.steps[0]))
            at = int(view.steps[max(view.reports(last), 1) - 1])
    model = models.at(model_step(view.steps, at), refit=True)
    predicted = model.predict(view)
    readout = view.readout(at)
    # Where no value is known there are no units to predict in.
    shown = predicted if np.isfinite(model.values).any() else None
    return (
        TrialPrediction(
            number=view.number,
            state=view.state,
            step=at,
            value=None if view.value is None else trial.value,
            predicted_value=None if shown is None else shown.value,
            lower=None if shown is None else shown.lower,
            upper=None if shown is None else shown.upper,
            max=None if readout is None else readout.max,
            mean=None if readout is None else readout.mean,
            evidence=model.chosen,
            feasible=view.feasible,
        ),
        predicted,
    )
