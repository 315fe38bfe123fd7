"""The probe: leaves no trace in the training, loses no trial, stores what it says."""

import copy
import csv
import math
import random
import threading
import warnings

import numpy as np
import optuna
import pytest
import torch
from _networks import make_inputs, spectrum_of
from torch import nn

import lyap_optuna as lyap
from lyap_optuna import records

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Classifier(nn.Module):
    """Everything that has state: batch normalisation, dropout, a recurrent layer."""

    def __init__(self, units=6):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.rnn = nn.LSTM(3, units, num_layers=2, dropout=0.3, batch_first=True)
        self.dropout = nn.Dropout(0.4)
        self.out = nn.Linear(units, 2)

    def forward(self, x):
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.out(self.dropout(self.rnn(x)[0][:, -1]))


def train(seed, probed, epochs=3, trial=None, generator=None, **options):
    """Train a small network; return everything that a probe might have changed."""
    draw = {} if generator is None else {"generator": generator}
    if generator is None:
        torch.manual_seed(seed)
    model = Classifier()
    with torch.no_grad():
        weights = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=weights))
    if generator is not None:  # threads share the global generator: no dropout there
        model.dropout.p = model.rnn.dropout = 0.0
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = make_inputs(16, 12, 3, dtype=torch.float32)
    y = (x.sum((1, 2)) > 0).long()
    trial = trial or optuna.trial.FixedTrial({})
    probe = lyap.LyapunovProbe(model, x[:5], **options) if probed else None
    losses = []
    for epoch in range(1, epochs + 1):
        for _ in range(3):
            order = torch.randperm(len(x), **draw)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[order]), y[order])
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
        if probe is not None:
            probe.report(trial, loss.item(), epoch)
            probe.measure()
            probe.record(trial, 100 + epoch)
        else:
            trial.report(loss.item(), epoch)
    return {
        "parameters": {n: p.detach().clone() for n, p in model.named_parameters()},
        "gradients": {n: p.grad.clone() for n, p in model.named_parameters()},
        "buffers": {n: b.clone() for n, b in model.named_buffers()},
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "modes": [m.training for m in model.modules()],
        "losses": losses,
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("options", [{}, {"full_spectrum": True}, {"state": "hidden"}])
def test_training_is_bit_identical_with_and_without_the_probe(options, monkeypatch):
    touched = []
    monkeypatch.setattr(torch, "set_num_threads", lambda n: touched.append(n))
    monkeypatch.setattr(torch, "set_default_dtype", lambda d: touched.append(d))
    results = []
    for probed in (False, True):
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        outcome = train(0, probed, **options)
        outcome["torch"] = torch.get_rng_state()
        outcome["python"] = random.random()
        outcome["numpy"] = float(np.random.rand())  # noqa: NPY002
        results.append(outcome)
    for name in results[0]:
        assert same(results[0][name], results[1][name]), name
    assert touched == []


def test_two_trials_in_threads_train_as_they_do_alone():
    alone = [
        train(seed, False, epochs=6, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 2)
    ]
    torch.manual_seed(9)
    state = torch.get_rng_state()
    for _ in (1, 2):  # building the models draws from the global generator, in any order
        Classifier()
    after_models = torch.get_rng_state()
    torch.set_rng_state(state)
    together = {}

    def run(seed):
        together[seed] = train(seed, True, epochs=6, generator=torch.Generator().manual_seed(seed))

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same(alone[0], together[1])
    assert same(alone[1], together[2])
    assert torch.equal(torch.get_rng_state(), after_models)


def objective_from(first, probe_options=None, epochs=4):
    def objective(trial):
        scale = trial.suggest_float("scale", 0.1, 1.0)
        torch.manual_seed(trial.number)
        model = nn.GRU(3, 8, batch_first=True)
        probe = lyap.LyapunovProbe(
            model, make_inputs(4, 25, 3, dtype=torch.float32), **(probe_options or {})
        )
        for i in range(epochs):
            with torch.no_grad():
                model.weight_hh_l0.mul_(1 + 0.1 * scale)
            probe.report(trial, scale / (i + 1), first + i)
            if trial.should_prune():
                raise optuna.TrialPruned
        return scale / epochs

    return objective


@pytest.mark.parametrize("first", [0, 1])
def test_what_is_stored(first):
    study = optuna.create_study()
    study.optimize(objective_from(first, {"last_step": first + 1}), n_trials=1)
    trial = study.trials[0]
    attrs = trial.user_attrs
    assert list(attrs["lyapunov:readouts"]) == [str(first - 1), str(first), str(first + 1)]
    for readout in attrs["lyapunov:readouts"].values():
        assert set(readout) == {"max", "mean", "max_stderr", "mean_stderr", "state"}
    latest = attrs["lyapunov:readouts"][str(first + 1)]
    assert attrs["lyapunov:max"] == latest["max"]
    assert attrs["lyapunov:mean"] == latest["mean"]
    assert attrs["lyapunov:trial"] == 0
    assert list(trial.intermediate_values) == [first + i for i in range(4)]
    assert records.baseline_step(trial, records.read_readouts(trial)) == first - 1


def test_counting_from_0_or_from_1_gives_the_same_displacement():
    displacements = []
    for first in (0, 1):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        study.optimize(objective_from(first), n_trials=1)
        readouts = records.read_readouts(study.trials[0])
        base = readouts[records.baseline_step(study.trials[0], readouts)]
        displacements.append([readouts[first + i].max - base.max for i in range(3)])
    assert displacements[0] == displacements[1]
    assert displacements[0][0] != 0


def test_no_baseline_no_displacement():
    study = optuna.create_study()
    study.optimize(objective_from(1, {"baseline": False}), n_trials=1)
    readouts = records.read_readouts(study.trials[0])
    assert list(readouts) == [1, 2, 3, 4]
    assert records.baseline_step(study.trials[0], readouts) is None


def test_full_spectrum_stores_quantiles():
    study = optuna.create_study()
    study.optimize(objective_from(1, {"full_spectrum": True}), n_trials=1)
    stored = study.trials[0].user_attrs["lyapunov:readouts"]["1"]
    assert len(stored["quantiles"]) == 32
    assert stored["quantiles"] == sorted(stored["quantiles"])
    assert stored["quantiles"][-1] <= stored["max"]
    assert stored["clipped_fraction"] == 0


def test_full_spectrum_and_readout_agree():
    model, x = nn.GRU(3, 8, batch_first=True).double(), make_inputs(4, 25, 3)
    cheap = lyap.LyapunovProbe(model, x).measure()
    whole = lyap.LyapunovProbe(model, x, full_spectrum=True).measure()
    assert whole.spectrum is not None
    assert cheap.spectrum is None
    assert whole.max == pytest.approx(cheap.max, abs=1e-9)
    assert whole.max >= whole.spectrum.max
    assert whole.mean == pytest.approx(cheap.mean, abs=1e-9)
    assert whole.mean_stderr == pytest.approx(cheap.mean_stderr, abs=1e-9)


def test_step_reported_twice_keeps_the_first_value_and_readout():
    study = optuna.create_study()
    trial = study.ask()
    model = nn.GRU(3, 8, batch_first=True)
    probe = lyap.LyapunovProbe(model, make_inputs(4, 25, 3, dtype=torch.float32))
    probe.report(trial, 1.0, 1)
    before = study.trials[0].user_attrs["lyapunov:readouts"]
    with torch.no_grad():
        model.weight_hh_l0.mul_(3)
    with pytest.warns(UserWarning, match="already reported"):
        probe.report(trial, 2.0, 1)
    assert study.trials[0].user_attrs["lyapunov:readouts"] == before
    assert study.trials[0].intermediate_values == {1: 1.0}


def test_last_step_before_the_first_reported_step_says_so_once():
    trial = optuna.create_study().ask()
    probe = lyap.LyapunovProbe(
        nn.GRU(3, 8, batch_first=True), make_inputs(4, 25, 3, dtype=torch.float32), last_step=5
    )
    with pytest.warns(lyap.LyapunovWarning, match=r"last_step=5 lies before .* 100") as caught:
        probe.report(trial, 1.0, 100)
        probe.report(trial, 1.0, 200)
    assert len(caught) == 1
    assert list(trial.study.trials[0].user_attrs["lyapunov:readouts"]) == ["99"]  # the baseline


def test_not_finite_weights_cost_a_warning_and_never_the_trial():
    model = nn.GRU(3, 8, batch_first=True)
    x = make_inputs(4, 25, 3, dtype=torch.float32)
    probe = lyap.LyapunovProbe(model, x)
    trial = optuna.create_study().ask()
    probe.report(trial, 1.0, 1)
    with torch.no_grad():
        model.weight_hh_l0.fill_(float("nan"))
    with pytest.warns(lyap.LyapunovWarning, match="NaN or infinite weights") as caught:
        probe.report(trial, float("nan"), 2)
        probe.report(trial, float("nan"), 3)
        probe.record(trial, 4)
    assert len(caught) == 1
    attrs = trial.study.trials[0].user_attrs
    assert list(attrs["lyapunov:readouts"]) == ["0", "1"]
    assert sorted(attrs["lyapunov:failures"]) == ["2", "3", "4"]
    assert "NaN or infinite weights" in attrs["lyapunov:failures"]["2"]
    assert list(trial.study.trials[0].intermediate_values) == [1, 2, 3]
    with pytest.raises(ValueError, match="NaN or infinite weights"):
        probe.measure()
    with pytest.warns(lyap.LyapunovWarning, match="No readouts: .* NaN or infinite"):
        lyap.LyapunovProbe(model, x)


def test_any_failure_of_a_readout_is_a_warning():
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(3, 8, batch_first=True)
            self.broken = False

        def forward(self, x):
            if self.broken:
                raise RuntimeError("out of memory")
            return self.rnn(x)

    model = Breaks()
    probe = lyap.LyapunovProbe(model, make_inputs(4, 25, 3, dtype=torch.float32))
    trial = optuna.create_study().ask()
    model.broken = True
    with pytest.warns(lyap.LyapunovWarning, match="out of memory"):
        probe.report(trial, 0.5, 1)
    stored = trial.study.trials[0]
    assert stored.intermediate_values == {1: 0.5}
    assert list(stored.user_attrs["lyapunov:readouts"]) == ["0"]


def test_storage_that_fails_costs_a_warning(monkeypatch):
    trial = optuna.create_study().ask()
    probe = lyap.LyapunovProbe(
        nn.GRU(3, 8, batch_first=True), make_inputs(4, 25, 3, dtype=torch.float32)
    )

    def refuse(key, value):
        raise OSError("postgresql://user:secret@host/db is gone")

    monkeypatch.setattr(trial, "set_user_attr", refuse)
    with pytest.warns(lyap.LyapunovWarning, match=r"not stored \(OSError\)") as caught:
        probe.report(trial, 0.5, 1)
    assert not any("secret" in str(w.message) for w in caught)


def test_fixed_trial_and_relu_determinants():
    trial = optuna.trial.FixedTrial({})
    model = nn.RNN(3, 8, nonlinearity="relu", batch_first=True)
    torch.manual_seed(0)
    probe = lyap.LyapunovProbe(model, make_inputs(4, 25, 3, dtype=torch.float32))
    probe.report(trial, 0.5, 0)
    stored = trial.user_attrs["lyapunov:readouts"]
    assert list(stored) == ["-1", "0"]
    assert stored["0"]["mean"] == -16.0  # the floor: minus infinity is no JSON
    assert stored["0"]["floored"] is True
    assert probe.measure().mean == -float("inf")


def test_record_works_in_a_multi_objective_study_and_report_does_not():
    study = optuna.create_study(directions=["minimize", "minimize"])
    trial = study.ask()
    probe = lyap.LyapunovProbe(
        nn.GRU(3, 8, batch_first=True), make_inputs(4, 25, 3, dtype=torch.float32)
    )
    probe.record(trial, 0)
    probe.record(trial, 7)
    assert list(study.trials[0].user_attrs["lyapunov:readouts"]) == ["0", "7"]
    with pytest.raises(NotImplementedError):
        probe.report(trial, 1.0, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last_step": 1.5}, "last_step must be an integer, but got 1.5"),
        ({"depth": 3}, r"Unknown option\(s\) \['depth'\]"),
        ({"batch": torch.zeros(4, 25, 3)}, r"Unknown option\(s\) \['batch'\]"),
        ({"qr_every": 2}, r"Unknown option\(s\) \['qr_every'\]"),
        ({"state": "cell"}, r"state must be one of .*, but got 'cell'"),
        ({"k": 2.5}, "k must be an integer, but got 2.5"),
        ({"k": 0}, "k must be at least 1"),
        ({"warmup": "long"}, "warmup must be an integer"),
        ({"warmup": -1, "baseline": False}, "warmup must be at least 0"),
        ({"seed": None}, "seed must be an integer"),
        ({"full_spectrum": True, "qr_every": 0}, "qr_every must be at least 1"),
        ({"full_spectrum": True, "mean_tolerance": -1}, "mean_tolerance must be a positive"),
        ({"full_spectrum": True, "rtol": math.nan}, "rtol must be a positive"),
        ({"layer": 3}, "layer must be the name of a layer, a list of names"),
        ({"layer": []}, "layer must be the name of a layer, a list of names"),
        ({"layer": ["rnn", 3]}, "layer must be the name of a layer, a list of names"),
        ({"trial": 7}, "trial must be a trial of Optuna, but got int"),
        ({"sink": lyap.DatabaseSink()}, "sink is for whole spectra"),
        ({"full_spectrum": True, "sink": "sqlite://"}, "sink must be a DatabaseSink.*but got str"),
        ({"full_spectrum": True, "sink": []}, "sink must be .*but got an empty list"),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_a_wrong_option_raises_in_the_constructor(options, message, strict):
    with pytest.raises(ValueError, match=message):
        gru_probe(strict=strict, **options)


def test_what_is_no_model_raises():
    with pytest.raises(ValueError, match=r"model must be an nn\.Module .* but got dict"):
        lyap.LyapunovProbe({}, torch.zeros(4, 25, 3))


def test_the_batch_is_the_probes_own():
    x = make_inputs(4, 25, 3, dtype=torch.float32)
    probe = lyap.LyapunovProbe(nn.GRU(3, 8, batch_first=True), x)
    first = probe.measure().max
    x.zero_()
    assert probe.measure().max == first


def resumed(inherit_values):
    """A trial that died after step 2, retried by Optuna; return the study and the new trial."""
    study = optuna.create_study()
    study.optimize(objective_from(1, epochs=2), n_trials=1)
    dead = study.trials[0]
    optuna.storages.RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=inherit_values)(
        study, dead
    )
    return study, study.ask(), dead.user_attrs["lyapunov:readouts"]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
class TestRetries:
    def probe(self):
        torch.manual_seed(77)
        return lyap.LyapunovProbe(
            nn.GRU(3, 8, batch_first=True), make_inputs(4, 25, 3, dtype=torch.float32)
        )

    def test_a_trial_that_starts_again_does_not_inherit(self):
        study, trial, dead = resumed(inherit_values=False)
        assert list(records.read_readouts(study.trials[1])) == [0]  # at most the baseline
        self.probe().report(trial, 0.3, 1)
        stored = study.trials[1].user_attrs
        assert stored["lyapunov:trial"] == 1
        assert list(stored["lyapunov:readouts"]) == ["0", "1"]
        assert stored["lyapunov:readouts"]["0"] != dead["0"]
        assert stored["lyapunov:readouts"]["1"] != dead["1"]

    def test_a_resumed_checkpoint_keeps_what_it_reported_and_its_baseline(self):
        study, trial, dead = resumed(inherit_values=True)
        assert list(records.read_readouts(study.trials[1])) == [0, 1, 2]
        self.probe().report(trial, 0.3, 3)
        stored = study.trials[1].user_attrs["lyapunov:readouts"]
        assert list(stored) == ["0", "1", "2", "3"]
        assert all(stored[s] == dead[s] for s in ("0", "1", "2"))
        readouts = records.read_readouts(study.trials[1])
        assert records.baseline_step(study.trials[1], readouts) == 0

    def test_a_new_start_without_a_readout_of_its_own_inherits_none(self):
        study, trial, _ = resumed(inherit_values=False)
        model = nn.GRU(3, 8, batch_first=True)
        with torch.no_grad():
            model.weight_hh_l0.fill_(float("nan"))
        with pytest.warns(lyap.LyapunovWarning, match="No readouts"):
            probe = lyap.LyapunovProbe(model, make_inputs(4, 25, 3, dtype=torch.float32))
        probe.report(trial, 0.3, 1)
        probe.report(trial, 0.3, 2)
        assert records.read_readouts(study.trials[1]) == {}

    def test_a_new_start_without_a_baseline_inherits_none(self):
        study, trial, _ = resumed(inherit_values=False)
        gru_probe(baseline=False).report(trial, 0.3, 1)
        assert list(study.trials[1].user_attrs["lyapunov:readouts"]) == ["1"]

    def test_a_new_start_drops_what_lies_ahead(self):
        study, trial, dead = resumed(inherit_values=True)
        with pytest.warns(UserWarning, match="already reported"):
            self.probe().report(trial, 0.3, 1)
        stored = study.trials[1].user_attrs["lyapunov:readouts"]
        assert list(stored) == ["0", "1"]
        assert stored["0"] != dead["0"]

    def test_a_checkpoint_without_values_keeps_the_true_baseline(self):
        study, trial, dead = resumed(inherit_values=False)
        self.probe().report(trial, 0.3, 3)
        stored = study.trials[1].user_attrs["lyapunov:readouts"]
        assert list(stored) == ["0", "3"]
        assert stored["0"] == dead["0"]


def gru_probe(**options):
    return lyap.LyapunovProbe(
        nn.GRU(3, 8, batch_first=True), make_inputs(4, 25, 3, dtype=torch.float32), **options
    )


def test_an_embedding_that_renormalises_itself_is_not_touched():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(20, 3, max_norm=0.5)
            self.rnn = nn.GRU(3, 8, batch_first=True)

        def forward(self, x):
            return self.rnn(self.embedding(x))

    model = Tokens()
    before = model.embedding.weight.detach().clone()
    lyap.LyapunovProbe(model, torch.arange(20).view(2, 10)).measure()
    assert torch.equal(model.embedding.weight, before)


def test_hooks_of_the_user_do_not_run():
    model = nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 8, batch_first=True))
    calls = []
    model[0].register_forward_hook(lambda *args: calls.append("after"))
    model[0].register_forward_pre_hook(lambda *args: calls.append("before"))
    model[1].register_forward_pre_hook(lambda *args: calls.append("before the layer"))
    lyap.LyapunovProbe(model, make_inputs(4, 25, 3, dtype=torch.float32)).measure()
    assert calls == []


