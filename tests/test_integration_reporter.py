"""What the callbacks of all frameworks share."""

import copy
import logging
import pickle
import threading
from collections import namedtuple

import optuna
import pytest
import torch
from _frameworks import Last, ask, make_data
from optuna.trial import TrialState
from torch import nn

import lyap_optuna as lyap
from lyap_optuna.integration import _reporter
from lyap_optuna.integration._first_call import first_sequences
from lyap_optuna.integration._reporter import TrialReporter
from lyap_optuna.integration._trial import TrialSource, running_trial

X, Y = make_data()


class Step(nn.Module):
    """A training step that calls a part of it, with whatever of a batch it takes."""

    def __init__(self, pick=lambda batch: batch[0]):
        super().__init__()
        self.network = Last()
        self.pick = pick

    def train_on(self, batch):
        return self.network(self.pick(batch))


Batch = namedtuple("Batch", ["past", "future"])


@pytest.mark.parametrize(
    ("batch", "pick"),
    [
        ((X, Y), lambda batch: batch[0]),
        ((Y, X), lambda batch: batch[1]),
        (({"past": X, "target": Y}, Y), lambda batch: batch[0]["past"]),
        (Batch(X, Y), lambda batch: batch.past),
        ({"temporal": X.mT}, lambda batch: batch["temporal"].mT),
    ],
    ids=["pair", "reversed", "dict and target", "named", "windows"],
)
def test_whatever_a_batch_holds_what_reaches_the_network_is_measured(batch, pick):
    model, trial = Step(pick), ask()
    truth = lyap.lyapunov_readout(model.network, X[:10])
    reporter = TrialReporter(trial, None, {})
    reporter.begin(model, batch, untrained=True)
    model.train_on(batch)
    assert not any(module._forward_pre_hooks for module in model.modules())
    reporter.report(0.5, 0, last=True)
    stored = trial.study.trials[0].user_attrs["lyapunov:readouts"]
    assert list(stored) == ["-1", "0"]
    assert stored["-1"]["max"] == pytest.approx(truth.max, rel=1e-4)
    assert stored["-1"]["mean"] == pytest.approx(truth.mean, rel=1e-4)


def test_what_is_measured_is_told_once(caplog, monkeypatch):
    monkeypatch.setattr(_reporter, "_said", set())
    with caplog.at_level(logging.INFO, "lyap_optuna"):
        monkeypatch.setattr(logging.getLogger("lyap_optuna"), "parent", logging.getLogger())
        for _ in range(2):
            model = Step()
            TrialReporter(ask(), None, {}).begin(model, None, untrained=True)
            model.train_on((X, Y))
    assert [record.message for record in caplog.records] == [
        "Exponents are measured on what the first training step gives network (Last): (10, 12, 2)."
    ]


def test_a_layer_is_named_as_in_the_model():
    for layer in ("network.recurrent", ["network"], None):
        model, trial = Step(), ask()
        reporter = TrialReporter(trial, None, {"layer": layer, "strict": True})
        reporter.begin(model, (X, Y), untrained=True)
        model.train_on((X, Y))
        reporter.report(0.5, 0, last=True)
        assert list(trial.study.trials[0].user_attrs["lyapunov:readouts"]) == ["-1", "0"]


def test_where_a_model_cannot_be_measured_its_one_recurrent_layer_is():
    class Decoder(nn.Module):
        """Encodes packed sequences and goes on from there: single steps cannot be told."""

        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(2, 5, batch_first=True)

        def forward(self, x):
            lengths = torch.full((len(x),), x.shape[1])
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            state = self.rnn(packed)[1]
            return self.rnn(packed, state)[1]

    model, trial = Decoder(), ask()
    packed = nn.utils.rnn.pack_padded_sequence(X, torch.full((len(X),), 12), batch_first=True)
    truth = lyap.lyapunov_readout(model.rnn, packed)
    TrialReporter(trial, None, {}).begin(model, None, untrained=True)
    model(X)
    stored = trial.study.trials[0].user_attrs["lyapunov:readouts"]
    assert stored["-1"]["max"] == pytest.approx(truth.max, rel=1e-4)


def test_a_training_step_that_calls_nothing_is_a_warning_and_the_trial_goes_on():
    trial = ask()
    reporter = TrialReporter(trial, None, {})
    reporter.begin(Last(), (X, Y), untrained=True)
    with pytest.warns(lyap.LyapunovWarning, match=r"No training step has called GRU .* inputs="):
        assert not reporter.report(0.5, 0, last=True)
    assert not reporter.report(0.4, 1, last=True)
    stored = trial.study.trials[0]
    assert stored.intermediate_values == {0: 0.5, 1: 0.4}
    assert "No training step has called GRU" in stored.user_attrs["lyapunov:failures"]["-1"]
    strict = TrialReporter(ask(), None, {"strict": True})
    strict.begin(Last(), (X, Y), untrained=True)
    with pytest.raises(ValueError, match="No training step has called GRU"):
        strict.report(0.5, 0, last=True)


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_first_sequences_of_several_layers(batch_first):
    layers = nn.ModuleList([nn.GRU(2, 3, batch_first=True), nn.LSTM(3, 3, batch_first=batch_first)])
    assert len(first_sequences(X, layers)) == (10 if batch_first else len(X))
    taken = first_sequences({"x": X, "mask": None, "target": Y}, layers, layers[0])
    assert len(taken["x"]) == len(taken["target"]) == 10
    assert first_sequences((X, torch.zeros(1, 48, 3)), layers, layers[0])[0] is X
    packed = nn.utils.rnn.pack_sequence([torch.zeros(3, 2)])
    assert first_sequences((packed,), layers)[0] is packed


