"""What is stored, told and drawn of trials that rest."""

import re
import time
from collections.abc import Generator
from itertools import groupby, pairwise
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

import lyap_optuna as lyap
from lyap_optuna.dashboard._note import note_text
from lyap_optuna.records import Stretch, _keys, read_stretches, write_stretches
from lyap_optuna.records._stretches import MAX_STRETCHES
from lyap_optuna.visualization import _pruning_timeline, plot_pruning_timeline
from lyap_optuna.visualization._figures import Numbers
from lyap_optuna.visualization._publication import published_figures

EPOCHS = 8


class Search:
    """A search over curves that cross; ``order`` is which trial made each report.

    At report ``look_at``, ``looked`` is what ``look`` returns of the study as it is then.
    """

    def __init__(self, n_steps: int = 200, look: Any = None, look_at: int = 100) -> None:
        self.order: list[int] = []
        self.looked: Any = None
        self._look, self._look_at = look, look_at
        self.study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        lyap.freeze_thaw(self.study, self.objective, n_steps=n_steps, seed=0, cost="steps")

    def objective(self, trial: optuna.Trial) -> Generator[None, None, float]:
        x, y = (trial.suggest_float(name, -1.0, 1.0) for name in "xy")
        trial.set_user_attr(_keys.READOUTS, {"-1": {"max": x, "mean": -1.0}})
        for epoch in range(EPOCHS):
            time.sleep(0.003)  # stored times are of milliseconds
            late = (epoch + 1) / EPOCHS
            trial.report(late * x**2 + (1 - late) * abs(y), epoch)
            self.order.append(trial.number)
            if len(self.order) == self._look_at and self._look is not None:
                self.looked = self._look(self.study)
            yield
        return x**2


@pytest.fixture(scope="module")
def search() -> Search:
    return Search()


def ran(order: list[int], number: int) -> list[int]:
    """How many reports a trial made each time that it ran."""
    return [len(list(group)) for n, group in groupby(order) if n == number]


def test_the_stretches_are_those_in_which_each_trial_ran(search: Search) -> None:
    rested = 0
    for trial in search.study.trials:
        expected = ran(search.order, trial.number)
        stretches = read_stretches(trial)
        if trial.state == TrialState.COMPLETE and len(expected) == 1:
            assert _keys.STRETCHES not in trial.user_attrs  # it ran through: nothing is written
            continue
        if not stretches:  # the last one to run when the search ended
            assert trial.number == search.order[-1]
            continue
        rested += len(stretches) > 1
        assert [s.reports for s in stretches] == expected
        assert [s.index for s in stretches] == list(range(len(expected)))
        ends = [s.start + s.seconds for s in stretches]
        assert all(end <= s.start + 2e-3 for end, s in zip(ends, stretches[1:], strict=False))
        assert all(s.before is None or 0 <= s.before <= 1 for s in stretches)
    assert rested > 0


def test_each_stretch_says_who_was_chosen_next(search: Search) -> None:
    runs = [n for n, _ in groupby(search.order)]
    begun: set[int] = set()
    seen: dict[int, int] = {}
    for now, then in pairwise(runs):
        begun.add(now)
        stretches = read_stretches(search.study.trials[now])
        k = seen[now] = seen.get(now, -1) + 1
        if k < len(stretches) - 1:  # it rested and went on again
            assert stretches[k].instead == (then if then in begun else None)


def test_a_story_tells_each_rest(search: Search) -> None:
    for trial in search.study.trials:
        stretches = read_stretches(trial)
        story = str(lyap.explain(search.study, trial.number))
        if not stretches:
            assert "let it rest" not in story
            continue
        rests = len(stretches) - (stretches[-1].after is None)
        times = "once" if rests == 1 else f"{rests} times"
        assert f"freeze_thaw let it rest {times}." in story
        assert "another pruner" not in story
        assert "It rests" not in story  # it has ended
        for stretch in stretches[1:]:
            if stretch.before is not None:
                assert f" later {stretch.before:.2g})" in story
        if trial.state == TrialState.PRUNED:
            assert f"Trial {trial.number} was pruned " in story


def resting(study: optuna.Study) -> list[int]:
    running = study.get_trials(states=(TrialState.RUNNING,))
    return [t.number for t in running if t.user_attrs.get(_keys.RESTING)]


def test_while_it_rests_a_trial_says_why() -> None:
    def look(study: optuna.Study) -> list[str]:
        return [str(lyap.explain(study, n)) for n in resting(study)]

    stories = Search(look=look).looked
    assert stories
    assert all("It rests because" in story for story in stories)
    assert any("promised more than a new trial" in story for story in stories)
    assert all("freeze_thaw let it rest" in story for story in stories)