def test_a_write_that_fails_once_does_not_lose_the_baseline(monkeypatch):
    trial = optuna.create_study().ask()
    probe = gru_probe()
    real, failures = trial.set_user_attr, [OSError("locked")]

    def flaky(key, value):
        if failures:
            raise failures.pop()
        real(key, value)

    monkeypatch.setattr(trial, "set_user_attr", flaky)
    with pytest.warns(lyap.LyapunovWarning, match="not stored"):
        probe.report(trial, 1.0, 1)
    probe.report(trial, 0.5, 2)
    assert list(trial.study.trials[0].user_attrs["lyapunov:readouts"]) == ["0", "2"]


def test_steps_are_what_optuna_makes_of_them():
    trial = optuna.create_study().ask()
    probe = gru_probe(last_step=np.int64(3))
    probe.report(trial, 1.0, 1.0)
    probe.report(trial, 1.0, torch.tensor(2))
    probe.record(trial, np.int64(3))
    assert list(trial.study.trials[0].user_attrs["lyapunov:readouts"]) == ["0", "1", "2", "3"]


def test_a_probe_used_for_a_second_trial_says_so():
    study = optuna.create_study()
    probe = gru_probe()
    probe.report(study.ask(), 1.0, 1)
    with pytest.warns(lyap.LyapunovWarning, match="made for trial 0 and reports to trial 1"):
        probe.report(study.ask(), 1.0, 1)
    assert list(study.trials[1].user_attrs["lyapunov:readouts"]) == ["1"]


