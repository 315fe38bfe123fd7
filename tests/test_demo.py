"""The demo: its data, its study, its interruption and its continuation."""

import re
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import torch
from click.testing import CliRunner, Result
from optuna.trial import TrialState

from lyap_optuna import demo
from lyap_optuna.cli import main
from lyap_optuna.cli._demo import _SEARCHES, comparison
from lyap_optuna.records import read_readouts


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Train on a few short sequences."""
    whole = demo.load_digits(blank_steps=6)
    small = demo.Digits(
        whole.train_x[:128], whole.train_y[:128], whole.valid_x[:64], whole.valid_y[:64]
    )
    monkeypatch.setattr(demo, "load_digits", lambda: small)
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def _demo(folder: Path, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["demo", "--output", str(folder), *arguments])
    assert result.exit_code == code, result.output
    return result


MEDIAN, SEARCH = _SEARCHES.values()


def _load(folder: Path, name: str = SEARCH) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/study.db")


def _spent(study: optuna.Study) -> int:
    return sum(len(trial.intermediate_values) for trial in study.trials)


def test_the_digits_are_the_real_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    digits = demo.load_digits()
    assert len(digits.train_x) + len(digits.valid_x) == 1797
    assert digits.train_x.shape[1:] == (64, 8)
    assert float(digits.train_x[:, 8:].abs().max()) == 0.0
    assert float(digits.train_x.max()) == 1.0
    assert sorted(set(digits.valid_y.tolist())) == list(range(10))
    # No image is in both parts: sklearn's are all different.
    images = torch.cat([digits.train_x, digits.valid_x]).flatten(1)
    assert len(torch.unique(images, dim=0)) == 1797


@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
def test_the_gate_bias_goes_to_the_gate_that_holds_the_state(cell: str) -> None:
    # With the gate open wide, what the state holds survives blank steps.
    torch.manual_seed(0)
    kept = {}
    for gate_bias in (0.0, 12.0):
        model = demo.Classifier(cell, 6, weight_scale=0.1, gate_bias=gate_bias, dropout=0.0)
        start = torch.full((1, 1, 6), 0.5)
        initial = start if cell == "GRU" else (torch.zeros_like(start), start)
        _, final = model.recurrent(torch.zeros(1, 30, 8), initial)
        held = final if cell == "GRU" else final[1]
        kept[gate_bias] = float((held / start).detach().mean())
    assert kept[0.0] < 0.2
    assert kept[12.0] > 0.8


def test_the_objective_reports_and_measures(tmp_path: Path) -> None:
    study = demo.create_study(None)
    study.optimize(lambda trial: demo.objective(trial, demo.load_digits(), epochs=2), n_trials=1)
    trial = study.trials[0]
    assert sorted(trial.intermediate_values) == [1, 2]
    assert trial.value == trial.intermediate_values[2]
    readouts = read_readouts(trial)
    assert sorted(readouts) == [0, 1, 2]
    assert all(len(readout.quantiles or ()) == 32 for readout in readouts.values())
    assert 0.0 <= trial.user_attrs["accuracy"] <= 1.0


def test_a_demo_from_start_to_page(tmp_path: Path) -> None:
    result = _demo(tmp_path / "out", "--budget", "8", "--epochs", "2")
    for name in (MEDIAN, SEARCH):  # the first four trials of each run to their end
        trials = _load(tmp_path / "out", name).trials
        assert [t.state for t in trials] == [TrialState.COMPLETE] * 4
    # Same seed, same trials: neither search is the better one here.
    told = "MedianPruner and freeze_thaw found networks of the same loss, "
    assert told in " ".join(result.output.split())  # wrapped as wide as the terminal is
    assert "lyap-optuna dashboard --storage sqlite:///" in result.output
    html = (tmp_path / "out" / "report.html").read_text()
    assert told in html
    assert "he exponents" in result.output.split("What predicts the final loss")[1]
    study = _load(tmp_path / "out")
    assert re.search(rf"^\s*1\s+{study.best_trial.number}\s+COMPLETE", result.output, re.MULTILINE)


@pytest.mark.parametrize("budget", [1, 26])
def test_both_searches_spend_the_budget_and_no_more(tmp_path: Path, budget: int) -> None:
    output = _demo(tmp_path, "--budget", str(budget), "--epochs", "3").output
    for name in (MEDIAN, SEARCH):
        study = _load(tmp_path, name)
        assert _spent(study) == budget
        assert all(t.state.is_finished() for t in study.trials)
        assert len(study.trials) > budget // 3
    assert ("Too few trials ran to the end to compare the searches" in output) == (budget < 3)


def test_the_same_seed_gives_the_same_studies(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        _demo(tmp_path / folder, "--budget", "12", "--epochs", "2", "--seed", "3")
    for name in (MEDIAN, SEARCH):
        first, second = (_load(tmp_path / folder, name).trials for folder in ("a", "b"))
        assert [t.params for t in first] == [t.params for t in second]
        assert [t.values for t in first] == [t.values for t in second]
        assert [read_readouts(t) for t in first] == [read_readouts(t) for t in second]


@pytest.mark.parametrize(("at", "name", "spent"), [(4, MEDIAN, (3, 0)), (10, SEARCH, (6, 3))])
def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, name: str, spent: tuple[int, int]
) -> None:
    calls = 0
    train = demo.train_one_epoch

    def interrupted_once(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        train(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(demo, "train_one_epoch", interrupted_once)
    arguments = ("--budget", "6", "--epochs", "2")
    result = _demo(tmp_path, *arguments, code=130)
    assert f"Stopped after {spent[0]} and {spent[1]} of 6 epochs" in result.output
    assert "Traceback" not in result.output
    assert "To go on with it, run the same command again." in result.output
    assert [t.state for t in _load(tmp_path, name).trials] == [TrialState.COMPLETE, TrialState.FAIL]
    assert not (tmp_path / "report.html").exists()

    again = _demo(tmp_path, *arguments)
    assert "6 epochs (3 of them are there already)" in again.output
    trials = _load(tmp_path, name).trials
    assert _spent(_load(tmp_path, name)) == 6
    assert all(t.state.is_finished() for t in trials)
    # The sampler does not begin anew with the parameters it has already tried.
    assert len({str(t.params) for t in trials}) == len(trials)


def test_an_interrupt_while_pruning_leaves_no_running_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("optuna.study.Study._log_completed_trial", interrupted)
    _demo(tmp_path, "--budget", "2", "--epochs", "2", code=130)
    assert not _load(tmp_path, MEDIAN).get_trials(states=(TrialState.RUNNING,))


def test_a_finished_demo_only_reports(tmp_path: Path) -> None:
    arguments = ("--budget", "4", "--epochs", "2")
    _demo(tmp_path, *arguments)
    assert _demo(tmp_path, *arguments).output.count("nothing to train") == 2
    assert len(_load(tmp_path).trials) == 2


def test_other_epochs_need_another_file(tmp_path: Path) -> None:
    _demo(tmp_path, "--budget", "2", "--epochs", "2")
    output = _demo(tmp_path, "--budget", "6", "--epochs", "3", code=1).output
    assert "--epochs 2" in output
    assert len(_load(tmp_path).trials) == 1


@pytest.mark.parametrize("name", [MEDIAN, SEARCH])
def test_a_study_of_someone_else_is_left_alone(tmp_path: Path, name: str) -> None:
    study = optuna.create_study(study_name=name, storage=f"sqlite:///{tmp_path}/study.db")
    study.add_trial(optuna.create_trial(value=1.0))
    _demo(tmp_path, "--budget", "2", "--epochs", "2", code=1)
    assert len(study.trials) == 1
    assert study.user_attrs == {}


def test_thread_count_and_verbosity_are_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads(), optuna.logging.get_verbosity()
    _demo(tmp_path, "--budget", "2", "--epochs", "2")
    assert (torch.get_num_threads(), optuna.logging.get_verbosity()) == before


@pytest.mark.parametrize("option", ["--budget", "--epochs"])
def test_options_must_be_positive(option: str, tmp_path: Path) -> None:
    assert option in _demo(tmp_path / "out", option, "0", code=2).output
    assert not (tmp_path / "out").exists()


def test_the_comparison_counts_what_was_spent_and_takes_complete_trials_alone() -> None:
    study = optuna.create_study()
    for value in (1.5, 0.5):
        trial = optuna.create_trial(
            value=value, intermediate_values={1: 9.0, 2: value}, user_attrs={"accuracy": 0.875}
        )
        study.add_trial(trial)
    study.add_trial(optuna.create_trial(state=TrialState.PRUNED, intermediate_values={1: -0.5}))
    (row,) = comparison({"a": study})
    assert (row["trials"], row["complete"], row["epochs"], row["best"]) == (3, 2, 5, 0.5)
    assert row["accuracy"] == "87.5%"
