"""Many pruners, many orders, the same orders for all; in processes, and resumable."""

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import cast

import numpy as np
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)

from lyap_optuna.prediction.evidence import EVIDENCE
from lyap_optuna.pruner import LyapunovPruner
from lyap_optuna.replay._lines import append_line, read_lines
from lyap_optuna.replay._outcome import REGRET_AT, Replay
from lyap_optuna.replay._recording import Recording
from lyap_optuna.replay._replay import replay, replay_freeze_thaw
from lyap_optuna.replay._truth import Calibration, winners

OURS = "LyapunovPruner"

Search = Callable[[], BasePruner] | Callable[..., Replay]
"""A function that makes a fresh pruner, or :func:`replay_freeze_thaw`, also by
``functools.partial`` with its keywords."""


@dataclass(frozen=True)
class Choosing:
    """A search whose next configuration is chosen among all that have not begun.

    See ``choose`` of :func:`replay`.

    Args:
        search: What searches.

    Example:
        >>> from optuna.pruners import MedianPruner
        >>> from lyap_optuna.replay import Choosing, replay_freeze_thaw
        >>> pruners = {
        ...     "median": Choosing(MedianPruner),
        ...     "freeze_thaw": Choosing(replay_freeze_thaw),
        ... }
    """

    search: Search


Compared = Search | Choosing
"""What :func:`compare_pruners` takes."""


def default_pruners() -> dict[str, Callable[[], BasePruner]]:
    """Return what is compared by default: none, Optuna's pruners, ours, ours without evidence.

    Returns:
        By name, a function that makes a fresh pruner.
    """
    pruners: dict[str, Callable[[], BasePruner]] = {
        "none": NopPruner,
        "MedianPruner": MedianPruner,
        "PercentilePruner(25)": _percentile,
        "SuccessiveHalvingPruner": SuccessiveHalvingPruner,
        "HyperbandPruner": HyperbandPruner,
        "PatientPruner(Median, 2)": _patient,
        OURS: LyapunovPruner,
    }
    for kind in EVIDENCE:
        pruners[f"{OURS} without {kind}"] = _Without((kind,))
    pruners[f"{OURS} without exponents, displacement"] = _Without(("exponents", "displacement"))
    return pruners


def _percentile() -> BasePruner:
    return PercentilePruner(25.0)


def _patient() -> BasePruner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return PatientPruner(MedianPruner(), patience=2)


@dataclass(frozen=True)
class _Without:
    kinds: tuple[str, ...]

    def __call__(self) -> BasePruner:
        return LyapunovPruner(evidence=[kind for kind in EVIDENCE if kind not in self.kinds])


@dataclass(frozen=True)
class Interval:
    """A figure over orders, with the interval that holds 95 % of what it may be.

    Args:
        value: Median over orders; for a share, the share.
        lower: Lower end: of the middle 95 % of orders; for a share, Wilson's interval; where it
            is said, of a bootstrap over orders.
        upper: Upper end.
    """

    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class PrunerSummary:
    """What a pruner did with a recorded study, over many orders.

    Args:
        recording: Name of the recording.
        pruner: Name of the pruner.
        n_orders: Orders replayed.
        epochs_spent: Share of epochs spent.
        n_winners: Winners of the recording: trials worth finding.
        found_by: Share of all epochs spent when the first winner ended: the value at place
            ceil(0.5 m) of the m orders, with its bootstrap interval. Infinite where so many orders
            never found one.
        found_by_late: The same at place ceil(0.9 m): how late it may come.
        regret: Normalised regret.
        regret_at: The same when 10, 25 and 50 % of all epochs were spent.
        success: Share of orders that succeed.
        wrongly_pruned: Trials of the true top 5 % that were pruned.
        seconds: Seconds spent deciding.
        coverage: Share of decisions whose 80 % interval held the final value, each trial weighing
            the same; None for pruners that record none.
        calibration: What the 80 % intervals of the decisions that pruned were worth, over all
            orders.
        epochs_against_median: Epochs spent over those of ``MedianPruner`` in the same orders,
            median; None where that was not compared.
        found_by_seconds: Like ``found_by``, as a share of the seconds of training of all trials;
            None where the recording does not say how long each trial ran.
        found_by_seconds_late: Like ``found_by_late``, in the same way.
    """

    recording: str
    pruner: str
    n_orders: int
    epochs_spent: Interval
    n_winners: int
    found_by: Interval
    found_by_late: Interval
    regret: Interval
    regret_at: tuple[Interval, ...]
    success: Interval
    wrongly_pruned: Interval
    seconds: Interval
    coverage: float | None
    calibration: Calibration
    epochs_against_median: float | None = None
    found_by_seconds: Interval | None = None
    found_by_seconds_late: Interval | None = None