def test_not_finite_buffers_cost_a_warning():
    model = nn.Sequential(nn.BatchNorm1d(25), nn.GRU(3, 8, batch_first=True))
    model[0].running_mean.fill_(float("nan"))
    with pytest.warns(lyap.LyapunovWarning, match="NaN or infinite weights"):
        lyap.LyapunovProbe(model, make_inputs(4, 25, 3, dtype=torch.float32))


def test_no_warning_in_an_ordinary_run():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study = optuna.create_study(pruner=lyap.LyapunovPruner())
        study.optimize(objective_from(1), n_trials=2)
    assert all("lyapunov:max" in t.user_attrs for t in study.trials)


def _artifacts(study, store):
    """Files of all trials by trial number and name, each as rows of its fields."""
    files = {}
    for trial in study.get_trials():
        for meta in optuna.artifacts.get_all_artifact_meta(trial, storage=study._storage):
            assert meta.mimetype == "text/csv"
            with store.open_reader(meta.artifact_id) as file:
                rows = list(csv.reader(file.read().decode().splitlines()))
            files[trial.number, meta.filename] = rows
    return files


def test_spectra_are_uploaded_while_the_trial_runs(tmp_path):
    store = optuna.artifacts.FileSystemArtifactStore(tmp_path)
    study = optuna.create_study()
    trial = study.ask()
    torch.manual_seed(0)
    layer, inputs = nn.GRU(3, 6, batch_first=True), make_inputs(4, 20, 3, dtype=torch.float32)
    probe = lyap.LyapunovProbe(layer, inputs, full_spectrum=True, sink=lyap.ArtifactSink(store))
    probe.report(trial, 0.5, 0)
    probe.report(trial, 0.4, 1)
    study.tell(trial, 0.4)
    files = _artifacts(study, store)
    assert sorted(files) == [(0, f"lyapunov-spectrum-step-{s}.csv") for s in (-1, 0, 1)]
    head, *rows = files[0, "lyapunov-spectrum-step-1.csv"]
    assert head == ["layer", "index", "exponent", "std"]
    spectrum = lyap.lyapunov_spectrum(layer, inputs)
    assert [float(r[2]) for r in rows] == pytest.approx(spectrum.exponents.tolist(), rel=1e-5)
    assert [float(r[3]) for r in rows] == pytest.approx(spectrum.std.tolist(), rel=1e-5)


