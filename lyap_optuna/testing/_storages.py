"""What has to hold of a study wherever Optuna keeps it, as checks."""

import contextlib
import copy
import json
import math
import uuid
import warnings
from collections.abc import Callable, Generator, Mapping
from datetime import datetime, timedelta
from typing import Any
from unittest import mock

import numpy as np
import optuna
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, InMemoryStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from torch import Tensor, nn

from lyap_optuna._warnings import LyapunovWarning
from lyap_optuna.prediction import explain, rank_trials
from lyap_optuna.probe import LyapunovProbe
from lyap_optuna.pruner import LyapunovPruner
from lyap_optuna.records import (
    Decision,
    NoDatabaseError,
    ReadoutRecord,
    Stretch,
    _keys,
    copy_study,
    load_spectra,
    read_decisions,
    read_readouts,
    read_stretches,
    write_decision,
    write_readouts,
    write_stretches,
)
from lyap_optuna.records._decisions import MAX_DECISIONS
from lyap_optuna.records._json import MAX_BYTES
from lyap_optuna.records._storages import engine_of
from lyap_optuna.search import freeze_thaw
from lyap_optuna.testing._expect import HOSTILE, expect, require

Opened = Callable[[], BaseStorage]
"""Returns the storage; called again, the same one as another process would open it."""

_SECRET = "s3cret"
_QUANTILES = 32


def _study(opened: Opened, **options: Any) -> Study:
    name = f"{uuid.uuid4().hex} {HOSTILE}"
    options = {"pruner": LyapunovPruner(), **options}
    return optuna.create_study(storage=opened(), study_name=name, **options)


def _elsewhere(opened: Opened, study: Study) -> Study:
    """Return the study as another process sees it."""
    return optuna.load_study(study_name=study.study_name, storage=opened())


def _seen(opened: Opened, trial: Trial) -> FrozenTrial:
    """Return a trial as another process sees it."""
    return _elsewhere(opened, trial.study).trials[trial.number]


def _record(value: float, **more: Any) -> ReadoutRecord:
    return ReadoutRecord(max=value, mean=value - 1, max_stderr=0.01, state="full", **more)


def _model(seed: int = 0) -> nn.GRU:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.GRU(2, 3, batch_first=True)


def _inputs() -> Tensor:
    return torch.randn(3, 12, 2, generator=torch.Generator().manual_seed(0))


