"""What is stored with a trial survives, stays small, and is never trusted blindly."""

import dataclasses
import json
import math

import optuna
import pytest
from optuna.trial import TrialState

from lyap_optuna import LyapunovWarning, records
from lyap_optuna.records import Decision, ReadoutRecord

optuna.logging.set_verbosity(optuna.logging.WARNING)


def record(value=-0.1, layers=None, **more):
    measured = ReadoutRecord.from_measurement(
        max=value, mean=value - 1, max_stderr=0.01, mean_stderr=None, **more
    )
    return dataclasses.replace(measured, layers=layers or {})


def frozen(readouts, number=0, **more):
    trial = optuna.create_trial(
        value=more.pop("value", 1.0),
        intermediate_values=more.pop("intermediate_values", {}),
        user_attrs={"lyapunov:readouts": readouts, **more},
    )
    trial.number = number
    return trial


def test_stored_numbers_are_finite_json_of_six_digits():
    r = ReadoutRecord.from_measurement(
        max=0.123456789,
        mean=-math.inf,
        max_stderr=math.inf,
        mean_stderr=math.nan,
        quantiles=(-math.inf, -20.0, -1.0),
    )
    stored = r.to_json()
    assert json.loads(json.dumps(stored, allow_nan=False)) == stored
    assert stored["max"] == 0.123457
    assert stored["mean"] == -16.0
    assert stored["max_stderr"] is None
    assert stored["mean_stderr"] is None
    assert stored["quantiles"] == [-16.0, -16.0, -1.0]
    assert stored["floored"] is True
    assert "floored" not in record().to_json()
    with pytest.raises(ValueError, match="max exponent is nan"):
        record(math.nan)
    with pytest.raises(ValueError, match="max exponent is inf"):
        record(math.inf)


def test_at_most_four_writes(monkeypatch):
    trial = optuna.create_study().ask()
    calls = []
    real = trial.set_user_attr
    monkeypatch.setattr(trial, "set_user_attr", lambda k, v: (calls.append(k), real(k, v)))
    records.write_readouts(trial, {1: record()}, baseline=(0, record()))
    assert len(calls) <= 4
    calls.clear()
    records.write_readouts(trial, {2: record()})
    assert len(calls) <= 3


def test_an_import_without_a_mark_counts():
    trial = frozen({"0": {"max": -1, "mean": -2}, "1": {"max": -1, "mean": -2}}, number=9)
    assert list(records.read_readouts(trial)) == [0, 1]


@pytest.mark.parametrize(
    "readouts",
    [
        "not an object",
        {"x": {"max": 1, "mean": 1}},
        {"1": [1, 2]},
        {"1": {"max": "high", "mean": 1}},
        {"1": {"max": float("nan"), "mean": 1}},
        {"1": {"max": True, "mean": 1}},
        {"1": {"max": 10**400, "mean": 1}},
        {"1": {"mean": 1}},
        {"1": {"max": 1, "mean": "high"}},
        {"1": {"max": 1, "mean": math.inf}},
        {"1": {"max": 1, "mean": 1, "state": "cell"}},
        {"1": {"max": 1, "mean": 1, "state": ["full"]}},
    ],
)
def test_what_does_not_validate_is_ignored_with_a_warning(readouts):
    with pytest.warns(LyapunovWarning, match="Ignored 1 invalid readout"):
        assert records.read_readouts(frozen(readouts)) == {}


def test_valid_readouts_beside_invalid_ones_count():
    with pytest.warns(LyapunovWarning):
        read = records.read_readouts(frozen({"1": {}, "2": {"max": 0, "mean": -1}}))
    assert list(read) == [2]


def test_odd_details_are_dropped():
    (read,) = records.read_readouts(
        frozen({"1": {"max": 0, "mean": -1, "max_stderr": "x", "quantiles": [1, "a"]}})
    ).values()
    assert read.max_stderr is None
    assert read.quantiles is None


def test_a_readout_that_does_not_say_its_state_is_of_the_hidden_one():
    (read,) = records.read_readouts(frozen({"1": {"max": 0, "mean": -1}})).values()
    assert read.state == "hidden"
    assert read.layers == {}


def test_a_mean_that_cannot_be_had():
    trial = optuna.create_study().ask()
    without = ReadoutRecord.from_measurement(
        max=-0.5, mean=None, max_stderr=None, mean_stderr=0.1, state="full"
    )
    records.write_readouts(trial, {0: record(-0.2), 1: without})
    attrs = trial.study.trials[0].user_attrs
    assert attrs["lyapunov:readouts"]["1"]["mean"] is None
    assert attrs["lyapunov:readouts"]["1"]["mean_stderr"] is None
    assert attrs["lyapunov:max"] == -0.5
    assert "lyapunov:mean" not in attrs
    assert records.read_readouts(trial.study.trials[0])[1] == without
    (absent,) = records.read_readouts(frozen({"1": {"max": 0}})).values()
    assert absent.mean is None


@pytest.mark.parametrize(
    "layers",
    [3, ["encoder"], {"encoder": 3}, {"encoder": {"mean": 1}}, {"encoder": {"max": math.nan}}],
)
def test_layers_that_do_not_validate_are_left_out(layers):
    found = {"max": 0, "mean": -1, "layers": layers}
    (read,) = records.read_readouts(frozen({"1": found})).values()
    assert read.layers == {}
    assert read.max == 0