def test_an_upload_that_fails_costs_a_warning_and_nothing_else(tmp_path):
    class Broken:
        def write(self, artifact_id, content):
            raise OSError("s3://user:s3cret@bucket is unreachable")

    study = optuna.create_study()
    trial = study.ask()
    probe = lyap.LyapunovProbe(
        nn.RNN(2, 3), torch.zeros(9, 1, 2), full_spectrum=True, sink=lyap.ArtifactSink(Broken())
    )
    with pytest.warns(lyap.LyapunovWarning, match=r"spectrum .* \(OSError\). Its") as caught:
        probe.report(trial, 0.5, 0)
        probe.report(trial, 0.4, 1)
    assert len(caught) == 1
    assert "s3cret" not in str(caught[0].message)
    assert sorted(study.trials[0].user_attrs["lyapunov:readouts"]) == ["-1", "0", "1"]


def test_a_trial_without_a_storage_uploads_nothing(tmp_path):
    store = optuna.artifacts.FileSystemArtifactStore(tmp_path)
    probe = lyap.LyapunovProbe(
        nn.RNN(2, 3), torch.zeros(9, 1, 2), full_spectrum=True, sink=lyap.ArtifactSink(store)
    )
    probe.report(optuna.trial.FixedTrial({}), 0.5, 0)
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_a_baseline_moves_with_it(tmp_path):
    store = optuna.artifacts.FileSystemArtifactStore(tmp_path)
    study = optuna.create_study()
    trial = study.ask()
    probe = lyap.LyapunovProbe(
        nn.RNN(2, 3), torch.zeros(9, 1, 2), full_spectrum=True, sink=lyap.ArtifactSink(store)
    )
    for step in (2, 1):  # the baseline stands at 1, then at 0
        probe.report(trial, 0.5, step)
    names = [f"lyapunov-spectrum-step-{s}.csv" for s in (0, 1, 2)]
    assert sorted(name for _, name in _artifacts(study, store)) == names
    assert len(list(tmp_path.iterdir())) == 3


