"""A pruner that predicts a trial's final value and prunes what will hardly be among the best."""

import math
import threading
import warnings
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from optuna.pruners import BasePruner
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna._warnings import LyapunovWarning
from lyap_optuna.prediction._step_model import TOP_FRACTION
from lyap_optuna.prediction._study import StudyModels, model_step, single_direction
from lyap_optuna.prediction.evidence import TrialView, check_evidence
from lyap_optuna.records import (
    Decision,
    baseline_step,
    keeps_order,
    pruned_at,
    read_readouts,
    watch_order,
    write_decision,
)


class LyapunovPruner(BasePruner):
    """Pruner that keeps the trials that may still end among the best.

    From the COMPLETE trials it learns how the final value depends on the loss so far, the Lyapunov
    exponents, their displacement since before training and the hyperparameters: a posterior over
    final values, on ranks, in which each kind of evidence counts for as much as the COMPLETE trials
    support. A trial is pruned if its chance p of ending among the best ``top_fraction`` is below
    what training it to the next check costs: after e of E reports, if the evidence explains a share
    s of the variance, p < ``min_probability`` x s x 2 min(e + 1, E - e) / E. Nothing is pruned
    where the evidence explains nothing. (:doc:`/mathematics` has the posterior and the reasons.)

    A trial that leads is kept, whatever is predicted: fewer than ``top_fraction`` of the feasible
    COMPLETE trials had a report as good at the same step. (Not in studies whose final values are
    worse where their last reports are better.) A final value is taken to be known to within 5 %
    of the distance from the median to the best: the order of trials on a plateau is ignored.
    Where the study uses constraints, the best are the best feasible trials.

    That early exponents predict the final loss, and that a maximum exponent near 0 is better, is
    the finding of Vogt, Puelma Touzel, Shlizerman and Lajoie, *On Lyapunov Exponents for RNNs*
    (arXiv:2006.14123). This project adds that their displacement since the baseline often predicts
    it better, and that the evidence must be weighted study by study.

    Studies whose objective never calls a :class:`~lyap_optuna.LyapunovProbe` work too: the
    pruner uses what there is. With ``LyapunovProbe(..., trial=trial)``, ``trial.should_prune()``
    is answered before the first report too.

    NaN and infinite values count as worse than every finite one. As with
    :class:`optuna.pruners.MedianPruner`, a trial that has reported nothing but NaN is pruned
    once the startup trials are done. A trial that has come as far as every COMPLETE one is kept:
    stopping it would save nothing. Where the steps of a trial do not ascend, reports are counted
    in place of steps, also by ``n_warmup_steps`` and ``interval_steps``. (Databases do not keep
    the order of reports; the pruner sees it at each check and stores it with the trial.)

    Each check records a decision with the trial; :func:`~lyap_optuna.explain` tells it in words.
    Where the prediction itself fails, the trial is kept, with one
    :class:`~lyap_optuna.LyapunovWarning` per pruner. Posteriors are fitted again when the number
    of COMPLETE trials has grown by a tenth. The same trials, completed in the same order, give
    the same decisions.

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
        min_probability: The chance of ending among the best that a trial needs half way through
            training where the evidence explains everything, in [0, 1]; in proportion less where
            it explains less. With 0 only trials that report nothing but NaN
            are pruned.
        evidence: Kinds of evidence that may count, of ``"loss"``, ``"exponents"``,
            ``"displacement"`` and ``"hyperparameters"``; all of them for None.
        audit: The share of condemned trials that run on all the same, in [0, 1], so that
            :func:`~lyap_optuna.explain` can say how many prunings were wrong.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        *,
        n_startup_trials: int = 8,
        n_warmup_steps: int = 0,
        interval_steps: int = 1,
        top_fraction: float = TOP_FRACTION,
        min_probability: float = 0.2,
        evidence: Iterable[str] | None = None,
        audit: float = 0.0,
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
        if not 0.0 <= audit <= 1.0:
            raise ValueError(f"Audit must be between 0 and 1 inclusive, but got {audit=}.")
        self._n_startup_trials = n_startup_trials
        self._n_warmup_steps = n_warmup_steps
        self._interval_steps = interval_steps
        self._top_fraction = top_fraction
        self._min_probability = min_probability
        self._evidence = None if evidence is None else check_evidence(evidence)
        self._audit = audit
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._studies: WeakKeyDictionary[BaseStorage, dict[tuple[int, str], StudyModels]] = (
            WeakKeyDictionary()
        )
        self._warned = False

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_studies", "_warned")}

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
            "audit",
        )
        arguments = ", ".join(f"{name}={getattr(self, f'_{name}')!r}" for name in names)
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
        watch_order(study._storage, trial)
        trials = study.get_trials(deepcopy=False)
        complete = (t for t in trials if t.state == TrialState.COMPLETE)
        ordered = keeps_order(study._storage)
        n_complete = sum(pruned_at(t, ordered) is None for t in complete)
        if n_complete < max(self._n_startup_trials, 1):
            return False
        try:
            with self._lock:
                models = self._models_of(study)
                models.update(trials)
                stored = self._stored(trials, trial)
                view = models.view(stored)
                decision = self._judge(models, stored, view) if self._is_due(view) else None
        except Exception as error:
            self._warn_once(trial, error)
            return False
        if decision is None:
            return False
        write_decision(study, trial, decision)
        return decision.verdict == "pruned"

    def _is_due(self, view: TrialView) -> bool:
        if not view.steps.size:  # before training: where a baseline has been measured
            return self._n_warmup_steps == 0 and view.baseline is not None
        # As in optuna/pruners/_percentile.py: the first report in each interval after warm-up.
        since = int(view.steps[-1]) - self._n_warmup_steps
        if since < 0:
            return False
        start = self._n_warmup_steps + since // self._interval_steps * self._interval_steps
        return len(view.steps) == 1 or int(view.steps[-2]) < start

    def _stored(self, trials: list[FrozenTrial], trial: FrozenTrial) -> FrozenTrial:
        # The storage's copy has the readouts that other processes of this trial wrote.
        stored = trials[trial.number] if trial.number < len(trials) else trial
        same = stored._trial_id == trial._trial_id
        as_far = len(stored.intermediate_values) == len(trial.intermediate_values)
        return stored if same and as_far else trial

    def _judge(self, models: StudyModels, trial: FrozenTrial, view: TrialView) -> Decision:
        done, total = len(view.steps), models.length
        known: dict[str, Any] = {
            "step": view.reported[-1] if done else baseline_step(trial, read_readouts(trial)) or 0,
            "n_trials": models.n_complete,
        }
        if done and all(map(math.isnan, trial.intermediate_values.values())):
            return Decision(verdict="pruned", because="nan", **known)
        if done >= total:
            return Decision(verdict="kept", because="end", **known)
        model = models.at(model_step(view.steps, int(view.steps[-1]) if done else None))
        (predicted,) = model.predict([view])
        if predicted is None or not model.kinds:
            return Decision(verdict="kept", because="unknown", **known)
        known |= model.grounds(predicted)
        if predicted.probability is None:
            return Decision(verdict="kept", because="infeasible", **known)
        explained = sum(known["shares"].values())
        least = required_chance(self._min_probability, explained, done, total)
        known["min_probability"] = least
        if predicted.probability >= least:
            return Decision(verdict="kept", **known)
        if model.leads(view):
            return Decision(verdict="kept", because="leads", **known)
        if is_audited(trial.number, self._audit):
            return Decision(verdict="kept", because="audit", **known)
        return Decision(verdict="pruned", **known)

    def _models_of(self, study: Study) -> StudyModels:
        of_storage = self._studies.setdefault(study._storage, {})
        key = (study._study_id, study.study_name)
        if key not in of_storage or of_storage[key].sign != single_direction(study):
            kinds = check_evidence(self._evidence)
            of_storage[key] = StudyModels.of_study(study, kinds, self._top_fraction)
        return of_storage[key]

    def _warn_once(self, trial: FrozenTrial, error: Exception) -> None:
        with self._lock:
            if self._warned:
                return
            self._warned = True
        warnings.warn(
            f"LyapunovPruner could not judge trial {trial.number} at step {trial.last_step} and "
            f"keeps it: {type(error).__name__}: {error}. Further failures of this pruner are "
            "silent.",
            LyapunovWarning,
            stacklevel=3,
        )


def required_chance(at_most: float, explained: float, done: int, total: int) -> float:
    """Return the chance of ending among the best that a trial needs after some of its reports.

    A trial goes on while its chance times the worth of a trial among the best exceeds the cost of
    training to its next check: one epoch more than it has had, about as in successive halving, or
    what is left if that is less. Those epochs could train new trials instead, which are cheaper
    the more the evidence explains, because the poor ones are soon found out.
    Where it explains nothing, nothing is gained by pruning.

    Args:
        at_most: The chance needed half way where the evidence explains everything.
        explained: The share of the variance that the evidence explains.
        done: Reports so far.
        total: Reports of a whole trial.
    """
    return at_most * explained * 2 * min(done + 1, total - done) / total


def is_audited(number: int, share: float) -> bool:
    """Return whether a condemned trial runs on: evenly spread over trial numbers, and for all."""
    golden = (math.sqrt(5) - 1) / 2  # multiples of it fill the unit interval evenly
    return (number + 1) * golden % 1 < share