def test_what_is_no_trial_and_what_is_no_counting_is_refused():
    with pytest.raises(ValueError, match=r"trial must be a trial of Optuna.* got int"):
        TrialReporter(3, None, {})
    with pytest.raises(ValueError, match=r"one of \('epoch', .* got 'batch'"):
        TrialReporter(ask(), None, {}, counting="batch")


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))]
)
@pytest.mark.parametrize("database", [False, True])
def test_copies_report_to_the_same_trial_and_measure_their_own_network(again, database, tmp_path):
    trial = ask(storage=f"sqlite:///{tmp_path / 'study.db'}" if database else None)
    first = TrialReporter(trial, X[:10], {})
    reporter = again(first)
    model = Last()
    reporter.begin(model, None, untrained=True)
    reporter.report(0.5, 0, last=True)
    stored = trial.study.trials[0]
    assert stored.intermediate_values == {0: 0.5}
    assert list(stored.user_attrs["lyapunov:readouts"]) == ["-1", "0"]
    assert reporter.trial is trial
    assert reporter.measures(model)
    assert not again(reporter).measures(model)


def test_in_another_process_the_trial_is_found_in_its_storage_or_missed(tmp_path, monkeypatch):
    held = ask(storage=f"sqlite:///{tmp_path / 'study.db'}")
    told = [pickle.dumps(TrialSource(trial)) for trial in (held, ask())]
    monkeypatch.setattr("lyap_optuna.integration._trial.os.getpid", lambda: -1)
    reached, lost = map(pickle.loads, told)
    reached.find().report(0.5, 0)
    assert held.study.trials[0].intermediate_values == {0: 0.5}
    with pytest.raises(ValueError, match="another, which cannot reach InMemoryStorage"):
        lost.find()


def test_the_running_trial_of_a_study_is_the_one_of_this_thread():
    study = optuna.create_study()
    together = threading.Barrier(2, timeout=60)

    def objective(trial):
        together.wait()
        found = running_trial(study)
        together.wait()
        return float(found is trial)

    study.optimize(objective, n_trials=2, n_jobs=2)
    assert [trial.value for trial in study.trials] == [1.0, 1.0]


def test_a_study_whose_trial_is_asked_for_elsewhere():
    study = optuna.create_study()
    with pytest.raises(ValueError, match="no trial is running"):
        running_trial(study)
    numbers = [study.ask().number]
    assert running_trial(study).number == 0
    numbers.append(study.ask().number)
    with pytest.raises(ValueError, match="2 trials are running"):
        running_trial(study)


def swallow(study, prune_at, epochs):
    """A training that catches the exception, and one that goes on all the same."""

    def objective(trial):
        reporter = TrialReporter(trial, X[:10], {})
        reporter.begin(Last(), None, untrained=True)
        for epoch in range(epochs):
            value = 1.0 / (epoch + 1 + trial.number)
            if reporter.report(value, epoch, last=epoch == 5) and epoch == prune_at:
                break
        return value

    study.optimize(objective, n_trials=1)


class Scripted(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        return trial.number in (1, 2) and trial.last_step == 2


def test_a_trial_whose_pruning_was_swallowed_teaches_nothing_unless_it_trained_on(tmp_path):
    for storage in (None, f"sqlite:///{tmp_path / 'study.db'}"):
        study = optuna.create_study(pruner=Scripted(), storage=storage)
        for prune_at in (None, 2, None):
            swallow(study, prune_at, 6)
        assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 3
        assert [len(t.intermediate_values) for t in study.trials] == [6, 3, 6]
        with pytest.warns(lyap.LyapunovWarning, match="Trial 1 is COMPLETE, but was pruned at st"):
            ranked = lyap.rank_trials(study)
        assert {p.number: p.value is None for p in ranked} == {0: False, 1: True, 2: False}
        with pytest.warns(lyap.LyapunovWarning, match="Trial 1 is COMPLETE"):
            told = [str(lyap.explain(study, number)) for number in (1, 2)]
        assert ["cut short" in story for story in told] == [True, False]
        with pytest.warns(lyap.LyapunovWarning) as told:
            lyap.prediction_skill(study)
        assert len(told) == 1


def test_trials_that_count_differently_are_not_mixed_silently():
    study = optuna.create_study()

    def objective(trial):
        counting = "validation" if trial.number < 2 else "global_step"
        reporter = TrialReporter(trial, X[:10], {}, counting=counting)
        reporter.begin(Last(), None, untrained=True)
        for n in range(1, 4):
            step = reporter.step(epoch=0, update=10 * n, once=False)
            reporter.report(1 / (n + trial.number), step, last=False)
        return 1 / (3 + trial.number)

    study.optimize(objective, n_trials=3)
    assert [list(t.intermediate_values) for t in study.trials[1:]] == [[0, 1, 2], [10, 20, 30]]
    assert [list(t.user_attrs["lyapunov:readouts"]) for t in study.trials[1:]] == [
        ["-1", "0", "1", "2"],
        ["9", "10", "20", "30"],
    ]
    said = r"\(1 of 'global_step', 2 of 'validation'\).*the reports by 'validation' are used"
    with pytest.warns(lyap.LyapunovWarning, match=said):
        steps = {skill.step for skill in lyap.prediction_skill(study)}
    assert steps == {0, 1, 2}