def test_layers_within_layers_are_no_layers():
    nested = {"max": 0, "mean": -1}
    for _ in range(2_000):
        nested = {"max": 0, "mean": -1, "layers": {"": nested}}
    read = ReadoutRecord.from_json(nested)
    assert list(read.layers) == [""]
    assert read.layers[""].layers == {}


@pytest.mark.parametrize(
    ("n_layers", "quantiles", "kept"),
    [(3, True, "all"), (48, True, "without quantiles"), (48, False, "all"), (200, False, "none")],
)
def test_many_layers_leave_room_for_eight_steps(n_layers, quantiles, kept):
    trial = optuna.create_study().ask()
    ascending = tuple(-q / 7 for q in range(32, 0, -1)) if quantiles else None

    def measured(step):
        value = -step / 7000 - 1 / 3
        layers = {
            f"encoder.layers.{i}.lstm": record(value, quantiles=ascending, state="full")
            for i in range(n_layers)
        }
        return record(value, state="full", layers=layers)

    for step in range(40):
        records.write_readouts(trial, {step: measured(step)})
        stored = trial.study.trials[0].user_attrs["lyapunov:readouts"]
        assert len(json.dumps(stored).encode()) <= 60_000
        assert len(stored) >= min(step + 1, 8)
    for readout in stored.values():
        layers = readout.get("layers", {})
        assert len(layers) == (0 if kept == "none" else n_layers)
        assert all(("quantiles" in r) == (kept == "all" and quantiles) for r in layers.values())


def test_before_any_report_a_readout_at_a_negative_step_is_the_baseline():
    for series, baseline in (({-1: 0}, -1), ({-1: 0, 0: 0, 7: 0}, -1), ({0: 0, 7: 0}, None)):
        trial = frozen({str(step): {"max": 0, "mean": -1} for step in series})
        assert records.baseline_step(trial, records.read_readouts(trial)) == baseline


def test_a_readout_is_moved_once_and_never_onto_another():
    trial = optuna.create_study().ask()
    records.write_readouts(trial, {-1: record(-0.1)})
    baseline = record(-0.1)
    records.write_readouts(trial, {1: record(-0.2)}, baseline=(0, baseline), moved_from=-1)
    records.write_readouts(trial, {}, baseline=(0, baseline), moved_from=-1)
    series = records.read_readouts(trial.study.trials[0])
    assert series == {0: record(-0.1), 1: record(-0.2)}
    records.write_readouts(trial, {}, baseline=(1, baseline), moved_from=0)
    assert records.read_readouts(trial.study.trials[0]) == series


def decision(step, verdict="kept", evidence=("loss",)):
    return Decision(
        step=step,
        verdict=verdict,
        told="because",
        predicted_value=1 / 3,
        evidence=evidence,
        skill=0.5,
        n_trials=12,
    )


def test_decisions_keep_those_they_differ_from():
    study = optuna.create_study()
    trial = study.ask()
    stale = study.trials[0]  # the pruner's copy does not see later writes
    for d in (
        decision(1),
        decision(2),
        decision(3, evidence=("loss", "displacement")),
        decision(4, "pruned", ("loss", "displacement")),
    ):
        records.write_decision(study, stale, d)
    stored = study.trials[0]
    assert [d.step for d in records.read_decisions(stored)] == [2, 3, 4]
    assert records.read_decisions(stored)[-1].predicted_value == 0.333333
    assert stored.user_attrs["lyapunov:predicted_value"] == 0.333333
    del trial


def test_decisions_of_a_dead_attempt_are_not_the_retrys():
    study = optuna.create_study()
    study.ask()
    records.write_decision(study, study.trials[0], decision(1))
    retried = study.trials[0]
    retried.number = 5  # and it runs
    assert records.read_decisions(retried) == []
    retried.state = TrialState.COMPLETE
    retried.system_attrs = {"failed_trial": 0, "retry_history": [0]}
    assert records.read_decisions(retried) == []


@pytest.mark.parametrize("stored", [3, {"step": "1"}, {"step": 1, "verdict": "maybe"}])
def test_decisions_that_do_not_validate_are_ignored(stored):
    trial = optuna.create_trial(value=1.0, user_attrs={"lyapunov:decision": stored})
    if isinstance(stored, dict):
        with pytest.warns(LyapunovWarning, match="invalid decision"):
            assert records.read_decisions(trial) == []
    else:
        assert records.read_decisions(trial) == []


def test_a_decision_that_cannot_be_written_is_a_warning(monkeypatch):
    study = optuna.create_study()
    study.ask()

    def refuse(*args):
        raise OSError("mysql://user:secret@host")

    monkeypatch.setattr(study._storage, "set_trial_user_attr", refuse)
    with pytest.warns(LyapunovWarning, match="OSError") as caught:
        records.write_decision(study, study.trials[0], decision(1))
    assert not any("secret" in str(w.message) for w in caught)


@pytest.mark.parametrize("character", ["a", "Ж", "🎉", "\0", '"', "\\", "漢"])
@pytest.mark.parametrize("length", [1, 200, 5000])
def test_reasons_of_any_text_fit_into_an_attribute(character: str, length: int) -> None:
    study = optuna.create_study()
    trial = study.ask()
    for step in range(40):
        records.write_failure(trial, 10**30 + step, character * length)
    stored = study.trials[0].user_attrs["lyapunov:failures"]
    assert len(json.dumps(stored).encode()) <= 60_000
    assert list(stored) == [str(10**30 + step) for step in range(8, 40)]
    assert all(character * min(length, 100) in reason for reason in stored.values())
