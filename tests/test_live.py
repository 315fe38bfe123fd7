"""Pruners live: budgets are kept, runs are resumed, and the demo's task is the demo's."""

import math
from pathlib import Path

import optuna
import pytest
import torch
from click.testing import CliRunner
from optuna.pruners import BasePruner, NopPruner
from optuna.study import Study
from optuna.trial import FrozenTrial

from lyap_optuna import demo
from studies import live
from studies.recordings.tasks import Run, Task

DIGITS = live.digits()


def start(trial: optuna.trial.BaseTrial, data: Path | None) -> Run:
    """A network that ends at 10 less its number; the sixth diverges."""
    trial.suggest_float("x", 0.0, 1.0)
    value = math.nan if trial.number == 5 else 10.0 - trial.number
    return Run(torch.nn.RNN(1, 2), torch.ones(4, 1, 1), lambda: None, lambda: value)


TASK = Task("task", "easy", "", 4, ("full",), start)


class Prunes(BasePruner):
    """Prunes trials of even numbers after so many epochs."""

    def __init__(self, after: int) -> None:
        self.after = after

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        return trial.number % 2 == 0 and len(trial.intermediate_values) == self.after


def run(budget: int, pruner: BasePruner) -> live.Live:
    return live.run_study(live.Setting("task", "p", 0, budget, 4), TASK, pruner)


def test_the_trial_that_runs_over_is_dropped() -> None:
    found = run(10, NopPruner())
    assert found.complete == ((4, 10.0), (8, 9.0))
    assert (found.n_pruned, found.n_failed) == (0, 0)
    assert [found.best_at(epochs) for epochs in (3, 4, 7.9, 8, 10)] == [math.inf, 10, 10, 9, 9]


def test_pruned_epochs_are_spent() -> None:
    found = run(10, Prunes(1))
    assert found.complete == ((5, 9.0), (10, 7.0))
    assert found.n_pruned == 2


def test_a_trial_that_diverged_has_no_value_and_costs_its_epochs() -> None:
    found = run(28, NopPruner())
    assert [spent for spent, _ in found.complete] == [4, 8, 12, 16, 20, 28]
    assert found.n_failed == 1


def test_trials_pruned_before_training_cost_nothing_and_come_to_an_end() -> None:
    found = run(8, Prunes(0))
    assert found.complete == ((4, 9.0), (8, 7.0))

    class All(Prunes):
        def prune(self, study: Study, trial: FrozenTrial) -> bool:
            return True

    assert run(8, All(0)).n_pruned == 8


@pytest.mark.parametrize("budget", [8, 30])
def test_freeze_thaw_spends_no_more_than_the_budget(budget: int) -> None:
    found = live.run_freeze_thaw(live.Setting("task", live.FREEZE_THAW, 0, budget, 4), TASK)
    whole = len(found.complete) * 4
    assert found.complete[:2] == ((4, 10.0), (8, 9.0))  # the first trials run through
    assert whole <= found.complete[-1][0] <= budget
    assert (found.n_pruned > 0) == (budget > whole)


def test_the_demo_is_the_demo() -> None:
    study, same = (
        optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)) for _ in range(2)
    )
    theirs = study.ask()
    value = demo.objective(theirs, DIGITS, epochs=1)
    setting = live.Setting("demo", "none", 0, 1, 1)
    spent, ended = live.run_trial(same, setting, live.TASKS["demo"], 1, None)
    assert ended is not None
    assert (spent, ended.value) == (1, value)
    assert (ended.params, ended.distributions) == (theirs.params, theirs.distributions)


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_the_command_prints_every_seed_and_is_resumed(tmp_path: Path, jobs: str) -> None:
    arguments = ["demo", "--trials", "1", "--epochs", "1", "--jobs", jobs]
    arguments += ["--output", str(tmp_path)]
    done = CliRunner().invoke(live.main, [*arguments, "--seeds", "1"], catch_exceptions=False)
    assert done.exit_code == 0
    lines = (tmp_path / "live.jsonl").read_text()
    assert lines.count("\n") == len(live.PRUNERS) + 1
    done = CliRunner().invoke(live.main, [*arguments, "--seeds", "2"], catch_exceptions=False)
    rows = ("seed 0", "seed 1", "median", "after 25% / 50% / 100% of 1 epochs")
    for name in (*live.PRUNERS, live.FREEZE_THAW, *rows):
        assert name in done.output
    both = (tmp_path / "live.jsonl").read_text()
    assert both.startswith(lines)
    CliRunner().invoke(live.main, [*arguments, "--seeds", "2"], catch_exceptions=False)
    assert (tmp_path / "live.jsonl").read_text() == both
    # One epoch leaves nothing to prune: every pruner trains the same network.
    assert (
        len(
            {
                found.complete
                for s, found in live.read(tmp_path / "live.jsonl").items()
                if not s.seed
            }
        )
        == 1
    )
