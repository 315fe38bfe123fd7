"""Every trial of a study, best first, by its value or by its predicted value."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna._logging import get_logger
from lyap_optuna.prediction._step_model import StepPrediction
from lyap_optuna.prediction._study import StudyModels, model_step
from lyap_optuna.prediction.evidence import TrialView, check_evidence
from lyap_optuna.records import read_decisions

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
            its value (out of fold); None while nothing can be predicted.
        lower: Lower end of the 80 % prediction interval; None where no COMPLETE trial ended
            beyond it.
        upper: Upper end of it; None likewise.
        max: Maximum exponent of the latest readout up to ``step``, nats/step; None without one.
        mean: Mean exponent of it, nats/step; None without one.
        evidence: Kinds of evidence that the prediction used.
        probability: Chance of ending among the best tenth of the feasible COMPLETE trials.
        feasible: Whether it meets its constraints, always true in a study without constraints;
            None where its own are not recorded yet.
        last_step: The step of its last report; None where it has reported nothing.
        predicted_then: The final value that was predicted when a pruner last decided on it, as
            recorded; None where nothing was.
        then_step: The step of that decision; None likewise.
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
    probability: float | None = None
    feasible: bool | None = True
    last_step: int | None = None
    predicted_then: float | None = None
    then_step: int | None = None


def rank_trials(
    study: Study,
    step: int | None = None,
    *,
    evidence: Iterable[str] | None = None,
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
            without readouts at their first report. Where steps do not ascend, the number of a
            report, from 0.
        evidence: Kinds of evidence to choose from (see :class:`~lyap_optuna.LyapunovPruner`).

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
    return ranked(StudyModels.of_study(study, check_evidence(evidence)), study, step)


def ranked(models: StudyModels, study: Study, step: int | None = None) -> list[TrialPrediction]:
    """Rank the trials of a study by models of it."""
    trials = study.get_trials(deepcopy=False)
    models.update(trials)
    ranked_states = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.PRUNED)
    listed = [trial for trial in trials if trial.state in ranked_states]
    judged = predict_trials(models, listed, step)
    if listed and not any(view.readouts or view.baseline for view, _, _ in judged):
        _logger.info(NO_READOUTS)
    constrained = any(view.feasible is not None for view, _, _ in judged)
    known = np.unique([view.value for view in models.complete if view.value is not None])

    placed: list[tuple[tuple[float, ...], TrialPrediction]] = []
    for view, entry, predicted in judged:
        if view.feasible is None and (not constrained or view.value is not None):
            entry = replace(entry, feasible=True)
        place: tuple[float, ...]
        if view.value is not None:
            place = (0.0, float(np.searchsorted(known, view.value)), 0.0, 0.0)
        elif predicted is not None:
            # A predicted value is that of a COMPLETE trial: behind it, by the expected score.
            among = float(np.searchsorted(known, models.sign * predicted.value))
            place = (0.0, among, 1.0, predicted.score)
        else:
            place = (1.0,)
        infeasible = float(entry.feasible is False)
        placed.append(((place[0], infeasible, *place[1:], view.number), entry))
    return [prediction for _, prediction in sorted(placed, key=lambda pair: pair[0])]


def predict_trials(
    models: StudyModels, trials: Sequence[FrozenTrial], step: int | None = None
) -> list[tuple[TrialView, TrialPrediction, StepPrediction | None]]:
    """Predict trials with models of every COMPLETE trial, those of one step together.

    Returns:
        For each trial its view, what is known of it, with ``feasible`` as recorded, and the
        prediction behind it.
    """
    complete = {view.number: view for view in models.complete}
    views = [complete.get(trial.number) or models.view(trial) for trial in trials]
    at = [_judged_at(view, step) for view in views]
    together: dict[int | None, list[int]] = defaultdict(list)
    for i, view in enumerate(views):
        together[model_step(view.steps, at[i])].append(i)
    predictions: dict[int, tuple[StepPrediction | None, tuple[str, ...]]] = {}
    for shared, rows in together.items():
        model = models.at(shared, refit=True)
        for i, predicted in zip(rows, model.predict([views[i] for i in rows]), strict=True):
            predictions[i] = predicted, model.kinds
    found = []
    for i, (trial, view) in enumerate(zip(trials, views, strict=True)):
        predicted, kinds = predictions[i]
        readout = view.readout(at[i]) or view.baseline
        decided = [d for d in read_decisions(trial) if d.predicted_value is not None]
        then = decided[-1] if decided else None
        entry = TrialPrediction(
            number=view.number,
            state=view.state,
            step=_reported_at(view, at[i]),
            value=None if view.value is None else trial.value,
            predicted_value=None if predicted is None else predicted.value,
            lower=None if predicted is None else predicted.lower,
            upper=None if predicted is None else predicted.upper,
            max=None if readout is None else readout.max,
            mean=None if readout is None else readout.mean,
            evidence=kinds,
            probability=None if predicted is None else predicted.probability,
            feasible=view.feasible,
            last_step=view.reported[-1] if view.reported else None,
            predicted_then=None if then is None else then.predicted_value,
            then_step=None if then is None else then.step,
        )
        found.append((view, entry, predicted))
    return found


def _reported_at(view: TrialView, step: int | None) -> int | None:
    """Return the step at which a report was made, which may be counted in the view."""
    return None if step is None else view.reported[view.reports(step) - 1]


def _judged_at(view: TrialView, step: int | None) -> int | None:
    """Return the reported step at which a trial is judged; None before its first report."""
    if not view.steps.size:
        return None
    if step is not None:
        before = view.reports(step)
        return int(view.steps[before - 1]) if before else None
    if view.value is None:
        return int(view.steps[-1])
    last = max(view.readouts, default=int(view.steps[0]))
    return int(view.steps[max(view.reports(last), 1) - 1])
