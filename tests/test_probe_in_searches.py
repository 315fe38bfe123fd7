"""The probe in searches: no configuration ends a study, and baselines stand where they belong."""

import dataclasses
import json
import math
import warnings
from collections import namedtuple

import optuna
import pytest
import torch
from _networks import make_inputs
from torch import nn

import lyap_optuna as lyap
import lyap_optuna.probe
from lyap_optuna import records
from lyap_optuna.dynamics import NotMeasurableError
from lyap_optuna.dynamics._copy import detached

X = make_inputs(4, 25, 3, dtype=torch.float32)


class Last(nn.Module):
    def __init__(self, layer, units):
        super().__init__()
        self.layer = layer
        self.out = nn.Linear(units, 1)

    def forward(self, x):
        hidden = self.layer(x)
        return self.out((hidden[0] if isinstance(hidden, tuple) else hidden)[:, -1])


class Raises(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, x):
        raise RuntimeError("CUDA error: out of luck\nat line 3")


def gru(units=6):
    torch.manual_seed(units)
    return nn.GRU(3, units, batch_first=True)


def nan_gru():
    model = gru()
    with torch.no_grad():
        model.weight_hh_l0.fill_(math.nan)
    return model


def readouts(trial):
    """The stored series; everything stored with the trial is strictly finite JSON."""
    trial = records._readouts.stored_trial(trial)
    json.dumps(trial.user_attrs, allow_nan=False)
    return trial.user_attrs.get("lyapunov:readouts", {})


UNMEASURABLE = {
    "no recurrent layer": (lambda: Last(nn.Linear(3, 4), 4), {}, "recurrent layer"),
    "scripted": (lambda: torch.jit.script(gru()), {}, ""),
    "traced": (lambda: torch.jit.trace(gru(), X), {}, ""),
    "forward fails": (Raises, {}, "out of luck"),
    "inputs do not fit": (lambda: Last(nn.GRU(5, 4, batch_first=True), 4), {}, ""),
    "NaN weights": (nan_gru, {}, "NaN or infinite weights"),
    "no such layer": (lambda: Last(gru(), 6), {"layer": "encoder"}, "encoder"),
    "no such layers": (lambda: Last(gru(), 6), {"layer": ["layer", "encoder"]}, ""),
    "another's layer": (lambda: Last(gru(), 6), {"layer": gru()}, ""),
    "more vectors than dimensions": (gru, {"k": 9}, "k must be between 1"),
    "sequences shorter than the warm-up": (gru, {"warmup": 25}, "leaves no steps"),
    "an initial state of another size": (gru, {"initial_state": torch.zeros(1, 4, 9)}, ""),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit's own
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", UNMEASURABLE)
def test_what_cannot_be_measured_costs_one_warning(name, given):
    make, options, said = UNMEASURABLE[name]
    model = make()
    trial = optuna.create_study(storage="sqlite:///:memory:").ask()
    options = {**options, "trial": trial} if given else options
    with pytest.warns(lyap.LyapunovWarning) as caught:
        probe = lyap.LyapunovProbe(model, X, **options)
        for step in range(3):
            probe.report(trial, 1.0 / (1 + step), step)
        probe.record(trial, 7)
    (warning,) = [w for w in caught if w.category is lyap.LyapunovWarning]
    assert said in str(warning.message)
    assert "strict=True raises instead" in str(warning.message)
    assert warning.filename == __file__
    assert readouts(trial) == {}
    stored = trial.study.trials[0]
    assert list(stored.intermediate_values) == [0, 1, 2]
    assert list(stored.user_attrs["lyapunov:failures"]) == ["-1", "7"]
    assert said in stored.user_attrs["lyapunov:failures"]["-1"]
    with pytest.raises((ValueError, RuntimeError, AttributeError)):
        lyap.LyapunovProbe(model, X, **options, strict=True)
    with pytest.raises((ValueError, RuntimeError, AttributeError)):
        lyap.LyapunovProbe(model, X, **options, strict=True, baseline=False)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory"),
        MemoryError(),
        KeyError("h"),
        RecursionError(),
        ValueError(),
    ],
)
def test_whatever_is_raised_in_measuring_is_a_warning(error, monkeypatch):
    def fails(*args, **options):
        raise error

    monkeypatch.setattr(lyap_optuna.probe, "lyapunov_readout", fails)
    trial = optuna.create_study().ask()
    with pytest.warns(lyap.LyapunovWarning, match=f"No readouts: .*{type(error).__name__}"):
        probe = lyap.LyapunovProbe(gru(), X)
    probe.report(trial, 0.5, 0)
    with pytest.raises(type(error)):
        lyap.LyapunovProbe(gru(), X, strict=True)