def test_the_note_names_the_most_promising_of_those_that_rest() -> None:
    def look(study: optuna.Study) -> tuple[str, dict[int, float]]:
        chances = {n: read_stretches(study.trials[n])[-1].after for n in resting(study)}
        return note_text(Numbers(study)), {n: c for n, c in chances.items() if c is not None}

    search = Search(look=look)
    note, chances = search.looked
    assert f"**Resting**: {len(chances)} trials rest" in note
    named = re.findall(r"trial (\d+), ([0-9.e-]+) after (\d+ reports?)", note)
    best = sorted(chances, key=lambda n: (-chances[n], n))[:5]
    assert [(int(n), float(c)) for n, c, _ in named] == [
        (n, float(f"{chances[n]:.2g}")) for n in best
    ]
    assert all((reports == "1 report") == reports.startswith("1 ") for *_, reports in named)
    assert "Resting" not in note_text(Numbers(search.study))


def test_the_timeline_draws_each_trial_where_it_ran(search: Search) -> None:
    info = _pruning_timeline._get_info(search.study)
    assert info.paused
    # One search runs one trial at a time: in order of time, the order of the reports.
    runs = sorted((s.start, bar.number) for bar in info.bars for s in bar.stretches)
    assert [n for _, n in runs] == [n for n, _ in groupby(search.order)]
    for bar in info.bars:
        for start, end in bar.rests:
            assert all(s.end <= start + 2e-3 or s.start >= end - 2e-3 for s in bar.stretches)
    figure = plot_pruning_timeline(search.study)
    assert {trace.name for trace in figure.data} == {"rests", "COMPLETE", "PRUNED"}
    assert "time" in figure.layout.xaxis.title.text
    assert "lyapunov-pruning" in published_figures(Numbers(search.study))


def test_without_pauses_the_timeline_is_one_of_steps() -> None:
    study = optuna.create_study()
    study.add_trial(optuna.create_trial(value=1.0, intermediate_values={0: 1.0}))
    assert plot_pruning_timeline(study).layout.xaxis.title.text == "reported steps"


def test_a_trial_that_was_paused_often_stays_small() -> None:
    study = optuna.create_study()
    trial = study.ask()
    for step in range(200):
        trial.report(1.0, step)
    stretches = [
        Stretch(1234567.891 + i, 0.123456, 1, 0.123456789, 0.987654321, 1_000_000, index=i)
        for i in range(200)
    ]
    write_stretches(trial, stretches)
    stored = study.trials[0]
    assert len(str(stored.user_attrs[_keys.STRETCHES])) < 65 * MAX_STRETCHES + 100
    found = read_stretches(stored)
    assert [s.index for s in found] == list(range(200 - MAX_STRETCHES, 200))
    assert [s.start for s in found] == [s.start for s in stretches[-MAX_STRETCHES:]]
    trial.set_user_attr(_keys.RESTING, True)
    story = str(lyap.explain(study, 0))
    assert "rest 200 times." in story
    assert "went on): ..., " in story
    assert "after 200 reports" in story


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.25, "0.25 s"), (9.5, "9.5 s"), (112.0, "112 s"), (120.0, "2 min"), (7200.0, "2 h")],
)
def test_how_long_a_trial_rested_is_told_without_a_power_of_ten(seconds: float, told: str) -> None:
    study = optuna.create_study()
    trial = study.ask()
    trial.report(1.0, 0)
    went_on = Stretch(1.0 + seconds, 1.0, 0, before=0.5, index=1)
    write_stretches(trial, [Stretch(0.0, 1.0, 1, after=0.5), went_on])
    assert f"({told} later 0.5)" in str(lyap.explain(study, 0))


def test_a_retried_trial_does_not_take_the_dead_attempts_rests_for_its_own() -> None:
    study = optuna.create_study()
    dead = study.ask()
    write_stretches(dead, [Stretch(0.0, 1.0, 1)])
    study.tell(dead, state=TrialState.FAIL)
    optuna.storages.RetryHeartbeatStaleTrialCallback()(study, study.trials[0])
    retried = study.ask()
    assert _keys.STRETCHES in retried.user_attrs
    assert read_stretches(study.trials[retried.number]) == []
    assert read_stretches(study.trials[0]) == [Stretch(0.0, 1.0, 1)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=12,
)
rows = st.lists(st.lists(json_values, min_size=5, max_size=7) | json_values, max_size=4)
objects = st.fixed_dictionaries({"trial": st.just(0), "first": json_values, "stretches": rows})


@given(json_values | objects)
def test_what_is_no_stretch_is_left_out(stored: Any) -> None:
    trial = optuna.create_trial(value=1.0, user_attrs={_keys.STRETCHES: stored})
    trial.number = 0
    for stretch in read_stretches(trial):
        assert stretch.reports >= 0
        assert stretch.index >= 0
        assert isinstance(stretch.start, float)