def compare_pruners(
    recording: Recording,
    pruners: Mapping[str, Compared] | None = None,
    *,
    orders: int | Mapping[str, int] = 20,
    jobs: int = 1,
    results: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[Replay]]:
    """Replay a recorded study with several pruners, in the same random orders for all.

    Args:
        recording: The study.
        pruners: By name, a function without arguments that makes a fresh pruner; with ``jobs``
            above 1 it must be picklable. Or :func:`replay_freeze_thaw` itself, which is then a row
            beside the pruners; or either in a :class:`Choosing`. By default
            :func:`default_pruners`.
        orders: How many orders, for all or by name of the pruner.
        jobs: Processes.
        results: A file of JSON lines to which each replay is added as it ends. What stands there
            already, for the same recording, pruner and order, is not replayed again. Delete it
            after a change of a pruner.
        progress: Called with the number of replays done and the number of all.

    Returns:
        By name of the pruner, one :class:`Replay` per order.

    Raises:
        ValueError: ``orders`` or ``jobs`` is below 1, or names a pruner that is not compared.

    Example:
        >>> import optuna
        >>> from lyap_optuna.replay import Recording, compare_pruners, summarize
        >>> study = optuna.create_study(study_name="curves")
        >>> for i in range(20):
        ...     study.add_trial(
        ...         optuna.create_trial(
        ...             intermediate_values={s: i + 1 / s for s in range(1, 9)}, value=float(i)
        ...         )
        ...     )
        >>> recording = Recording.from_study(study)
        >>> pruners = {"median": optuna.pruners.MedianPruner, "none": optuna.pruners.NopPruner}
        >>> replays = compare_pruners(recording, pruners, orders=4)
        >>> [(s.pruner, s.success.value) for s in summarize(recording, replays)]
        [('median', 1.0), ('none', 1.0)]
    """
    pruners = default_pruners() if pruners is None else pruners
    if jobs < 1:
        raise ValueError(f"Number of jobs must be at least 1, but got {jobs=}.")
    counts = dict(orders) if isinstance(orders, Mapping) else dict.fromkeys(pruners, orders)
    if unknown := sorted(set(counts) ^ set(pruners)):
        raise ValueError(f"orders and pruners must name the same pruners, but differ in {unknown}.")
    if bad := {name: n for name, n in counts.items() if n < 1}:
        raise ValueError(f"Number of orders must be at least 1, but got {bad}.")
    mark = fingerprint(recording)
    done = {} if results is None else _read(Path(results), mark)
    missing = [
        (name, order)
        # Order by order: what is interrupted has about as many of each.
        for order in range(max(counts.values(), default=0))
        for name in pruners
        if order < counts[name] and (name, order) not in done
    ]
    total = sum(counts.values())
    ended = total - len(missing)
    if progress is not None:
        progress(ended, total)
    for (name, order), result in _run(recording, pruners, missing, jobs):
        done[name, order] = result
        if results is not None:
            stored = {"recording": mark, "pruner": name, **asdict(result)}
            append_line(Path(results), stored)
        ended += 1
        if progress is not None:
            progress(ended, total)
    return {name: [done[name, order] for order in range(counts[name])] for name in pruners}


def _run(
    recording: Recording,
    pruners: Mapping[str, Compared],
    missing: Sequence[tuple[str, int]],
    jobs: int,
) -> Iterator[tuple[tuple[str, int], Replay]]:
    if jobs == 1:
        for name, order in missing:
            yield (name, order), _play(recording, pruners[name], order)
        return
    context = get_context("spawn")
    pool = ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_prepare, initargs=(recording,)
    )
    try:
        futures = {
            pool.submit(_task, pruners[name], order): (name, order) for name, order in missing
        }
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


_recording: Recording | None = None


def _prepare(recording: Recording) -> None:
    global _recording
    _recording = recording
    import torch

    torch.set_num_threads(1)


def _task(make: Compared, order: int) -> Replay:
    assert _recording is not None
    return _play(_recording, make, order)


def _play(recording: Recording, make: Compared, order: int) -> Replay:
    choose = isinstance(make, Choosing)
    search = make.search if isinstance(make, Choosing) else make
    if getattr(search, "func", search) is replay_freeze_thaw:
        return cast("Callable[..., Replay]", search)(recording, order, choose=choose)
    return replay(recording, cast("Callable[[], BasePruner]", search)(), order, choose=choose)


