"""The instrument that judges pruners: winners, when they are found, intervals that hold."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.pruners import BasePruner, NopPruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtri

from lyap_optuna.cli import _format
from lyap_optuna.cli._replay import _COLUMNS, _flat, shown
from lyap_optuna.records import Decision, read_readouts, write_decision
from lyap_optuna.replay import (
    Calibration,
    RecordedTrial,
    Recording,
    compare_pruners,
    replay,
    summarize,
    winners,
)
from lyap_optuna.replay._compare import order_statistic
from lyap_optuna.replay._replay import run
from lyap_optuna.replay._truth import Truth

READOUT = {"max": 0.1, "mean": -0.5}


def played(
    finals: Sequence[float],
    *,
    reports: int = 4,
    direction: str = "minimize",
    baseline: bool = False,
) -> Recording:
    """A recording that order 0 plays in the sequence given, all trials of the same length."""
    trials: list[RecordedTrial | None] = [None] * len(finals)
    places = np.random.default_rng(0).permutation(len(finals))
    for place, final in zip(places, finals, strict=True):
        values = {step: final for step in range(1, reports + 1)}
        readouts = {"full": {0: READOUT, 1: READOUT}} if baseline else {}
        trials[int(place)] = RecordedTrial({}, {}, values, final, readouts)
    state = "full" if baseline else None
    return Recording("played", direction, [t for t in trials if t is not None], state)


class Prunes(BasePruner):
    """Prunes the trials of these numbers at their first report, or before it."""

    def __init__(self, numbers: Sequence[int], *, untrained: bool = False) -> None:
        self.numbers, self.untrained = numbers, untrained
        self.asked: list[tuple[int, int | None]] = []
        self.baselines: list[int] = []

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        self.asked.append((trial.number, trial.last_step))
        if trial.last_step is None:
            self.baselines.append(len(read_readouts(trial)))
        return trial.number in self.numbers and (self.untrained or trial.last_step is not None)


class Says(BasePruner):
    """Prunes every trial at its second report, with the same interval."""

    def __init__(self, lower: float | None, upper: float | None, *, kept: float = 0.0) -> None:
        self.lower, self.upper, self.kept = lower, upper, kept

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        assert step is not None
        at_end = step == 2
        lower, upper = (self.lower, self.upper) if at_end else (self.kept, self.kept)
        verdict = "pruned" if at_end else "kept"
        write_decision(study, trial, Decision(step, verdict, "", lower=lower, upper=upper))
        return at_end


FINALS = (9.0, 8.0, 0.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0)
"""The third of ten wins; the median is 4.5."""


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1.0), ("maximize", -1.0)])
def test_a_winner_is_found_when_it_ends(direction: str, sign: float) -> None:
    recording = played([sign * f for f in FINALS], direction=direction)
    result = replay(recording, NopPruner())
    assert result.found_by == 0.3
    assert result.regret_at == (9 / 4.5, 8 / 4.5, 0.0)
    result = replay(recording, Prunes([0, 1]))
    assert result.found_by == 6 / 40
    assert result.regret_at == (math.inf, 0.0, 0.0)
    assert result.epochs_spent == 34 / 40


def test_an_order_that_prunes_the_winner_never_finds_it() -> None:
    result = replay(played(FINALS), Prunes([2]))
    assert (result.found_by, result.succeeded) == (math.inf, False)
    assert result.regret == 1 / 4.5
    # The trials of 9, 8, 7 and 6 have ended after 17 of 40 reports, that of 5 after 21.
    assert result.regret_at == (9 / 4.5, 8 / 4.5, 6 / 4.5)


def test_a_pruner_that_stops_early_keeps_its_last_regret() -> None:
    result = replay(played(FINALS), Prunes(range(1, 10)))
    assert result.epochs_spent == 13 / 40
    assert result.regret_at == (2.0, 2.0, 2.0)


def test_winners_are_few_and_near_the_best() -> None:
    finals = [0.0, 0.1, 0.2, *map(float, range(5, 42))]  # 40 trials: fewer than 2 may be better
    assert [played(finals).trials[i].final for i in winners(played(finals))] in (
        [0.0, 0.1],
        [0.1, 0.0],
    )
    far = [0.0, 4.0, *map(float, range(5, 43))]
    assert [played(far).trials[i].final for i in winners(played(far))] == [0.0]
    tied = [0.0, 0.0, 0.0, *map(float, range(1, 8))]
    assert len(winners(played(tied))) == 3
    assert winners(played([math.nan, math.nan, math.inf])) == []
    assert len(winners(played([math.nan, math.nan, 1.0]))) == 1


values = st.one_of(st.integers(-3, 3).map(float), st.sampled_from([math.nan, math.inf, -math.inf]))


@given(
    finals=st.lists(values, min_size=1, max_size=12),
    pruned=st.sets(st.integers(0, 11)),
    direction=st.sampled_from(["minimize", "maximize"]),
)
@settings(max_examples=60, deadline=None)
def test_what_is_found(finals: list[float], pruned: set[int], direction: str) -> None:
    recording = played(finals, reports=3, direction=direction)
    result = replay(recording, Prunes(sorted(pruned)))
    assert result.succeeded == math.isfinite(result.found_by)
    assert not result.succeeded or result.found_by <= result.epochs_spent
    assert list(result.regret_at) == sorted(result.regret_at, reverse=True)
    assert all(regret >= result.regret for regret in result.regret_at)
    none = replay(recording, NopPruner())
    assert none.succeeded == bool(winners(recording)) == any(map(math.isfinite, finals))


class TestBeforeTraining:
    def test_it_is_asked_where_a_baseline_was_recorded(self) -> None:
        pruner = Prunes([])
        replay(played(FINALS[:2], reports=2, baseline=True), pruner)
        assert pruner.asked == [(n, step) for n in (0, 1) for step in (None, 1, 2)]
        assert pruner.baselines == [1, 1]
        pruner = Prunes([])
        replay(played(FINALS[:2], reports=2), pruner)
        assert pruner.asked == [(n, step) for n in (0, 1) for step in (1, 2)]

    def test_a_trial_pruned_untrained_costs_nothing_and_has_no_value(self) -> None:
        pruner = Prunes([0, 1], untrained=True)
        result, study = run(played(FINALS, baseline=True), pruner, 0)
        assert result.epochs_spent == 32 / 40
        assert result.found_by == 4 / 40
        assert result.n_pruned == 2
        first = study.trials[0]
        assert (first.state, first.value) == (TrialState.PRUNED, None)
        assert first.intermediate_values == {}
        assert len(read_readouts(first)) == 1

    def test_the_baseline_then_stands_where_it_was_recorded(self) -> None:
        _, study = run(played(FINALS, baseline=True), NopPruner(), 0)
        assert {tuple(read_readouts(trial)) for trial in study.trials} == {(0, 1)}

    @pytest.mark.parametrize(
        "make",
        [
            lambda: optuna.pruners.MedianPruner(n_startup_trials=1),
            lambda: optuna.pruners.PercentilePruner(25.0, n_startup_trials=1),
            optuna.pruners.SuccessiveHalvingPruner,
            optuna.pruners.HyperbandPruner,
            lambda: optuna.pruners.ThresholdPruner(upper=5.0),
            optuna.pruners.WilcoxonPruner,
            lambda: optuna.pruners.PatientPruner(optuna.pruners.MedianPruner(1), patience=1),
        ],
    )
    @pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
    def test_pruners_of_optuna_decide_as_if_not_asked(self, make: Callable[[], BasePruner]) -> None:
        asked, plain = (
            run(played(FINALS, baseline=baseline), make(), 0)[1] for baseline in (True, False)
        )
        assert [t.intermediate_values for t in asked.trials] == [
            t.intermediate_values for t in plain.trials
        ]


class TestCalibration:
    """The decision that pruned counts, the ones before it do not."""

    @pytest.mark.parametrize(
        ("lower", "upper", "counts"),
        [
            (2.0, 6.5, (5, 2, 3)),  # 0 and 1 are better, 7, 8 and 9 worse
            (None, 6.5, (7, 0, 3)),
            (2.0, None, (8, 2, 0)),
            (None, None, (0, 0, 0)),
        ],
    )
    def test_sides(
        self, lower: float | None, upper: float | None, counts: tuple[int, int, int]
    ) -> None:
        found = replay(played(FINALS), Says(lower, upper)).calibration
        assert (found.held, found.better, found.worse) == counts
        # Upside down, better is above.
        low, high = (None if end is None else -end for end in (upper, lower))
        mirrored = played([-f for f in FINALS], direction="maximize")
        again = replay(mirrored, Says(low, high)).calibration
        assert (again.held, again.better, again.worse) == counts
        assert again.score == pytest.approx(found.score)

    def test_a_trial_that_diverged_is_worse_than_every_closed_interval(self) -> None:
        recording = played([math.nan, 1.0, 2.0])
        assert replay(recording, Says(0.0, 9.0)).calibration.worse == 1
        assert replay(recording, Says(0.0, None)).calibration.worse == 0

    def test_the_score_is_the_width_and_ten_times_the_miss(self) -> None:
        truth = Truth(played([0.0, 1.0, 2.0, 3.0]))
        z = ndtri([0.125, 0.375, 0.625, 0.875])  # the middle of each quarter
        inside = truth.judge(Decision(1, "pruned", "", lower=1.0, upper=2.0), 1.0)
        assert inside.score == pytest.approx(z[2] - z[1])
        missed = truth.judge(Decision(1, "pruned", "", lower=1.0, upper=2.0), 3.0)
        assert missed.score == pytest.approx(z[2] - z[1] + 10 * (z[3] - z[2]))
        widest = truth.judge(Decision(1, "pruned", "", lower=None, upper=9.0), 3.0)
        assert widest.score == pytest.approx(2 * ndtri(0.875))

    @given(
        finals=st.lists(st.integers(0, 9).map(float), min_size=1, max_size=12),
        ends=st.tuples(*[st.one_of(st.none(), st.integers(0, 9).map(float))] * 2),
        scale=st.sampled_from([1.0, 1e-6, 1e6]),
    )
    def test_scales_do_not_matter(
        self, finals: list[float], ends: tuple[float | None, float | None], scale: float
    ) -> None:
        lower, upper = ends
        if lower is not None and upper is not None and lower > upper:
            lower, upper = upper, lower
        scaled = Truth(played([scale * f for f in finals]))
        decision = Decision(
            1,
            "pruned",
            "",
            lower=None if lower is None else scale * lower,
            upper=None if upper is None else scale * upper,
        )
        plain = Truth(played(finals))
        assert scaled.judge(decision, scale * finals[0]) == plain.judge(
            Decision(1, "pruned", "", lower=lower, upper=upper), finals[0]
        )

    def test_pruners_that_foretell_nothing_have_none(self) -> None:
        recording = played(FINALS)
        result = summarize(recording, compare_pruners(recording, {"p": NopPruner}, orders=2))[0]
        assert (result.calibration, result.calibration.share) == (Calibration(), None)


class TestOrderStatistics:
    def test_places(self) -> None:
        spent = [*(i / 100 for i in range(1, 95)), *[math.inf] * 6]
        assert order_statistic(spent, 0.5).value == 0.5
        assert order_statistic(spent, 0.9).value == 0.9
        assert order_statistic(spent, 0.9).upper == math.inf
        assert order_statistic(spent[-6:], 0.5).value == math.inf
        assert order_statistic([0.3], 0.9) == order_statistic([0.3], 0.5)
        for m in range(1, 200):  # never a place further than ceil(0.9 m), for all rounding
            assert order_statistic(range(1, m + 1), 0.9).value == -(-9 * m // 10)

    @pytest.mark.parametrize("share", [0.5, 0.9])
    def test_the_interval_is_that_of_many_resamples(self, share: float) -> None:
        rng = np.random.default_rng(0)
        spent = rng.permutation(np.r_[rng.uniform(size=37), np.inf, np.inf, np.inf])
        found = order_statistic(spent, share)
        resampled = np.sort(rng.choice(spent, (40_000, 40)), axis=1)
        placed = resampled[:, math.ceil(share * 40) - 1]
        assert (placed < found.lower).mean() < 0.025 < (placed <= found.lower).mean() + 0.002
        assert (
            (placed < found.upper).mean() - 0.002 < 0.975 < (placed <= found.upper).mean() + 0.002
        )


def test_infinity_is_stored_and_older_lines_are_replayed_anew(tmp_path: Path) -> None:
    recording = played(FINALS)
    results = tmp_path / "replays.jsonl"
    pruners = {"never": lambda: Prunes([2])}

    def stored(results: Path) -> dict:
        told: list[tuple[int, int]] = []
        found = compare_pruners(
            recording, pruners, orders=1, results=results, progress=lambda *n: told.append(n)
        )
        return {"replay": found["never"][0], "before": told[0][0]}

    first = stored(results)
    line = json.loads(results.read_text())
    assert line["found_by"] == "inf"
    assert stored(results) == {**first, "before": 1}
    del line["found_by"]
    results.write_text(json.dumps(line) + "\n")
    again = stored(results)
    assert again["before"] == 0
    assert again["replay"].found_by == math.inf
    assert stored(results)["before"] == 1  # the new line counts, not the old


def test_the_summary_as_rows() -> None:
    recording = played(FINALS)
    pruners = {"none": NopPruner, "never": lambda: Prunes(range(10)), "says": lambda: Says(2, 6.5)}
    none, never, says = summarize(recording, compare_pruners(recording, pruners, orders=10))
    assert none.n_winners == 1
    # Without pruning the place of the one winner is all that counts: uniform over orders.
    assert 0.1 <= none.found_by.lower <= none.found_by.value <= none.found_by.upper <= 1.0
    assert none.found_by.value <= none.found_by_late.value
    assert shown(never)["found_by"] == "never"
    assert shown(says)["calibration"] == "50%"
    assert set(_COLUMNS) == set(shown(none))
    flat = _flat(says)
    assert flat["regret_at_25"] == flat["regret_at_25_upper"] == math.inf
    assert (flat["missed_better"], flat["missed_worse"]) == (20, 30)
    assert flat["interval_held"] == 0.5


def test_the_table_fits_into_120_columns() -> None:
    names = ("none", "PatientPruner(Median, 2)", "LyapunovPruner without exponents, displacement")
    recording = played(FINALS)
    recording = replace(recording, trials=[replace(t, seconds=1.0) for t in recording.trials])
    replays = compare_pruners(recording, dict.fromkeys(names, lambda: Prunes([4])), orders=4)
    console = _format.console()
    with console.capture() as captured:
        console.print(_format.table([shown(s) for s in summarize(recording, replays)], _COLUMNS))
    assert max(map(len, captured.get().splitlines())) <= 120