def test_who_interrupts_interrupts(monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(lyap_optuna.probe, "lyapunov_readout", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lyap.LyapunovProbe(gru(), X)


def test_strict_speaks_of_the_constructor_alone():
    model = gru()
    trial = optuna.create_study().ask()
    probe = lyap.LyapunovProbe(model, X, strict=True)
    with torch.no_grad():
        model.weight_hh_l0.fill_(math.nan)
    with pytest.warns(lyap.LyapunovWarning, match="No readout at step 0"):
        probe.report(trial, math.nan, 0)
    assert list(readouts(trial)) == ["-1"]


@pytest.mark.parametrize(
    "name", ["begins_training", "has_readout", "write_readouts", "write_failure"]
)
def test_report_and_record_only_ever_warn(name, monkeypatch):
    def fails(*args, **options):
        raise OSError("mysql://user:s3cret@host is gone")

    with pytest.warns(lyap.LyapunovWarning) as caught:
        broken = lyap.LyapunovProbe(nan_gru(), X)
        probe = lyap.LyapunovProbe(gru(), X)
        monkeypatch.setattr(lyap_optuna.probe, name, fails)
        for each in (probe, broken):
            trial = optuna.create_study().ask()
            each.report(trial, 0.5, 0)
            each.record(trial, 1)
            assert trial.study.trials[0].intermediate_values == {0: 0.5}
    assert not any("s3cret" in str(w.message) for w in caught)


class Search:
    """Configurations of which some have what others lack."""

    def __init__(self, choices):
        self.choices = choices

    def __call__(self, trial):
        kind = trial.suggest_categorical("kind", list(self.choices))
        torch.manual_seed(trial.number)
        probe = lyap.LyapunovProbe(self.choices[kind](), X, trial=trial)
        for epoch in range(3):
            probe.report(trial, 1 / (1 + epoch) + trial.number % 3, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return 1.0 + trial.number % 3


@pytest.mark.filterwarnings("ignore::lyap_optuna.LyapunovWarning")
@pytest.mark.parametrize(
    "choices",
    [
        {
            bidirectional: lambda both=bidirectional: Last(
                nn.LSTM(3, 4, batch_first=True, bidirectional=both), 4 * (1 + both)
            )
            for bidirectional in (False, True)
        },
        {
            "gru": lambda: Last(gru(4), 4),
            "linear": lambda: Last(nn.Linear(3, 4), 4),
            "broken": Raises,
        },
    ],
    ids=["bidirectional", "linear among recurrent"],
)
def test_a_study_goes_through_all_its_configurations(choices):
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(sampler=sampler, pruner=lyap.LyapunovPruner(n_startup_trials=6))
    study.optimize(Search(choices), n_trials=14)
    assert len(study.trials) == 14
    assert not study.get_trials(states=(optuna.trial.TrialState.FAIL,))
    measured = [trial for trial in study.trials if len(readouts(trial)) == 4]
    assert any(trial.params["kind"] in (False, "gru") for trial in measured)
    assert lyap.rank_trials(study)
    assert lyap.prediction_skill(study)


# The baseline, stored at once ------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1, 100])
def test_a_baseline_that_is_stored_at_once_moves_to_the_step_before_the_first(first):
    trial = optuna.create_study().ask()
    model = gru()
    probe = lyap.LyapunovProbe(model, X, trial=trial, last_step=first + 1)
    baseline = readouts(trial)
    assert list(baseline) == ["-1"]
    stored = trial.study.trials[0]
    assert stored.user_attrs["lyapunov:max"] == baseline["-1"]["max"]
    assert records.baseline_step(stored, records.read_readouts(stored)) == -1
    with torch.no_grad():
        model.weight_hh_l0.mul_(1.5)
    probe.report(trial, 1.0, first)
    probe.report(trial, 0.5, first + 1)
    series = readouts(trial)
    assert list(series) == [str(first - 1), str(first), str(first + 1)]
    assert series[str(first - 1)] == baseline["-1"]
    assert series[str(first)] != baseline["-1"]
    stored = trial.study.trials[0]
    assert records.baseline_step(stored, records.read_readouts(stored)) == first - 1


def test_a_baseline_moves_where_no_readout_is_taken():
    trial = optuna.create_study().ask()
    probe = lyap.LyapunovProbe(gru(), X, trial=trial)
    with pytest.warns(lyap.LyapunovWarning, match="last_step=5 lies before"):
        probe.report(trial, 1.0, 100)
    assert list(readouts(trial)) == ["99"]


def test_a_move_that_fails_once_is_made_up_for(monkeypatch):
    trial = optuna.create_study().ask()
    probe = lyap.LyapunovProbe(gru(), X, trial=trial)
    real, failures = trial.set_user_attr, [OSError("locked")]

    def flaky(key, value):
        if failures:
            raise failures.pop()
        real(key, value)

    monkeypatch.setattr(trial, "set_user_attr", flaky)
    with pytest.warns(lyap.LyapunovWarning, match="not stored"):
        probe.report(trial, 1.0, 1)
    assert list(readouts(trial)) == ["-1"]
    probe.report(trial, 1.0, 2)
    assert list(readouts(trial)) == ["0", "2"]


def test_a_fixed_trial_holds_it_too():
    trial = optuna.trial.FixedTrial({})
    probe = lyap.LyapunovProbe(gru(), X, trial=trial)
    assert list(trial.user_attrs["lyapunov:readouts"]) == ["-1"]
    probe.report(trial, 0.5, 1)
    assert list(trial.user_attrs["lyapunov:readouts"]) == ["0", "1"]


def test_several_objectives_have_a_baseline_too():
    study = optuna.create_study(directions=["minimize", "maximize"])
    trial = study.ask()
    probe = lyap.LyapunovProbe(gru(), X, trial=trial, full_spectrum=True)
    probe.record(trial, 0)
    probe.record(trial, 1)
    study.tell(trial, [0.0, 1.0])
    assert list(readouts(trial)) == ["-1", "0", "1"]
    stored = study.trials[0]
    assert records.baseline_step(stored, records.read_readouts(stored)) == -1


@pytest.mark.filterwarnings("ignore:The reported value is ignored")
def test_a_second_writer_of_the_trial_adds_nothing():
    study = optuna.create_study(storage="sqlite:///:memory:")
    trial = study.ask()
    other = optuna.trial.Trial(study, trial._trial_id)  # as another process of it has one
    first = lyap.LyapunovProbe(gru(6), X, trial=trial)
    kept = readouts(trial)
    second = lyap.LyapunovProbe(gru(7), X, trial=other)
    assert readouts(trial) == kept
    first.report(trial, 0.5, 1)
    kept = readouts(trial)
    assert list(kept) == ["0", "1"]
    second.report(other, 0.5, 1)
    assert readouts(trial) == kept


@pytest.mark.filterwarnings("ignore:The reported value is ignored")
@pytest.mark.parametrize("first", [0, 1])
def test_the_second_writer_may_report_first(first):
    study = optuna.create_study()
    trial = study.ask()
    other = optuna.trial.Trial(study, trial._trial_id)
    writer = lyap.LyapunovProbe(gru(6), X, trial=trial)
    baseline = readouts(trial)["-1"]
    lyap.LyapunovProbe(gru(7), X, trial=other).report(other, 0.5, first)
    writer.report(trial, 0.5, first)
    assert list(readouts(trial)) == [str(first - 1), str(first)]
    assert readouts(trial)[str(first - 1)] == baseline


def retried(reported, *, inherit, first):
    """A trial of so many reports that died, retried by Optuna: the new trial, its dead series."""
    study = optuna.create_study()
    trial = study.ask()
    probe = lyap.LyapunovProbe(gru(9), X, trial=trial)
    for step in range(first, first + reported):
        probe.report(trial, 1.0, step)
    dead = readouts(trial)
    callback = optuna.storages.RetryHeartbeatStaleTrialCallback
    callback(inherit_intermediate_values=inherit)(study, study.trials[0])
    return study.ask(), dead


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
class TestRetried:
    @pytest.mark.parametrize("first", [0, 1])
    @pytest.mark.parametrize("reported", [0, 2])
    def test_one_that_starts_again_has_a_baseline_of_its_own(self, reported, first):
        trial, dead = retried(reported, inherit=False, first=first)
        probe = lyap.LyapunovProbe(gru(6), X, trial=trial)
        assert readouts(trial) == dead  # whether it starts again is not known yet
        probe.report(trial, 0.3, first)
        series = readouts(trial)
        assert list(series) == [str(first - 1), str(first)]
        assert not any(readout in dead.values() for readout in series.values())
        assert trial.study.trials[1].user_attrs["lyapunov:trial"] == 1

    @pytest.mark.parametrize("inherit", [False, True])
    @pytest.mark.parametrize("first", [0, 1])
    def test_one_that_goes_on_from_a_checkpoint_keeps_the_true_one(self, inherit, first):
        trial, dead = retried(2, inherit=inherit, first=first)
        probe = lyap.LyapunovProbe(gru(6), X, trial=trial)
        probe.report(trial, 0.3, first + 2)
        series = readouts(trial)
        before = str(first - 1)
        kept = list(dead) if inherit else [before]
        assert list(series) == [*kept, str(first + 2)]
        assert series[before] == dead[before]
        stored = trial.study.trials[1]
        assert records.baseline_step(stored, records.read_readouts(stored)) == first - 1


# Several networks in a trial -------------------------------------------------------------------


def folds(trial, step_of, *, epochs=3, given, full_spectrum=False):
    """Cross-validation within a trial; return the first fold's probe's own readouts by step."""
    own = {}
    for fold in range(3):
        model = gru(6 + fold)
        options = {"trial": trial} if given else {}
        probe = lyap.LyapunovProbe(model, X, last_step=20, full_spectrum=full_spectrum, **options)
        if fold == 0:
            own["baseline"] = probe.measure().max
        for epoch in range(epochs):
            with torch.no_grad():
                model.weight_hh_l0.mul_(1.1)
            probe.report(trial, 1 / (1 + epoch), step_of(fold, epoch))
            if fold == 0:
                own[step_of(fold, epoch)] = probe.measure().max
    return own


@pytest.mark.filterwarnings("ignore:The reported value is ignored")
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    ("step_of", "epochs", "measured"),
    [
        (lambda fold, epoch: 3 * fold + epoch, 3, [-1, 0, 1, 2]),
        (lambda fold, epoch: fold, 1, [-1, 0]),
        (lambda fold, epoch: epoch, 3, [-1, 0, 1, 2]),
        (lambda fold, epoch: 3 * fold + epoch + 1, 3, [0, 1, 2, 3]),
    ],
)
def test_of_cross_validation_the_first_fold_is_measured(step_of, epochs, measured, given):
    trial = optuna.create_study().ask()
    with pytest.warns(
        lyap.LyapunovWarning, match="holds the readouts of another network"
    ) as caught:
        own = folds(trial, step_of, epochs=epochs, given=given)
    assert len([w for w in caught if w.category is lyap.LyapunovWarning]) == 2  # one of each probe
    series = readouts(trial)
    assert [int(step) for step in series] == measured
    base, *rest = measured
    assert series[str(base)]["max"] == pytest.approx(own["baseline"], rel=1e-5)
    for step in rest:
        assert series[str(step)]["max"] == pytest.approx(own[step], rel=1e-5)
    expected = {step_of(fold, epoch) for fold in range(3) for epoch in range(epochs)}
    assert set(trial.study.trials[0].intermediate_values) == expected


def test_spectra_of_another_fold_are_not_stored():
    trial = optuna.create_study(storage="sqlite:///:memory:").ask()
    with pytest.warns(lyap.LyapunovWarning, match="another network"):
        folds(trial, lambda fold, epoch: fold, epochs=1, given=True, full_spectrum=True)
    assert [s.step for s in lyap.load_spectra(trial.study)] == [-1, 0]


def test_two_probes_of_one_network_are_no_two_networks():
    trial = optuna.create_study().ask()
    model = gru()
    lyap.LyapunovProbe(model, X, trial=trial).report(trial, 1.0, 0)
    lyap.LyapunovProbe(nn.DataParallel(model), X).report(trial, 1.0, 1)
    lyap.LyapunovProbe(model, X, trial=trial).report(trial, 1.0, 2)
    assert list(readouts(trial)) == ["-1", "0", "1", "2"]


def test_a_network_that_is_loaded_anew_goes_on_without_a_baseline():
    trial = optuna.create_study().ask()
    lyap.LyapunovProbe(gru(), X).report(trial, 1.0, 0)
    lyap.LyapunovProbe(gru(), X, baseline=False).report(trial, 1.0, 1)
    assert list(readouts(trial)) == ["-1", "0", "1"]


# Several layers --------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.LSTM(3, 4, batch_first=True)
        self.decoder = nn.GRU(4, 7, batch_first=True)

    def forward(self, x):
        return self.decoder(self.encoder(x)[0])[0]

    def parts(self, x):
        return {
            "encoder": (self.encoder, x),
            "decoder": (self.decoder, self.encoder(x)[0].detach()),
        }


@pytest.fixture
def two(monkeypatch):
    """A model of two layers, each measured by itself."""
    model = Two()

    def readout(model, inputs, *, layer=None, **options):
        names = ["encoder", "decoder"] if layer is None else [layer]
        return lyap.LyapunovReadout.from_layers(
            [
                dataclasses.replace(
                    lyap.lyapunov_readout(*model.parts(inputs)[name], **options),
                    layer=name,
                    layers={},
                )
                for name in names
            ]
        )

    def spectrum(model, inputs, *, layer=None, **options):
        part, reaching = model.parts(inputs)[layer]
        return dataclasses.replace(lyap.lyapunov_spectrum(part, reaching, **options), layer=layer)

    monkeypatch.setattr(lyap_optuna.probe, "lyapunov_readout", readout)
    monkeypatch.setattr(lyap_optuna.probe, "lyapunov_spectrum", spectrum)
    return model


def test_layers_are_stored_beside_the_model(two):
    trial = optuna.create_study().ask()
    probe = lyap.LyapunovProbe(two, X, trial=trial)
    probe.report(trial, 0.5, 0)
    stored = readouts(trial)["0"]
    assert stored["state"] == "full"
    assert list(stored["layers"]) == ["encoder", "decoder"]
    layers = stored["layers"].values()
    assert all(set(r) == {"max", "mean", "max_stderr", "mean_stderr"} for r in layers)
    assert stored["max"] == max(r["max"] for r in layers)
    encoder, decoder = (r["mean"] for r in layers)
    assert stored["mean"] == pytest.approx((8 * encoder + 7 * decoder) / 15, rel=1e-5)
    (record, _) = records.read_readouts(trial.study.trials[0]).values()
    assert record.layers["encoder"].mean == readouts(trial)["-1"]["layers"]["encoder"]["mean"]
    assert record.layers["encoder"].state == "full"


def test_one_layer_of_two_is_one_entry(two):
    trial = optuna.create_study().ask()
    lyap.LyapunovProbe(two, X, layer="decoder").report(trial, 0.5, 0)
    assert "layers" not in readouts(trial)["0"]


@pytest.mark.parametrize("state", ["hidden", "full"])
def test_whole_spectra_of_each_layer_are_stored_under_its_name(two, state, tmp_path):
    store = optuna.artifacts.FileSystemArtifactStore(tmp_path)
    study = optuna.create_study(storage="sqlite:///:memory:")
    trial = study.ask()
    probe = lyap.LyapunovProbe(
        two,
        X,
        trial=trial,
        state=state,
        full_spectrum=True,
        sink=[lyap.DatabaseSink(), lyap.ArtifactSink(store)],
    )
    assert lyap.load_spectra(study) == []  # where they belong is known at the first report
    probe.report(trial, 0.5, 1)
    size = 8 if state == "full" else 4
    assert [(s.step, s.layer, s.state, len(s.exponents)) for s in lyap.load_spectra(study)] == [
        (step, layer, state, n)
        for step in (0, 1)
        for layer, n in (("decoder", 7), ("encoder", size))
    ]
    stored = readouts(trial)["1"]
    assert "quantiles" not in stored
    for layer in stored["layers"].values():
        assert len(layer["quantiles"]) == 32
        assert layer["quantiles"][-1] <= layer["max"]
        assert layer["clipped_fraction"] == 0.0
    assert stored["state"] == state
    files = {
        meta.filename: store.open_reader(meta.artifact_id).read().decode().splitlines()
        for meta in optuna.artifacts.get_all_artifact_meta(study.trials[0], storage=study._storage)
    }
    assert sorted(files) == ["lyapunov-spectrum-step-0.csv", "lyapunov-spectrum-step-1.csv"]
    rows = files["lyapunov-spectrum-step-1.csv"]
    assert rows[0] == "layer,index,exponent,std"
    assert [row.split(",")[0] for row in rows[1:]] == ["encoder"] * size + ["decoder"] * 7


def test_a_layer_without_a_whole_spectrum_keeps_its_readout(two, monkeypatch):
    whole = lyap_optuna.probe.lyapunov_spectrum

    def spectrum(model, inputs, *, layer=None, **options):
        if layer == "encoder":
            raise NotMeasurableError("It has no Jacobians to be had.")
        return whole(model, inputs, layer=layer, **options)

    monkeypatch.setattr(lyap_optuna.probe, "lyapunov_spectrum", spectrum)
    study = optuna.create_study(storage="sqlite:///:memory:")
    trial = study.ask()
    with pytest.warns(lyap.LyapunovWarning, match="No whole spectrum of layer 'encoder'") as caught:
        lyap.LyapunovProbe(two, X, full_spectrum=True).report(trial, 0.5, 0)
    assert len(caught) == 1
    layers = readouts(trial)["0"]["layers"]
    assert "quantiles" not in layers["encoder"]
    assert len(layers["decoder"]["quantiles"]) == 32
    assert {s.layer for s in lyap.load_spectra(study)} == {"decoder"}
    with pytest.raises(NotMeasurableError):
        lyap.LyapunovProbe(two, X, full_spectrum=True, strict=True)


def test_a_readout_without_a_mean_is_stored_without_one(monkeypatch):
    def readout(model, inputs, *, layer=None, **options):
        (own,) = lyap.lyapunov_readout(model, inputs, **options).layers.values()
        own = dataclasses.replace(own, mean=None, mean_stderr=None, mean_sampling_error=None)
        return lyap.LyapunovReadout.from_layers([own])

    monkeypatch.setattr(lyap_optuna.probe, "lyapunov_readout", readout)
    study = optuna.create_study(storage="sqlite:///:memory:")
    trial = study.ask()
    lyap.LyapunovProbe(gru(), X, trial=trial).report(trial, 0.5, 0)
    stored = readouts(trial)["0"]
    assert stored["mean"] is None
    assert stored["mean_stderr"] is None
    assert "lyapunov:mean" not in study.trials[0].user_attrs
    assert study.trials[0].user_attrs["lyapunov:max"] == stored["max"]
    assert records.read_readouts(study.trials[0])[0].mean is None


# The copy of the inputs ------------------------------------------------------------------------


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    lengths: list


class Slotted:
    __slots__ = ("x",)


Pair = namedtuple("Pair", "x y")


def _slotted(x):
    made = Slotted()
    made.x = x
    return made


@pytest.mark.parametrize(
    ("make", "tensor"),
    [
        (lambda x: x, lambda b: b),
        (lambda x: (x, 3), lambda b: b[0]),
        (lambda x: [x], lambda b: b[0]),
        (lambda x: {"x": {"y": x}}, lambda b: b["x"]["y"]),
        (lambda x: Batch(x, [1, 2]), lambda b: b.x),
        (lambda x: Pair(x, None), lambda b: b.x),
        (_slotted, lambda b: b.x),
        (
            lambda x: nn.utils.rnn.pack_padded_sequence(
                x, torch.tensor([3, 5, 5, 2]), batch_first=True, enforce_sorted=False
            ),
            lambda b: b.data,
        ),
    ],
)
def test_inputs_of_any_kind_are_copied_and_cut_off(make, tensor):
    source = torch.randn(4, 5, 3, requires_grad=True)
    with torch.no_grad():
        leaf = make(source.clone())
    grown = make(source * 2)
    for inputs in (leaf, grown):
        copied = detached(inputs)
        assert type(copied) is type(inputs)
        assert torch.equal(tensor(copied), tensor(inputs).detach())
        assert not tensor(copied).requires_grad
        before = tensor(copied).clone()
        with torch.no_grad():
            tensor(inputs).zero_()
        assert torch.equal(tensor(copied), before)


def test_what_is_the_same_tensor_stays_the_same():
    x = torch.zeros(2)
    first, second = detached((x, [x]))
    assert first is second[0]


def test_a_batch_that_holds_itself():
    batch = [torch.zeros(2)]
    batch.append(batch)
    copied = detached(batch)
    assert copied[1] is copied


def test_inputs_that_cannot_be_copied_are_a_warning():
    with pytest.warns(lyap.LyapunovWarning, match=r"inputs \(generator\) cannot be copied"):
        lyap.LyapunovProbe(gru(), (row for row in X))


def test_a_packed_batch_stays_what_it_was():
    packed = nn.utils.rnn.pack_padded_sequence(
        torch.randn(4, 25, 3), torch.tensor([25] * 4), batch_first=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lyap.LyapunovWarning)  # may not be measured yet
        probe = lyap.LyapunovProbe(gru(), packed)
    first = probe._inputs.data.clone()
    packed.data.zero_()
    assert torch.equal(probe._inputs.data, first)