def fingerprint(recording: Recording) -> str:
    """Return a hash of what a replay depends on."""
    # (Seconds are left out: they change no decision.)
    digest = hashlib.sha256(f"{recording.name} {recording.direction} {recording.state}".encode())
    for trial in recording.trials:
        digest.update(repr((trial.params, trial.distributions, trial.values, trial.final)).encode())
        digest.update(repr(trial.readouts.get(recording.state or "")).encode())
    return digest.hexdigest()[:16]


def _read(path: Path, mark: str) -> dict[tuple[str, int], Replay]:
    done: dict[tuple[str, int], Replay] = {}
    for stored in read_lines(path):
        try:
            if stored.pop("recording") != mark:
                continue
            name = stored.pop("pruner")
            for key in ("regret", "found_by", "found_by_seconds"):
                if stored.get(key) is not None:
                    stored[key] = float(stored[key])
            stored["regret_at"] = tuple(map(float, stored["regret_at"]))
            stored["fell"] = tuple((float(a), float(b)) for a, b in stored.get("fell", ()))
            stored["calibration"] = Calibration(**stored["calibration"])
            done[name, stored["order"]] = Replay(**stored)
        except (ValueError, KeyError, TypeError):
            continue  # of another version: it is replayed again
    return done


def summarize(recording: Recording, replays: Mapping[str, Sequence[Replay]]) -> list[PrunerSummary]:
    """Return one :class:`PrunerSummary` per pruner, in the order given."""
    median = {r.order: r.epochs_spent for r in replays.get("MedianPruner", ())}
    n_winners = len(winners(recording))
    summaries = []
    for name, results in replays.items():
        predictions = sum(r.predictions for r in results)
        seconds = [r.found_by_seconds for r in results if r.found_by_seconds is not None]
        timed = len(seconds) == len(results)
        against = [r.epochs_spent / median[r.order] for r in results if median.get(r.order)]
        summaries.append(
            PrunerSummary(
                recording=recording.name,
                pruner=name,
                n_orders=len(results),
                epochs_spent=_over_orders(r.epochs_spent for r in results),
                n_winners=n_winners,
                found_by=order_statistic((r.found_by for r in results), 0.5),
                found_by_late=order_statistic((r.found_by for r in results), 0.9),
                regret=_over_orders(r.regret for r in results),
                regret_at=tuple(
                    _over_orders(r.regret_at[i] for r in results) for i in range(len(REGRET_AT))
                ),
                success=_share(sum(r.succeeded for r in results), len(results)),
                wrongly_pruned=_over_orders(r.wrongly_pruned for r in results),
                seconds=_over_orders(r.seconds for r in results),
                coverage=sum(r.covered for r in results) / predictions if predictions else None,
                calibration=sum((r.calibration for r in results), Calibration()),
                epochs_against_median=float(np.median(against)) if against else None,
                found_by_seconds=order_statistic(seconds, 0.5) if timed else None,
                found_by_seconds_late=order_statistic(seconds, 0.9) if timed else None,
            )
        )
    return summaries


def _over_orders(values: Iterable[float]) -> Interval:
    found = np.array(list(values), dtype=np.float64)
    # Of observed values only: between an infinite and a finite one nothing lies.
    lower, median, upper = np.quantile(found, [0.025, 0.5, 0.975], method="inverted_cdf")
    return Interval(float(median), float(lower), float(upper))


def order_statistic(values: Iterable[float], share: float) -> Interval:
    """Return the value at place ceil(share * m) of m, and its 95 % bootstrap interval.

    The interval is that of infinitely many resamples, so that no seed matters: of m values drawn
    with replacement the k-th is at most the j-th given where at least k of them are among the
    first j, a binomial number (Efron, *Annals of Statistics* 7 (1979) 1, section 3).
    """
    from scipy.stats import binom

    found = np.sort(np.array(list(values), dtype=np.float64))
    m = len(found)
    k = math.ceil(round(share * m, 9))  # 0.07 * 100 is 7.000000000000001
    chances = binom.sf(k - 1, m, np.arange(1, m + 1) / m)
    lower, upper = found[np.searchsorted(chances, [0.025, 0.975])]
    return Interval(float(found[k - 1]), float(lower), float(upper))


def _share(k: int, n: int) -> Interval:
    from scipy.stats import binomtest

    interval = binomtest(k, n).proportion_ci(0.95, method="wilson")
    return Interval(k / n, float(interval.low), float(interval.high))