def test_a_sink_of_ones_own_gets_what_was_measured():
    class Memory(lyap.SpectrumSink):
        def __init__(self):
            self.kept = {}

        def write(self, trial, step, spectra, old=None):
            self.kept[trial.number, step] = spectra

    memory, layer = Memory(), nn.RNN(2, 3)
    probe = lyap.LyapunovProbe(layer, torch.ones(9, 1, 2), full_spectrum=True, sink=memory)
    probe.report(optuna.trial.FixedTrial({}, number=7), 0.5, 0)
    assert list(memory.kept) == [(7, -1), (7, 0)]
    (kept,) = memory.kept[7, 0].values()
    truth = lyap.lyapunov_spectrum(layer, torch.ones(9, 1, 2)).exponents
    assert torch.equal(kept.exponents, truth)


def test_uploaded_numbers_are_finite_or_empty(tmp_path):
    store = optuna.artifacts.FileSystemArtifactStore(tmp_path)
    study = optuna.create_study()
    nan, inf = float("nan"), float("inf")
    spectrum = spectrum_of([0.5, -inf], [0.25, nan])
    lyap.ArtifactSink(store).write(study.ask(), 3, {"rnn": spectrum})
    rows = _artifacts(study, store)[0, "lyapunov-spectrum-step-3.csv"][1:]
    assert rows == [["rnn", "1", "0.5", "0.25"], ["rnn", "2", "-16", ""]]
