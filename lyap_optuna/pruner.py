"""A pruner that predicts a trial's final value and prunes what will hardly be among the best."""

import math
import threading
import warnings
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from optuna.pruners import BasePruner
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna._warnings import LyapunovWarning
from lyap_optuna.prediction._predictor import RankPredictor
from lyap_optuna.prediction._prior import EarlierStudy
from lyap_optuna.prediction._study import (
    MIN_PRIOR_TRIALS,
    PRIOR,
    StudyModels,
    describe,
    earlier_studies,
    model_step,
    single_direction,
)
from lyap_optuna.prediction.evidence import check_evidence
from lyap_optuna.records import Decision, read_decisions, write_decision


class LyapunovPruner(BasePruner):
    """Pruner that keeps the trials that may still end among the best.

    At each check the trial's final value is predicted from the evidence that has shown
    out-of-sample skill on the COMPLETE trials of the study: the loss so far, the Lyapunov
    exponents, their displacement since before training, the hyperparameters, or a combination.
    The trial is pruned where its chance of ending among the best ``top_fraction`` of the
    COMPLETE trials is below ``min_probability``. The chance starts at ``top_fraction`` and moves
    towards each check's estimate, by as much as the evidence explains: the square of its rank
    correlation, times the share of the final values' order that is not ties. No estimate is
    below 1 / (2 n + 2) on n COMPLETE trials that have the evidence, ties counting less: so few
    cannot show less. One check prunes where strong evidence is known well; where it is weak, a
    trial gets several, unless its evidence changes.

    A trial that leads is kept whatever is predicted, and its chance starts again: fewer than
    ``top_fraction`` of the feasible COMPLETE trials had a report as good at the same step. (Not in
    studies whose final values are worse where their last reports are better.)

    Final values that differ by less than 5 % of the distance from the median to the best
    count as equal. Where the study uses constraints, the best are the best feasible trials. Where
    no evidence has skill, nothing is pruned.

    That early exponents foretell the final loss is the finding of Vogt, Puelma Touzel, Shlizerman
    and Lajoie, *On Lyapunov Exponents for RNNs* (arXiv:2006.14123); that their displacement
    since the baseline often foretells it better, and that the evidence must be chosen study by
    study, is ours.

    Studies whose objective never calls a :class:`~lyap_optuna.LyapunovProbe` work too: the
    pruner uses what there is.

    NaN and infinite values count as worse than every finite one. As with
    :class:`optuna.pruners.MedianPruner`, a trial that has reported nothing but NaN is pruned
    once the startup trials are done. A trial that has come as far as every COMPLETE one is kept:
    stopping it would save nothing.

    Each check records a decision with the trial; :func:`~lyap_optuna.explain` tells it in words.
    Where the prediction itself fails, the trial is kept, with one
    :class:`~lyap_optuna.LyapunovWarning` per pruner. Predictors are fitted again when the number
    of COMPLETE trials has grown by a tenth; within the first 16 reports of a trial each has a
    predictor of its own, later about 16 per doubling. The same trials, completed in the same
    order, give the same decisions.

    One pruner may serve several studies and several threads (``n_jobs``), and may be pickled.

    Example:
        >>> import optuna
        >>> from lyap_optuna.pruner import LyapunovPruner
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> def objective(trial):
        ...     x = trial.suggest_float("x", -1.0, 1.0)
        ...     for epoch in range(10):
        ...         trial.report(x**2 + 1 / (1 + epoch), epoch)
        ...         if trial.should_prune():
        ...             raise optuna.TrialPruned()
        ...     return x**2
        >>> sampler = optuna.samplers.RandomSampler(seed=0)
        >>> study = optuna.create_study(sampler=sampler, pruner=LyapunovPruner())
        >>> study.optimize(objective, n_trials=40)
        >>> pruned = study.get_trials(states=[optuna.trial.TrialState.PRUNED])
        >>> len(pruned) > 5
        True

    Args:
        n_startup_trials: Pruning is disabled until this many trials of the study are COMPLETE.
        n_warmup_steps: Pruning is disabled while the step is below this.
        interval_steps: Number of steps between checks, offset by the warm-up steps; a check at
            which nothing was reported is put off until the next report. At least 1.
        top_fraction: The fraction of COMPLETE trials that count as the best, in (0, 1).
        min_probability: The chance of ending among the best below which a trial is pruned, in
            [0, 1]. With 0 nothing is pruned. It should stay below ``top_fraction``, the chance
            of a trial about which nothing is known. On fewer than 1 / (2 ``min_probability``) - 1
            COMPLETE trials (7.3 by default), ties counting less, evidence of the study itself
            prunes nothing, whatever ``n_startup_trials``.
        evidence: Kinds of evidence to choose from, of ``"loss"``, ``"exponents"``,
            ``"displacement"`` and ``"hyperparameters"``; all of them for None.
        seed: Seed of predictors that draw random numbers. The default one draws none.
        prior_studies: Earlier studies, of any architecture, task and search space, the same way
            round or not. What their losses, exponents and displacements foretold serves here until
            evidence of this study has skill of its own, and is trusted as far as COMPLETE trials
            of this study bear it out; pruning then begins after 4 COMPLETE trials. Their
            hyperparameters are not used. They are read once, when first needed.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        *,
        n_startup_trials: int = 10,
        n_warmup_steps: int = 0,
        interval_steps: int = 1,
        top_fraction: float = 0.1,
        min_probability: float = 0.06,
        evidence: Iterable[str] | None = None,
        seed: int | None = None,
        prior_studies: Iterable[Study] = (),
    ) -> None:
        if n_startup_trials < 0:
            raise ValueError(
                f"Number of startup trials cannot be negative, but got {n_startup_trials=}."
            )
        if n_warmup_steps < 0:
            raise ValueError(
                f"Number of warmup steps cannot be negative, but got {n_warmup_steps=}."
            )
        if interval_steps < 1:
            raise ValueError(
                f"Pruning interval steps must be at least 1, but got {interval_steps=}."
            )
        if not 0.0 < top_fraction < 1.0:
            raise ValueError(
                f"Top fraction must be between 0 and 1 exclusive, but got {top_fraction=}."
            )
        if not 0.0 <= min_probability <= 1.0:
            raise ValueError(
                f"Minimum probability must be between 0 and 1 inclusive, but got "
                f"{min_probability=}."
            )
        self._n_startup_trials = n_startup_trials
        self._n_warmup_steps = n_warmup_steps
        self._interval_steps = interval_steps
        self._top_fraction = top_fraction
        self._min_probability = min_probability
        self._evidence = None if evidence is None else check_evidence(evidence)
        self._seed = seed
        self._prior_studies = tuple(prior_studies)
        for study in self._prior_studies:
            single_direction(study)
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._studies: WeakKeyDictionary[BaseStorage, dict[tuple[int, str], StudyModels]] = (
            WeakKeyDictionary()
        )
        self._warned = False
        self._earlier: list[EarlierStudy] | None = None

    def __getstate__(self) -> dict[str, Any]:
        dropped = ("_lock", "_studies", "_warned", "_earlier")
        return {k: v for k, v in self.__dict__.items() if k not in dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __repr__(self) -> str:
        names = (
            "n_startup_trials",
            "n_warmup_steps",
            "interval_steps",
            "top_fraction",
            "min_probability",
            "evidence",
            "seed",
        )
        arguments = ", ".join(f"{name}={getattr(self, f'_{name}')!r}" for name in names)
        if self._prior_studies:
            arguments += f", prior_studies={[s.study_name for s in self._prior_studies]!r}"
        return f"LyapunovPruner({arguments})"

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Judge whether the trial should be pruned, and record why.

        Not to be called by users; see :meth:`optuna.trial.Trial.should_prune`.

        Args:
            study: The study of the trial.
            trial: The running trial.

        Returns:
            Whether it should be pruned.
        """
        trials = study.get_trials(deepcopy=False)
        n_complete = sum(t.state == TrialState.COMPLETE for t in trials)
        n_startup = self._n_startup_trials
        if self._prior_studies:
            n_startup = min(n_startup, MIN_PRIOR_TRIALS)
        if n_complete == 0 or n_complete < n_startup:
            return False
        step = trial.last_step
        if step is None or not self._is_due(step, trial):
            return False
        if all(math.isnan(v) for v in trial.intermediate_values.values()):
            decision = Decision(
                step=step,
                verdict="pruned",
                reason=f"It has reported nothing but NaN up to step {step}.",
                n_trials=n_complete,
            )
        else:
            try:
                decision = self._decide(study, trials, trial, step)
            except Exception as error:
                self._warn_once(trial, step, error)
                return False
        if n_complete < self._n_startup_trials and decision.evidence != (PRIOR,):
            return False  # earlier studies may shorten the startup, this one's own evidence not
        write_decision(study, trial, decision)
        return decision.verdict == "pruned"

    def _is_due(self, step: int, trial: FrozenTrial) -> bool:
        # As in optuna/pruners/_percentile.py: the first report in each interval after warm-up.
        if step < self._n_warmup_steps:
            return False
        since = step - self._n_warmup_steps
        start = self._n_warmup_steps + since // self._interval_steps * self._interval_steps
        return max((s for s in trial.intermediate_values if s != step), default=-1) < start

    def _decide(
        self, study: Study, trials: list[FrozenTrial], trial: FrozenTrial, step: int
    ) -> Decision:
        sign = single_direction(study)
        # The storage's copy has the readouts that other processes of this trial wrote.
        stored = trials[trial.number] if trial.number < len(trials) else trial
        if stored._trial_id != trial._trial_id or step not in stored.intermediate_values:
            stored = trial
        past = read_decisions(stored)
        if past and past[-1].step == step:
            return past[-1]  # asked again without a new report: the chance must not move twice
        with self._lock:
            models = self._models_of(study, sign)
            models.update(trials)
            view = models.view(stored)
            if step >= models.last_step:
                return Decision(
                    step=step,
                    verdict="kept",
                    reason=(
                        f"No COMPLETE trial went on after step {step}: nothing is left to save."
                    ),
                    n_trials=len(models.complete),
                )
            model = models.at(model_step(view.steps, step))
            if not model.chosen:
                return Decision(
                    step=step,
                    verdict="kept",
                    reason=(
                        f"No evidence has measurable skill at step {model.step} on "
                        f"{model.n_complete} COMPLETE trials that reached it; nothing is predicted."
                    ),
                    n_trials=model.n_complete,
                )
            prediction = model.predict(view)
        assert prediction is not None
        known: dict[str, Any] = {
            "step": step,
            "predicted_value": prediction.value,
            "lower": prediction.lower,
            "upper": prediction.upper,
            "min_probability": self._min_probability,
            "evidence": model.chosen,
            "skill": model.skill,
            "n_trials": model.n_trials,
        }
        told = (
            f"what {len(self._prior_studies)} earlier "
            f"{'study' if len(self._prior_studies) == 1 else 'studies'} foretold"
            if model.chosen == (PRIOR,)
            else describe(model.chosen)
        )
        story = (
            f"Predicted to end at {prediction.value:.4g} (80 % interval {prediction.lower:.4g} to "
            f"{prediction.upper:.4g}) from {told} at step {model.step} "
            f"(rank correlation {model.skill:.2f} on {model.n_trials} COMPLETE trials)"
        )
        score = model.threshold_score(self._top_fraction)
        if score is None:
            reason = (
                f"{story}; no COMPLETE trial is feasible, so there are no best to compare with."
            )
            return Decision(verdict="kept", reason=reason, **known)
        threshold = model.value_of(score)
        estimated = model.probability_below(prediction, score)
        now = max(estimated, min(model.least_chance, self._top_fraction))
        probability = model.weight * now + (1 - model.weight) * self._chance_before(past)
        leads = model.leads(view, self._top_fraction)
        if leads:
            probability = max(probability, self._top_fraction)
        pruned = not leads and probability < self._min_probability
        reason = (
            f"{story}; its chance of ending among the best {self._top_fraction:.0%} "
            f"({threshold:.4g} or {'lower' if sign > 0 else 'higher'}) is "
            f"{probability:.2g} ({now:.2g} at this step alone, "
            + ("the least that so few trials can show, " if now > estimated else "")
            + f"weight {model.weight:.2g}), "
            + (
                "and hardly a COMPLETE trial was as good at this step."
                if leads
                else f"{'' if pruned else 'not '}below {self._min_probability:g}."
            )
        )
        return Decision(
            verdict="pruned" if pruned else "kept",
            reason=reason,
            threshold=threshold,
            probability=probability,
            **known,
        )

    def _chance_before(self, past: Sequence[Decision]) -> float:
        """Return the chance at the last check, where one was predicted; else that of any trial."""
        before = past[-1].probability if past else None
        return self._top_fraction if before is None else before

    def _models_of(self, study: Study, sign: int) -> StudyModels:
        of_storage = self._studies.setdefault(study._storage, {})
        key = (study._study_id, study.study_name)
        if key not in of_storage or of_storage[key].sign != sign:
            kinds = check_evidence(self._evidence)
            if self._earlier is None:
                self._earlier = earlier_studies(self._prior_studies, kinds)
            of_storage[key] = StudyModels(
                sign, kinds, lambda: RankPredictor(self._seed), self._earlier
            )
        return of_storage[key]

    def _warn_once(self, trial: FrozenTrial, step: int, error: Exception) -> None:
        with self._lock:
            if self._warned:
                return
            self._warned = True
        warnings.warn(
            f"LyapunovPruner could not judge trial {trial.number} at step {step} and keeps it: "
            f"{type(error).__name__}: {error}. Further failures of this pruner are silent.",
            LyapunovWarning,
            stacklevel=3,
        )
