"""The paper's studies: each runs from one command, goes on, and computes what it says."""

import hashlib
import math
import random

import numpy as np
import optuna
import pytest
import torch
from click.testing import CliRunner
from optuna.trial import TrialState

from lyap_optuna.data import _files, _mocap, streams
from studies.charrnn import __main__ as charrnn
from studies.charrnn import task as characters
from studies.convergence import __main__ as convergence
from studies.cost import __main__ as cost
from studies.hyperopt import __main__ as hyperopt
from studies.mocap import __main__ as mocap
from studies.mocap import task as motion
from studies.regimes import __main__ as regimes
from studies.spectrum_statistics import __main__ as spectrum_statistics
from studies.spectrum_statistics.statistics import rank_correlation


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    """60,000 characters of made words."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(1, 8))) for _ in range(200)]
    file = tmp_path_factory.mktemp("text") / "made.txt"
    file.write_text(" ".join(rng.choices(words, k=20_000))[:60_000])
    return file


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    """A folder like that of the real recordings, with two made ones."""
    known = {}
    for name in ("walking_1", "walking_2"):
        path = f"train/walking/{name}.txt"
        t = np.arange(700)[:, None] / np.linspace(5, 60, 22)
        lines = (",".join(map(str, row)) for row in np.sin(t + len(known)).round(6))
        content = "\n".join(lines).encode()
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
        known[path] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(_mocap, "_registry", lambda: known)
    return tmp_path


def run(study, *options):
    """Run a study's command at the size of seconds; return what it prints."""
    threads = torch.get_num_threads()
    try:
        arguments = ["--scale", "tiny", *map(str, options)]
        result = CliRunner().invoke(study.main, arguments, catch_exceptions=False)
    finally:
        torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    return result.output


def trials(database, name):
    study = optuna.load_study(storage=f"sqlite:///{database}", study_name=name)
    return study.get_trials(deepcopy=False)


def pages(folder):
    return {path.stem for path in folder.glob("*.html") if "Plotly.newPlot" in path.read_text()}


# Each from its command ------------------------------------------------------------------------


@pytest.mark.slow
def test_regimes_runs_and_goes_on(tmp_path):
    printed = run(regimes, "--output", tmp_path)
    by_gain = {t.params["gain"]: t.value for t in trials(tmp_path / "regimes.db", "regimes-tiny")}
    stable, marginal, chaotic = (by_gain[gain] for gain in sorted(by_gain))
    low, high = regimes.MARGINAL
    assert stable < low < marginal < high < 0 < chaotic
    assert pages(tmp_path) == {"regimes"}
    again = run(regimes, "--output", tmp_path)
    assert again == printed  # measured once, read back
    assert len(trials(tmp_path / "regimes.db", "regimes-tiny")) == 3


@pytest.mark.slow
def test_convergence_runs_and_goes_on(tmp_path, text_file):
    printed = run(convergence, "--text", text_file, "--output", tmp_path)
    done = trials(tmp_path / "convergence.db", "convergence-tiny-made")
    assert {t.state for t in done} == {TrialState.COMPLETE}
    assert len(done) == len(convergence.WARMUPS) + len(convergence.INTERVALS) - 1
    assert pages(tmp_path) == {"convergence"}
    weights = tmp_path / "convergence-tiny-made.pt"
    trained = weights.read_bytes()
    again = run(convergence, "--text", text_file, "--output", tmp_path)
    assert again.splitlines()[-12:] == printed.splitlines()[-12:]
    assert weights.read_bytes() == trained
    assert len(trials(tmp_path / "convergence.db", "convergence-tiny-made")) == len(done)


