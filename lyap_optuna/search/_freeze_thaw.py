"""``freeze_thaw``: the one entry to the search that pauses trials."""

import math
import time
from collections.abc import Iterable
from typing import Literal

import numpy as np
from optuna.study import Study

from lyap_optuna.prediction._step_model import TOP_FRACTION
from lyap_optuna.prediction._study import StudyModels
from lyap_optuna.prediction.evidence import check_evidence
from lyap_optuna.search._budget import Budget
from lyap_optuna.search._choice import Choice
from lyap_optuna.search._drivers import Objective
from lyap_optuna.search._sampling import SeesRestingAsPruned
from lyap_optuna.search._search import Callback, Search


def freeze_thaw(
    study: Study,
    objective: Objective,
    *,
    n_trials: int | None = None,
    n_steps: int | None = None,
    timeout: float | None = None,
    max_paused: int = 100,
    seed: int | None = None,
    catch: Iterable[type[Exception]] | type[Exception] = (),
    callbacks: Iterable[Callback] | None = None,
    evidence: Iterable[str] | None = None,
    cost: Literal["seconds", "steps"] = "seconds",
    show_progress_bar: bool = False,
) -> None:
    """Optimise ``objective`` by pausing trials and going on with the most promising.

    In place of ``study.optimize`` and a pruner. A pruner stops a trial for good when little is
    known of it; here it rests, with its model in memory, and goes on if the trials that have ended
    since show it in a better light. The idea is that of Swersky, Snoek and Adams, *Freeze-Thaw
    Bayesian Optimization*, arXiv:1406.3896.

    Once four trials of the study are COMPLETE, each choice is by the posterior of
    :class:`~lyap_optuna.LyapunovPruner`: how likely is each resting trial to end among the best
    tenth, from its losses, exponents, their displacement and the hyperparameters? The trial with
    the largest chance for the cost of what is left of it goes on, for half as many reports again as
    it has made and at least one; a new one begins where none that rests promises more than a trial
    of which nothing is known. One choice in ten is drawn in proportion to what the trials promise,
    so that a wrong judgement is noticed.

    **The objective** may be

    * a generator function with ``yield`` where others write
      ``if trial.should_prune(): raise optuna.TrialPruned``; its ``return`` is the final value. A
      ``yield`` before the first epoch lets a trial rest untrained;
    * an unchanged objective, also one in which a framework's callback asks. Each runs in a thread
      of its own, one at a time, and waits in ``trial.should_prune()``. No pruner is asked: it
      returns True when the trial is to end;
    * any other function. It runs through, with one :class:`~lyap_optuna.LyapunovWarning`.

    **Each trial is a world of its own.** It starts from generators (PyTorch's, Python's, NumPy's)
    seeded by ``seed`` and its number, and neither they, nor grad mode, autocast, inference mode,
    default dtype or default device are touched by what others do while it rests. On the CPU it
    ends bit for bit as it would alone. (On CUDA the generators are kept too; kernels that are not
    deterministic stay so.)

    **What the study shows.** A trial that rests is RUNNING and has the attribute
    ``lyapunov:resting``; samplers see it as PRUNED with its last report. When the search ends
    every resting trial is ended: :class:`optuna.TrialPruned` is raised at its pause, so that its
    ``finally`` blocks run, and it becomes PRUNED with its last report and a recorded decision (FAIL
    where it has reported nothing). The same happens to the least promising of more than
    ``max_paused``. An objective that raises fails its trial alone; where the exception is not
    in ``catch`` the search ends, as in :meth:`optuna.study.Study.optimize`.

    **Out of memory.** Where an objective raises ``MemoryError`` or ``torch.OutOfMemoryError`` while
    others rest, the least promising of them all ends. If that is one that rests, the trial that
    failed is begun again, once, as a new one with its parameters (``lyapunov:repeats``), because
    its state is gone. The search goes on in either case.

    **Heartbeats.** On a storage with ``heartbeat_interval`` one thread records those of all trials
    of the search, also of those that rest, and stale trials of others are failed before a new one
    begins, with the storage's callback, as in :meth:`optuna.study.Study.optimize`.

    Example:
        >>> import lyap_optuna as lyap, optuna
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> def objective(trial):
        ...     x = trial.suggest_float("x", -1.0, 1.0)
        ...     for epoch in range(10):
        ...         trial.report(x**2 + 1 / (1 + epoch), epoch)
        ...         yield
        ...     return x**2
        >>> study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        >>> lyap.freeze_thaw(study, objective, n_steps=100, seed=0)
        >>> sum(len(trial.intermediate_values) for trial in study.trials)
        100
        >>> len(study.trials) > 20, study.best_value < 0.01
        (True, True)

    Args:
        study: A study of one objective, in any storage.
        objective: What each trial runs; see **The objective**.
        n_trials: The search ends when it would begin one trial more.
        n_steps: Steps of all trials together, after which it ends. A step is a report; a trial
            that returns or fails without one counts as one step. (A trial as long as the longest
            COMPLETE one is then let go on once more: it has only to return.)
        timeout: Seconds after which it ends, at the next pause.
        max_paused: Trials that rest at a time; their models stay in memory.
        seed: Seeds each trial's generators and the exploration; None: at random. The sampler has
            a seed of its own.
        catch: Exceptions that fail a trial and do not end the search.
        callbacks: Called as ``callback(study, trial)`` when a trial has ended.
        evidence: Kinds of evidence that may count; all of them for None, as in
            :class:`~lyap_optuna.LyapunovPruner`.
        cost: What a step costs: its measured ``"seconds"`` (trials of one study may differ
            sixty-fold), or the same for all (``"steps"``): then the same seeds make the same
            choices.
        show_progress_bar: Show steps spent of ``n_steps``, the time left, the best value, which
            trial runs and how many rest.

    Raises:
        ValueError: An argument is out of its range, or the study has several objectives.
        RuntimeError: It is called within a search.
    """
    for name, number in (("n_trials", n_trials), ("n_steps", n_steps), ("timeout", timeout)):
        if number is not None and number < 0:
            raise ValueError(f"{name} cannot be negative, but got {name}={number!r}.")
    if max_paused < 1:
        raise ValueError(f"At least one trial must be able to pause, but got {max_paused=}.")
    if cost not in ("seconds", "steps"):
        raise ValueError(f"Cost must be 'seconds' or 'steps', but got {cost=}.")
    if seed is not None and seed < 0:
        raise ValueError(f"The seed cannot be negative, but got {seed=}.")
    caught = tuple(catch) if isinstance(catch, Iterable) else (catch,)
    entropy = int(np.random.SeedSequence(seed).generate_state(1)[0]) if seed is None else seed
    choice = choice_of(study, evidence, cost, entropy)
    # Its sampler tells of a search in another thread, too.
    if study._thread_local.in_optimize_loop or isinstance(study.sampler, SeesRestingAsPruned):
        raise RuntimeError(
            "freeze_thaw cannot be called within a search, nor while another thread searches the "
            "same study."
        )
    deadline = math.inf if timeout is None else time.perf_counter() + timeout
    search = Search(
        study,
        objective,
        choice=choice,
        budget=Budget(n_trials, n_steps, deadline),
        max_paused=max_paused,
        seed=entropy,
        catch=caught,
        callbacks=tuple(callbacks or ()),
        show_progress_bar=show_progress_bar,
    )
    with search.in_study():
        search.run()


def choice_of(study: Study, evidence: Iterable[str] | None, cost: str, entropy: int) -> Choice:
    """Return what chooses among the trials of ``study``.

    Raises:
        ValueError: The study has several objectives, or there is no such evidence.
    """
    models = StudyModels.of_study(study, check_evidence(evidence), TOP_FRACTION)
    rng = np.random.default_rng([entropy, 0x66741])  # apart from the trials' generators
    return Choice(models, TOP_FRACTION, cost == "seconds", rng)
