"""The figure of one trial's story shows what was recorded, and the command writes it."""

from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner

import lyap_optuna as lyap
from lyap_optuna.cli import main
from lyap_optuna.records import read_decisions
from lyap_optuna.visualization import plot_explanation


def pruned_study(storage: str | None = None) -> tuple[optuna.Study, optuna.trial.FrozenTrial]:
    study = optuna.create_study(
        storage=storage,
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=lyap.LyapunovPruner(),
    )

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0.1, 1.0)
        for step in range(1, 7):
            trial.report(x + 1 / step, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return x

    study.optimize(objective, n_trials=40)
    for trial in study.get_trials(states=[optuna.trial.TrialState.PRUNED]):
        last = read_decisions(trial)[-1]
        if last.lower is not None and last.upper is not None and last.lower < last.upper:
            return study, trial
    raise AssertionError("no pruned trial with a closed interval")


def test_it_shows_the_recorded_decisions() -> None:
    study, trial = pruned_study()
    figure = plot_explanation(study, trial.number)
    last = read_decisions(trial)[-1]
    by_name = {trace.name: trace for trace in figure.data}
    crosses = by_name["predicted final value, 80 % interval: pruned"]
    assert list(crosses.x) == [last.step]
    assert list(crosses.y) == [last.predicted_value]
    assert crosses.y[0] + crosses.error_y.array[0] == pytest.approx(last.upper)
    assert crosses.y[0] - crosses.error_y.arrayminus[0] == pytest.approx(last.lower)
    assert last.threshold in by_name["threshold of the best then"].y
    assert list(by_name["reported"].y) == list(trial.intermediate_values.values())
    assert "loss" in figure.layout.title.text


@pytest.mark.parametrize("reports", [0, 2])
def test_what_was_decided_before_training_is_said_to_be(
    reports: int, caplog: pytest.LogCaptureFixture
) -> None:
    study, _ = pruned_study()
    study.enqueue_trial({"x": 1.0 if reports == 0 else 0.1})
    trial = study.ask({"x": optuna.distributions.FloatDistribution(0.1, 1.0)})
    trial.set_user_attr("lyapunov:readouts", {"-1": {"max": 0.1, "mean": -1.0}})
    assert trial.should_prune() == (reports == 0)
    for step in range(1, 1 + reports):
        trial.report(0.1 + 1 / step, step)
        trial.should_prune()
    figure = plot_explanation(study, trial.number)
    ticks = zip(figure.layout.xaxis.tickvals, figure.layout.xaxis.ticktext, strict=True)
    expected = ["before training", *(str(step) for step in range(1, 1 + reports))]
    assert list(ticks) == list(zip([-1, 1, 2][: 1 + reports], expected, strict=True))
    assert "reported nothing" not in caplog.text
    explanation = lyap.explain(study, trial.number)
    story = str(explanation)
    row = explanation.table()[0]
    assert (row["step"], row["verdict"]) == ("before", "pruned" if reports == 0 else "kept")
    assert row["predicted"]
    assert "step -1" not in story


def test_a_trial_without_a_decision_is_judged_now() -> None:
    study, _ = pruned_study()
    figure = plot_explanation(study, 0)
    assert any("kept" in (trace.name or "") for trace in figure.data)
    assert any(trace.name == "final value" for trace in figure.data)
    with pytest.raises(ValueError, match="no trial 99"):
        plot_explanation(study, 99)


def test_the_command_writes_it(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    _, trial = pruned_study(storage)
    file = tmp_path / "story.html"
    done = CliRunner().invoke(
        main,
        ["explain", "--storage", storage, "--trial-number", str(trial.number), "--plot", str(file)],
    )
    assert done.exit_code == 0, done.output
    assert f"Trial {trial.number} was pruned at step" in done.output
    assert f"Trial {trial.number} was pruned at step" in file.read_text()