@pytest.mark.slow
def test_both_tasks_run_and_their_databases_give_the_statistics(tmp_path, text_file, recordings):
    output = tmp_path / "output"
    run(charrnn, "--text", text_file, "--output", output, "--jobs", 2)
    run(mocap, "--data", recordings, "--output", output, "--jobs", 2)
    expected = {"charrnn-tiny-made": 6, "charrnn-tiny-made-evolution": 2}
    for name, count in expected.items():
        done = trials(output / "charrnn.db", name)
        assert [t.state for t in done] == [TrialState.COMPLETE] * count
        for trial in done:
            assert [*trial.intermediate_values] == [1, 2, 3]
            assert trial.value == min(trial.intermediate_values.values())
            assert sorted(trial.user_attrs["lyapunov:readouts"]) == ["0", "1", "2", "3"]
    moved = [t.params["p"] for t in trials(output / "mocap.db", "mocap-tiny")]
    assert sorted(moved) == pytest.approx(np.linspace(0.05, 0.5, 6))
    # One is taken away, as if it had been interrupted.
    study = optuna.load_study(storage=f"sqlite:///{output / 'mocap.db'}", study_name="mocap-tiny")
    study.enqueue_trial({"p": 0.05})
    study.ask()
    run(mocap, "--data", recordings, "--output", output)
    states = [t.state for t in trials(output / "mocap.db", "mocap-tiny")]
    assert states == [TrialState.COMPLETE] * 6 + [TrialState.FAIL]

    with pytest.raises(AssertionError, match="no finished study 'charrnn-tiny': run python -m"):
        run(spectrum_statistics, "--output", output)
    printed = run(spectrum_statistics, "--output", output, "--charrnn", "charrnn-tiny-made")
    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 8
    assert pages(output) == {
        "charrnn",
        "charrnn-evolution",
        "mocap",
        "spectrum_statistics",
        "spectrum_statistics-correlations",
    }


@pytest.mark.slow
def test_cost_runs_and_goes_on(tmp_path):
    printed = run(cost, "--output", tmp_path)
    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 2 * (1 + len(cost.WORK))
    assert run(cost, "--output", tmp_path) == printed
    assert len(trials(tmp_path / "cost.db", "cost-tiny")) == 2 * len(cost.WORK)
    assert pages(tmp_path) == {"cost"}


@pytest.mark.parametrize(
    ("study", "file"),
    [(charrnn, "war_and_peace.txt"), (convergence, "war_and_peace.txt"), (mocap, "cmu_mocap")],
)
def test_without_data_the_command_says_what_is_missing(tmp_path, monkeypatch, study, file):
    monkeypatch.delenv(_files.ENVIRONMENT, raising=False)
    options = ["--data", str(tmp_path), "--output", str(tmp_path / "output")]
    result = CliRunner().invoke(study.main, options)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert file in result.output
    assert "https://" in result.output
    assert not (tmp_path / "output").exists()


@pytest.mark.slow
def test_an_estimate_trains_nothing(tmp_path, text_file, recordings):
    output = tmp_path / "output"
    for study, data in ((charrnn, ("--text", text_file)), (mocap, ("--data", recordings))):
        assert "2 at a time" in run(study, *data, "--output", output, "--jobs", 2, "--estimate")
    assert not output.exists()


# What they compute ----------------------------------------------------------------------------


def test_the_network_of_regimes_is_what_the_paper_says():
    rnn = regimes.make_network(1.5, 8)
    v, u = rnn.weight_hh_l0.detach(), rnn.weight_ih_l0.detach()
    assert torch.allclose(v @ v.T, 1.5**2 * torch.eye(8), atol=1e-5)
    assert torch.equal(u, torch.eye(8))
    assert torch.allclose(regimes.make_network(3.0, 8).weight_hh_l0, 2 * v)
    inputs, h0 = regimes.make_inputs(regimes.Scale(8, 4_000))
    assert float(inputs.var()) == pytest.approx(0.6, rel=0.05)
    assert len(torch.unique(inputs[:, 0], dim=0)) == 2
    assert len(torch.unique(h0[0], dim=0)) == 10


def test_spread_is_zero_where_initial_conditions_agree():
    states = torch.randn(2, 1, 5, 3).expand(2, 10, 5, 3).reshape(20, 5, 3).clone()
    assert float(regimes.spread(states).abs().max()) < 1e-7
    states[:10, 2] = torch.arange(10.0)[:, None]
    spread = regimes.spread(states)
    assert spread.shape == (2, 5)
    assert float(spread[0, 2]) == pytest.approx(math.sqrt(8.25))  # of 0 to 9
    assert float(spread[1].abs().max()) < 1e-7


def test_validation_with_a_state_carried_over_is_that_of_one_long_sequence():
    model = characters.CharRNN(5, 7, p=0.5, dropout=0.3, seed=0)
    codes = torch.randint(5, (121,), generator=torch.Generator().manual_seed(1))
    in_parts = characters.validate(model, streams(codes, 2, 10))
    at_once = characters.validate(model, streams(codes, 2, 60))
    assert in_parts == pytest.approx(at_once, rel=1e-6)


