"""Cross-validation within a trial: each fold's network is compared with itself alone."""

import optuna
import pytest
import torch
from _frameworks import Last, ask, make_data
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lyap_optuna as lyap
from lyap_optuna.integration._reporter import TrialReporter
from lyap_optuna.prediction.evidence import EVIDENCE, TrialView
from lyap_optuna.records import ReadoutRecord, read_readouts

X, _ = make_data()
EPOCHS = 3


def networks(layers=1):
    for seed in range(3):
        torch.manual_seed(seed)
        if layers == 1:
            yield nn.GRU(2, 5, batch_first=True)
        else:
            yield nn.Sequential(Taken(2), Taken(5))


class Taken(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.rnn = nn.GRU(inputs, 5, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0]


def train(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)


def validate(step_of, layers=1, **options):
    trial = ask()
    probe, measured = None, {}
    for fold, model in enumerate(networks(layers)):
        if probe is None:
            probe = lyap.LyapunovProbe(model, X[:10], trial=trial, **options)
        else:
            probe.restart(model)
        before = lyap.lyapunov_readout(model, X[:10])
        for epoch in range(EPOCHS):
            train(model)
            if (step := step_of(fold, epoch)) is not None:
                probe.report(trial, 1 / (step + 1), step)
                if step not in measured:
                    measured[step] = before, lyap.lyapunov_readout(model, X[:10])
    return trial.study.trials[0], measured


@pytest.mark.parametrize(
    "step_of",
    [
        lambda fold, epoch: fold * EPOCHS + epoch,
        lambda fold, epoch: fold if epoch == EPOCHS - 1 else None,
        lambda fold, epoch: epoch,
    ],
    ids=["running", "fold", "repeated"],
)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.filterwarnings("ignore:The reported value is ignored")
def test_a_displacement_is_that_of_the_folds_own_network(step_of, layers):
    trial, measured = validate(step_of, layers)
    view = TrialView.of(trial, 1)
    assert list(view.readouts) == list(measured)
    for step, (before, now) in measured.items():
        features = EVIDENCE["displacement"].features(view, step)
        assert features["max"] == pytest.approx(now.max - before.max, rel=1e-3, abs=1e-5)
        assert features["mean"] == pytest.approx(now.mean - before.mean, rel=1e-3, abs=1e-5)
        for name, part in now.layers.items() if layers > 1 else ():
            moved = part.max - before.layers[name].max
            assert features[f"{name}:max"] == pytest.approx(moved, rel=1e-3, abs=1e-5)


def test_what_is_stored():
    trial, measured = validate(lambda fold, epoch: fold * EPOCHS + epoch)
    stored = trial.user_attrs["lyapunov:readouts"]
    assert ["baseline" in stored[str(s)] for s in (-1, *measured)] == [False] * 4 + [True] * 6
    assert set(stored["3"]["baseline"]) == {"max", "mean"}
    assert stored["3"]["baseline"] == stored["5"]["baseline"] != stored["6"]["baseline"]
    assert "displaced by" in str(lyap.explain(trial_study(trial), 0))


def trial_study(trial):
    study = optuna.create_study()
    study.add_trial(
        optuna.create_trial(
            value=1.0,
            intermediate_values=trial.intermediate_values,
            user_attrs=trial.user_attrs,
        )
    )
    return study


def test_last_step_counts_from_each_networks_first_report():
    trial, _ = validate(lambda fold, epoch: 10 * fold + epoch, last_step=1)
    assert list(read_readouts(trial)) == [-1, 0, 1, 10, 11, 20, 21]


def test_a_fold_that_cannot_be_measured_costs_a_warning_and_the_next_is_measured():
    trial = ask()
    probe = lyap.LyapunovProbe(next(networks()), X[:10], trial=trial)
    probe.report(trial, 1.0, 0)
    with pytest.warns(lyap.LyapunovWarning, match="contains no recurrent layer"):
        probe.restart(nn.Linear(2, 3))
    probe.report(trial, 0.9, 1)
    probe.restart(next(networks()))
    probe.report(trial, 0.8, 2)
    assert list(read_readouts(trial.study.trials[0])) == [-1, 0, 2]
    with pytest.raises(ValueError, match=r"must be an nn.Module or .* got int"):
        probe.restart(3)
    strict = lyap.LyapunovProbe(next(networks()), X[:10], strict=True)
    with pytest.raises(ValueError, match="contains no recurrent layer"):
        strict.restart(nn.Linear(2, 3))


def test_a_second_probe_says_how_to_go_on():
    trial = ask()
    first, second, _ = networks()
    lyap.LyapunovProbe(first, X[:10], trial=trial).report(trial, 1.0, 0)
    with pytest.warns(lyap.LyapunovWarning, match=r"call restart\(model\) of the first fold"):
        lyap.LyapunovProbe(second, X[:10]).report(trial, 0.9, 1)


def test_a_callback_of_all_folds_restarts_its_probe():
    trial = ask()
    reporter = TrialReporter(trial, None, {}, counting="validation")
    befores = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = Last()
        befores.append(lyap.lyapunov_readout(model, X[:10]).max)
        reporter.begin(model, None, untrained=True)
        model(X)
        for epoch in range(2):
            train(model)
            step = reporter.step(epoch=epoch, update=epoch, once=True)
            reporter.report(1.0, step, last=False)
    readouts = read_readouts(trial.study.trials[0])
    assert list(readouts) == [-1, 0, 1, 2, 3]
    assert readouts[-1].max == pytest.approx(befores[0], rel=1e-4)
    assert [readouts[s].baseline is None for s in (0, 1, 2, 3)] == [True, True, False, False]
    assert readouts[3].baseline.max == pytest.approx(befores[1], rel=1e-4)


numbers = st.floats(-15, 15)


@given(numbers, numbers, st.none() | numbers, st.sampled_from(["hidden", "full"]))
@settings(max_examples=50, deadline=None)
def test_a_baseline_of_its_own_survives_the_database(now, before, mean, state):
    record = ReadoutRecord(max=now, mean=None, state=state)
    record = record.since(ReadoutRecord(max=before, mean=mean, state=state))
    assert ReadoutRecord.from_json(record.to_json()) == record


@pytest.mark.parametrize("broken", [3, [], {}, {"max": "x"}, {"max": float("nan"), "mean": 0.1}])
def test_a_baseline_that_is_none_is_left_out(broken):
    stored = {"max": 0.1, "mean": -0.2, "baseline": broken}
    assert ReadoutRecord.from_json(stored).baseline is None
