"""The commands that record studies and judge pruners on them, at a size of seconds."""

import dataclasses
from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner

from lyap_optuna.replay import Recording
from studies.pruning.__main__ import main as judge
from studies.recordings import _training
from studies.recordings.__main__ import store
from studies.recordings.tasks import TASKS

RECORDABLE = [name for name, task in TASKS.items() if not task.needs_data]


@pytest.mark.parametrize("name", RECORDABLE)
def test_a_task_is_trained_and_recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = dataclasses.replace(TASKS[name], epochs=1)
    monkeypatch.setitem(_training.TASKS, name, task)
    (params, distributions), *_ = _training.configurations(name, 1, None)
    outcome = _training.train(name, 0, params, None)
    assert list(outcome.losses) == [1]
    assert set(outcome.readouts) == set(task.states)
    assert list(outcome.readouts[task.states[0]]) == ["0", "1"]
    study = optuna.create_study(study_name=name)
    study.set_user_attr("states", list(task.states))
    study.set_user_attr("kind", task.kind)
    store(study, outcome, params, distributions)
    recording = Recording.from_study(study)
    assert recording.states == task.states
    assert recording.trials[0].values == outcome.losses
    assert recording.trials[0].params == params


def test_training_is_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        _training.TASKS, "lorenz96", dataclasses.replace(TASKS["lorenz96"], epochs=2)
    )
    (params, _), *_ = _training.configurations("lorenz96", 1, None)
    first, second = (_training.train("lorenz96", 0, params, None) for _ in range(2))
    assert (first.losses, first.readouts) == (second.losses, second.readouts)


def test_spaces_have_a_category_and_something_that_does_not_matter() -> None:
    for name in RECORDABLE:
        (_, distributions), *_ = _training.configurations(name, 1, None)
        kinds = {type(d).__name__ for d in distributions.values()}
        assert "CategoricalDistribution" in kinds
        assert "weight_decay" in distributions


@pytest.mark.slow
def test_the_tables_are_made_and_resumed(tmp_path: Path) -> None:
    args = ["copying", "motion", "--orders", "3", "--ours", "3", "--ablations", "3"]
    args += ["--jobs", "2", "--output", str(tmp_path)]
    done = CliRunner().invoke(judge, args)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "tables.md").read_text()
    for heading in (
        "spent and found",
        "winner is found",
        "that pruned",
        "each kind of evidence",
        "decision costs",
    ):
        assert heading in text
    assert text.count("MedianPruner") >= 2
    assert (tmp_path / "replay.html").stat().st_size > 10_000
    replays = (tmp_path / "replays.jsonl").read_text()
    assert CliRunner().invoke(judge, args).exit_code == 0
    assert (tmp_path / "replays.jsonl").read_text() == replays