def test_weights_start_within_p_and_dropout_is_the_networks_own():
    models = [characters.CharRNN(5, 64, p=0.04, dropout=0.5, seed=3) for _ in range(2)]
    weights = torch.cat([w.flatten() for w in models[0].lstm.parameters()]).detach()
    assert 0.039 < float(weights.abs().max()) <= 0.04
    assert models[0].lstm.bias is False
    codes = torch.zeros(2, 3, dtype=torch.long)
    first = models[0].train()(codes)[0]
    torch.rand(10)  # as another trial may do in another thread
    second = models[1].train()(codes)[0]
    assert torch.equal(first, second)
    assert not torch.equal(first, models[0](codes)[0])
    assert torch.equal(models[0].eval()(codes)[0], models[1].eval()(codes)[0])


def test_the_learning_rate_falls_after_the_tenth_epoch(text_file, monkeypatch):
    rates = []

    def train(model, optimizer, batches):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()

    monkeypatch.setattr(characters, "train", train)
    scale = characters.Scale(4, 2, 20, 1, 13, 1, 1, ())
    text = charrnn.load_text(text_file)
    trial = optuna.trial.FixedTrial({"p": 0.1, "dropout": 0.0, "lr": 0.01})
    characters.objective(trial, text, scale)
    assert rates == pytest.approx([0.01] * 10 + [0.01 * 0.95**n for n in (1, 2, 3)])


def test_changes_of_a_spectrum_that_settles_as_one_over_t():
    final = np.linspace(0, -2, 50)
    sums = {t: final - 1 / math.sqrt(t) for t in range(1, 200)}
    changes = charrnn.successive_changes(sums)
    slope = np.polyfit(np.log(np.arange(50, 198)), np.log(changes[49:197]), 1)[0]
    assert slope == pytest.approx(-3, abs=0.05)  # (d/dt of t^-1/2)^2


def test_float32_resolves_what_an_interval_leaves_above_its_epsilon():
    exponents = np.linspace(0, -10, 101)
    assert convergence.reach(exponents, 1) == 101
    assert convergence.reach(exponents, 2) == 80  # log(2^-23) / 2 = -7.97
    assert convergence.reach(exponents, 20) == 8


def test_the_motion_loss_is_that_of_all_windows():
    model = motion.Predictor(3, 5, 0.2, torch.Generator().manual_seed(0))
    windows = torch.randn(600, 26, 3, generator=torch.Generator().manual_seed(1))
    assert motion.validate(model, windows) == pytest.approx(motion.error(model, windows).item())
    weights = torch.cat(
        [w.flatten() for n, w in model.lstm.named_parameters() if "weight" in n]
    ).detach()
    assert 0.15 < float(weights.abs().max()) <= 0.2


def test_rank_correlation_and_its_interval():
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    rho, low, high = rank_correlation(x, x**3)
    assert (rho, low, high) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    rho, low, high = rank_correlation(x, x + 2 * rng.normal(size=40))
    assert -1 < low < rho < high < 1
    assert 0.4 < high - low < 0.9  # 2 * 1.96 / sqrt(39) is 0.63
    assert math.isnan(rank_correlation([1, 1, 1], [1, 2, 3]).rho)


@pytest.mark.slow
def test_hyperopt_compares_pruners_on_both_tasks(tmp_path, text_file, recordings):
    options = ("--data", recordings, "--text", text_file, "--output", tmp_path, "--jobs", 1)
    printed = run(hyperopt, *options)
    assert printed.count("LyapunovPruner") == 2
    for task in ("charrnn", "mocap"):
        found = trials(tmp_path / "hyperopt.db", f"hyperopt-{task}-tiny")
        assert [t.state for t in found] == [TrialState.COMPLETE] * 12
    assert pages(tmp_path) == {"hyperopt-charrnn", "hyperopt-mocap"}
    replays = (tmp_path / "hyperopt.jsonl").read_text()
    assert run(hyperopt, *options).count("100%") == printed.count("100%")
    assert (tmp_path / "hyperopt.jsonl").read_text() == replays