def _retried(trial: Trial) -> Trial:
    """Let a trial fail and be retried as Optuna does it; return the next attempt."""
    study = trial.study
    study.tell(trial, state=TrialState.FAIL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        RetryHeartbeatStaleTrialCallback()(study, study.trials[trial.number])
    return study.ask()


# What Optuna keeps --------------------------------------------------------------------------------

_TOLD: dict[str, Any] = dict(
    params={"lr": 1 / 3, "units": 7, "cell": "GRU"},
    distributions={
        "lr": FloatDistribution(1e-3, 1.0, log=True),
        "units": IntDistribution(1, 9),
        "cell": CategoricalDistribution(["LSTM", "GRU", None]),
    },
    intermediate_values={0: math.nan, 1: math.inf, 2: -math.inf, 3: 1 / 3},
    user_attrs={HOSTILE: [1, None, "x"]},
    system_attrs={"mine": {HOSTILE: 1.5}},
)


def a_trial_comes_back_whole(opened: Opened) -> None:
    """All that Optuna keeps of trials and studies comes back, written at once or in pieces."""
    study = _study(opened, direction="maximize")
    storage, key = study._storage, study._study_id
    storage.set_study_user_attr(key, HOSTILE, [1, None])
    storage.set_study_system_attr(key, "mine", {HOSTILE: 1.5})
    endings = [
        (TrialState.PRUNED, 1 / 3),
        (TrialState.COMPLETE, -math.inf),
        (TrialState.FAIL, None),
    ]
    written = [optuna.create_trial(state=state, value=v, **_TOLD) for state, v in endings]
    for trial in written:
        trial.datetime_start = datetime(2024, 2, 29, 23, 59, 58, 123456)
        trial.datetime_complete = datetime(2024, 3, 1, 0, 0, 1, 456789)
        study.add_trial(trial)
        _write_in_pieces(storage, storage.create_new_trial(key), trial)
    there = _elsewhere(opened, study)
    expect(there.direction, StudyDirection.MAXIMIZE, "the direction of a study")
    expect(there.user_attrs, {HOSTILE: [1, None]}, "a study's user attributes")
    mine = there._storage.get_study_system_attrs(there._study_id).get("mine")
    expect(mine, {HOSTILE: 1.5}, "a study's system attribute")
    expect(len(there.trials), 2 * len(written), "the number of trials")
    for i, trial in enumerate(written):
        found = there.trials[2 * i : 2 * i + 2]
        for one in (*found, *(there._storage.get_trial(t._trial_id) for t in found)):
            for name in ("state", "values", *_TOLD):
                what = f"{name} of a {trial.state.name} trial"
                expect(_fact(one, name), _fact(trial, name), what)
        for name in ("datetime_start", "datetime_complete"):
            time, right = getattr(found[0], name), getattr(trial, name)
            near = time is not None and abs(time - right) <= _clock(there._storage)
            require(near, f"{name} came back as {time}, where {right} is right.")
        begun, ended = found[1].datetime_start, found[1].datetime_complete
        require(begun and ended and begun <= ended, f"a trial ran from {begun} to {ended}.")


def _write_in_pieces(storage: BaseStorage, trial_id: int, trial: FrozenTrial) -> None:
    for name, of in trial.distributions.items():
        storage.set_trial_param(trial_id, name, of.to_internal_repr(trial.params[name]), of)
    for step, value in trial.intermediate_values.items():
        storage.set_trial_intermediate_value(trial_id, step, value)
    for name, value in trial.user_attrs.items():
        storage.set_trial_user_attr(trial_id, name, value)
    for name, value in trial.system_attrs.items():
        storage.set_trial_system_attr(trial_id, name, value)
    storage.set_trial_state_values(trial_id, trial.state, trial.values)


def _fact(trial: FrozenTrial, name: str) -> str:
    # As text: NaN equals NaN, and 7 is not 7.0. A storage may add system attributes of its own.
    told = getattr(trial, name)
    if name == "system_attrs":
        told = {"mine": told.get("mine")}
    return repr(sorted(told.items()) if isinstance(told, dict) else told)


def _clock(storage: BaseStorage) -> timedelta:
    """Return what a time may be off by: Optuna's columns in MySQL and MariaDB hold seconds."""
    try:
        rounds = engine_of(storage).dialect.name in ("mysql", "mariadb")
    except NoDatabaseError:
        rounds = False
    return timedelta(seconds=rounds)


# Readouts -----------------------------------------------------------------------------------------


def readouts_come_back(opened: Opened) -> None:
    """A readout comes back with six digits, with its layers, and whatever they are named."""
    trial = _study(opened).ask()
    numbers = dict(max=-1 / 3, mean=-4 / 3, max_stderr=2 / 3, mean_stderr=None, state="full")
    measured = ReadoutRecord.from_measurement(**numbers)  # type: ignore[arg-type]
    expect((measured.max, measured.max_stderr), (-0.333333, 0.666667), "numbers to be stored")
    quantiles = tuple(-1.5 + q / 64 for q in range(_QUANTILES))
    whole = _record(-0.25, quantiles=quantiles, clipped_fraction=0.5)
    layers = {"encoder": whole, HOSTILE: _record(-0.5)}
    written = {0: measured, 1: _record(-0.25, layers=layers)}
    write_readouts(trial, written)
    stored = _seen(opened, trial)
    expect(read_readouts(stored), written, "readouts that were written and read")
    latest = (stored.user_attrs.get(_keys.MAX), stored.user_attrs.get(_keys.MEAN))
    expect(latest, (-0.25, -1.25), "the latest maximum and mean exponent")


def a_second_process_extends_the_series(opened: Opened) -> None:
    """A probe in another process adds to a trial's series, and neither overwrites the other."""
    trial = _study(opened).ask()
    other = Trial(_elsewhere(opened, trial.study), trial._trial_id)
    mine, theirs = (LyapunovProbe(_model(seed), _inputs()) for seed in (0, 1))
    for step, (probe, of) in enumerate([(mine, trial), (theirs, other), (mine, trial)]):
        probe.report(of, 1.0, step)
    found = read_readouts(_seen(opened, trial))
    expect(list(found), [-1, 0, 1, 2], "the steps of two probes of one trial")
    require(found[0].max != found[1].max, "one probe's readout stands in place of the other's.")


def the_baseline_is_stored_once(opened: Opened) -> None:
    """The readout before training is the first one's, also where a second process measures."""
    trial = _study(opened).ask()
    LyapunovProbe(_model(0), _inputs(), trial=trial)
    first = read_readouts(_seen(opened, trial))
    again = LyapunovProbe(
        _model(1), _inputs(), trial=Trial(_elsewhere(opened, trial.study), trial._trial_id)
    )
    again.report(Trial(_elsewhere(opened, trial.study), trial._trial_id), 1.0, 0)
    found = read_readouts(_seen(opened, trial))
    expect(list(found), [-1, 0], "the steps of the readouts")
    expect(found[-1], first[-1], "the baseline after a second one was measured")


def a_long_series_stays_small(opened: Opened) -> None:
    """Of any number of readouts less than 60,000 bytes are kept, the first and the last too."""
    trial = _study(opened).ask()
    quantiles = tuple(-q / 7 for q in range(_QUANTILES, 0, -1))
    write_readouts(trial, {step: _record(-step / 7000, quantiles=quantiles) for step in range(250)})
    write_readouts(trial, {250: _record(-0.1, quantiles=quantiles)})
    stored = _seen(opened, trial)
    size = len(json.dumps(stored.user_attrs.get(_keys.READOUTS)).encode())
    require(size <= MAX_BYTES <= 60_000, f"a series takes {size} bytes, over {MAX_BYTES}.")
    steps = list(read_readouts(stored))
    expect((steps[0], steps[-1], steps), (0, 250, sorted(steps)), "the first and the last step")
    require(len(steps) > 50, f"only {len(steps)} readouts were kept.")


def nan_is_never_stored(opened: Opened) -> None:
    """A network that has become NaN costs a warning, and attributes stay JSON without NaN."""
    trial, model = _study(opened).ask(), _model()
    probe = LyapunovProbe(model, _inputs())
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        probe.report(trial, float("nan"), 0)
    require(any(w.category is LyapunovWarning for w in caught), "NaN weights cost no warning.")
    stored = _seen(opened, trial)
    expect([s for s in read_readouts(stored) if s >= 0], [], "readouts of a network of NaN")
    json.dumps(stored.user_attrs, allow_nan=False)


def a_retry_knows_whose_readouts_it_has(opened: Opened) -> None:
    """``lyapunov:trial`` is the dead attempt's number until the next attempt has measured."""
    dead = _study(opened).ask()
    probe = LyapunovProbe(_model(0), _inputs())
    for step in range(3):
        probe.report(dead, 1.0, step)
    before = read_readouts(_seen(opened, dead))
    trial = _retried(dead)
    trial.report(1.0, 1)
    inherited = _seen(opened, trial)
    expect(inherited.user_attrs.get(_keys.TRIAL), dead.number, "whose readouts a retry inherits")
    counting = {step: before[step] for step in (-1, 1)}
    expect(read_readouts(inherited), counting, "readouts of the dead attempt that count")
    LyapunovProbe(_model(1), _inputs()).report(trial, 1.0, 2)
    own = _seen(opened, trial)
    expect(
        own.user_attrs.get(_keys.TRIAL), trial.number, "whose readouts a retry has that measured"
    )
    expect(list(read_readouts(own)), [-1, 1, 2], "steps of a retry that measured")


# Whole spectra ------------------------------------------------------------------------------------


def spectra_are_whole_in_a_database_and_quantiles_elsewhere(opened: Opened) -> None:
    """32 quantiles are with the trial; exponents, to the last bit, where there is SQL."""
    study = _study(opened)
    trial = study.ask()
    probe = LyapunovProbe(_model(), _inputs(), full_spectrum=True)
    probe.report(trial, 1.0, 0)
    (quantiles,) = read_readouts(_seen(opened, trial))[0].spectra().values()
    expect(len(quantiles), _QUANTILES, "the number of quantiles")
    there = _elsewhere(opened, study)
    try:
        engine_of(there._storage)
    except NoDatabaseError:
        try:
            found = load_spectra(there)
        except ValueError as error:
            require("spectra_url=" in str(error), f"the error does not say what to do: {error}")
        else:
            raise ValueError(f"{found!r:.80} were loaded, where nothing can keep whole spectra.")
        return
    spectrum = probe.measure().spectrum
    assert spectrum is not None
    found = load_spectra(there)
    expect([(s.trial_number, s.step) for s in found], [(0, -1), (0, 0)], "spectra in the database")
    expect(found[-1].exponents, tuple(spectrum.exponents.tolist()), "exponents in the database")


# Decisions ----------------------------------------------------------------------------------------


def decisions_are_at_most_32(opened: Opened) -> None:
    """Of decisions that differ the latest 32 are kept, and read as they were written."""
    study = _study(opened)
    trial = study.ask()
    frozen, written = study.trials[trial.number], []
    for step in range(MAX_DECISIONS + 4):
        verdict = ("kept", "pruned")[step % 2]
        told = Decision(step, verdict, probability=0.25, evidence=("loss",), n_trials=12)
        write_decision(study, frozen, told)
        written.append((step, verdict, 0.25, ("loss",), 12))
    found = [
        (d.step, d.verdict, d.probability, d.evidence, d.n_trials)
        for d in read_decisions(_seen(opened, trial))
    ]
    expect(found, written[-MAX_DECISIONS:], "decisions that were written and read")


def decisions_do_not_depend_on_the_storage(opened: Opened) -> None:
    """Pruner, ranking and explanation say the same as in memory, in whatever order steps come."""
    told = _decided(_study(opened, **_seeded()))
    expect(told, _decided(optuna.create_study(**_seeded())), "what was decided and is told")


def _seeded() -> dict[str, Any]:
    return {
        "sampler": optuna.samplers.RandomSampler(seed=0),
        "pruner": LyapunovPruner(n_startup_trials=4),
    }


def _decided(study: Study) -> list[tuple[Any, ...]]:
    rng = np.random.default_rng(1)

    def objective(trial: Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        for i, step in enumerate((2, 0, 3, 1)):
            trial.report((x if i else 0.0) + 1 / (1 + i) + 0.05 * rng.normal(), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return x

    study.optimize(objective, n_trials=6)
    decided = [
        ([(d.step, d.probability) for d in read_decisions(t)], t.state == TrialState.PRUNED)
        for t in study.trials
    ]
    ranked = [(r.number, r.step, r.predicted_value) for r in rank_trials(study)]
    return [*decided, *ranked, (str(explain(study, 5)),)]


# Trials that rest ---------------------------------------------------------------------------------


def a_trial_that_rests_stays_so(opened: Opened) -> None:
    """A paused trial is RUNNING and marked as resting, with all its stretches."""
    trial = _study(opened).ask()
    trial.report(1.0, 0)
    stretches = [
        Stretch(0.0, 1.5, 1, after=0.25, instead=3),
        Stretch(9.0, 2.5, 2, before=0.5, index=1),
    ]
    write_stretches(trial, stretches)
    trial.set_user_attr(_keys.RESTING, True)
    stored = _seen(opened, trial)
    expect(read_stretches(stored), stretches, "when a trial ran")
    found = (stored.state, stored.user_attrs.get(_keys.RESTING))
    expect(found, (TrialState.RUNNING, True), "the state of a trial that rests")


def freeze_thaw_searches_as_in_memory(opened: Opened) -> None:
    """The search that pauses trials makes the same reports as on a study in memory."""
    told = _thawed(_study(opened, sampler=optuna.samplers.RandomSampler(seed=0)))
    wanted = _thawed(optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)))
    expect(told, wanted, "reports and rests of each trial")


def _thawed(study: Study) -> list[tuple[Any, ...]]:
    def objective(trial: Trial) -> Generator[None, None, float]:
        x, y = (trial.suggest_float(name, -1.0, 1.0) for name in "xy")
        for epoch in range(3):
            late = (epoch + 1) / 3
            trial.report(late * x**2 + (1 - late) * abs(y), epoch)
            yield
        return x**2

    freeze_thaw(study, objective, n_steps=20, seed=0, cost="steps")
    return [
        (t.state.name, t.intermediate_values, [s.reports for s in read_stretches(t)])
        for t in study.trials
    ]


# Copies, and what must not be told ----------------------------------------------------------------


def a_copy_has_all_of_it(opened: Opened) -> None:
    """A copy, here or elsewhere, has all attributes; one by our command has its spectra too."""
    study = _study(opened)
    dead = study.ask()
    LyapunovProbe(_model(), _inputs(), full_spectrum=True).report(dead, 1.0, 0)
    write_decision(study, study.trials[dead.number], Decision(0, "kept", probability=0.25))
    trial = _retried(dead)
    LyapunovProbe(_model(1), _inputs(), trial=trial).report(trial, 1.0, 0)
    study.tell(trial, 1.0)
    source = _elsewhere(opened, study)
    wanted = [_stored(t) for t in source.trials]
    for target in (source._storage, InMemoryStorage()):
        name = f"copy of {study.study_name}"
        optuna.copy_study(
            from_study_name=study.study_name,
            from_storage=source._storage,
            to_storage=target,
            to_study_name=name,
        )
        copied = optuna.load_study(study_name=name, storage=target)
        expect([_stored(t) for t in copied.trials], wanted, "what optuna.copy_study carries")
    with contextlib.suppress(NoDatabaseError):
        engine_of(source._storage)
        copied, _ = copy_study(source, source._storage, f"whole copy of {study.study_name}")
        expect([_stored(t) for t in copied.trials], wanted, "what copy_study carries")
        expect(load_spectra(copied), load_spectra(source), "spectra of a copy")


def _stored(trial: FrozenTrial) -> tuple[Any, ...]:
    own: Mapping[str, Any] = trial.user_attrs
    return trial.state, own, read_readouts(trial), len(read_decisions(trial))


def passwords_are_in_no_warning(opened: Opened) -> None:
    """Where a write fails with an error that holds a URL, its password is told to nobody."""
    study = _study(opened)
    trial = study.ask()
    frozen = copy.deepcopy(study.trials[trial.number])
    error = OSError(f"cannot connect to postgresql://user:{_SECRET}@host/name?password={_SECRET}")
    with (
        mock.patch.object(study._storage, "set_trial_user_attr", side_effect=error),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        LyapunovProbe(_model(), _inputs()).report(trial, 1.0, 0)
        write_decision(study, frozen, Decision(0, "kept"))
    told = [str(w.message) for w in caught if w.category is LyapunovWarning]
    require(len(told) >= 2, "writes that failed cost no warning.")
    expect([text for text in told if _SECRET in text], [], "warnings with a password")
    expect(list(_seen(opened, trial).intermediate_values), [0], "reports beside writes that failed")


STORAGE_CHECKS = (
    a_trial_comes_back_whole,
    readouts_come_back,
    a_second_process_extends_the_series,
    the_baseline_is_stored_once,
    a_long_series_stays_small,
    nan_is_never_stored,
    a_retry_knows_whose_readouts_it_has,
    spectra_are_whole_in_a_database_and_quantiles_elsewhere,
    decisions_are_at_most_32,
    decisions_do_not_depend_on_the_storage,
    a_trial_that_rests_stays_so,
    freeze_thaw_searches_as_in_memory,
    a_copy_has_all_of_it,
    passwords_are_in_no_warning,
)
"""What holds wherever a study is kept, each a function of a function that opens the storage."""
