"""What the workers run: a small network, whose every report stands in the worker's ledger."""

import functools
import itertools
import os
import random
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.storages import BaseStorage

import lyap_optuna as lyap
from studies.soak.ledger import Ledger

FOLDER = "LYAP_SOAK_LEDGERS"
"""Environment variable: the folder of the ledgers."""

LOSES = "LYAP_SOAK_LOSES"
"""Environment variable: the storage drops each so many-th report; empty for a sound one."""

EPOCHS = 8
MEASURED = 5
"""Steps up to this one have a readout; the others have a value alone."""

PAUSE = 0.05
"""Seconds that an epoch trains, so that faults meet trials at work and at rest."""


@functools.cache
def _ledger(folder: str) -> Ledger:
    return Ledger(Path(folder))


def objective(trial: optuna.Trial) -> float:
    """Train, in a worker of a campaign."""
    if every := os.environ.get(LOSES):
        make_lossy(trial.storage, int(every))
    return train(trial, _ledger(os.environ[FOLDER]))


def train(trial: optuna.Trial, ledger: Ledger) -> float:
    """Report values and readouts that no other step of the study has; some trials end early."""
    x = trial.suggest_float("x", 0.0, 1.0)
    first = int(1000 * x) % 2  # the same in a retry: loops count from 0, or from 1
    ledger.write("begun", trial.number, x=x, first=first)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", lyap.LyapunovWarning)
        network = None if trial.number % 4 == 3 else _Network(trial, ledger)
        if network is not None and network.stored_baseline and not caught:
            ledger.write("acknowledged", trial.number, step=-1, readout=True)
        value = 0.0
        for step in range(first, first + EPOCHS):
            time.sleep(PAUSE)
            value = random.Random(f"{trial.number} {step}").random()
            if network is None:
                ledger.write("sent", trial.number, step=step, value=value)
                trial.report(value, step)
                ledger.write("acknowledged", trial.number, step=step)
            else:
                measured = network.train(step)
                ledger.write("sent", trial.number, step=step, value=value, **measured)
                network.probe.report(trial, value, step)
                # A probe warns once of what it could not store: later readouts are doubtful too.
                readout = bool(measured) and not caught
                ledger.write("acknowledged", trial.number, step=step, readout=readout)
            if step == first + 3 and x > 0.9:
                raise optuna.TrialPruned
            if step == first + 3 and x > 0.85:
                raise RuntimeError("One objective in twenty fails.")
        ledger.write("returned", trial.number, value=value)
        return value


class _Network:
    def __init__(self, trial: optuna.Trial, ledger: Ledger) -> None:
        torch.manual_seed(trial.number)  # a retry has another network than the dead attempt
        self._model = torch.nn.GRU(input_size=2, hidden_size=4, batch_first=True)
        self._inputs = torch.randn(2, 12, 2)
        self._meter = self._probe(baseline=False)
        ledger.write("sent", trial.number, step=-1, **self._measured())
        # That of a trial which inherits readouts is stored with the first report.
        self.stored_baseline = "lyapunov:readouts" not in trial.user_attrs
        self.probe = self._probe(trial=trial, last_step=MEASURED)

    def _probe(self, **options: Any) -> lyap.LyapunovProbe:
        return lyap.LyapunovProbe(self._model, self._inputs, full_spectrum=True, **options)

    def train(self, step: int) -> dict[str, Any]:
        """Move the weights; return what the probe will measure at ``step``."""
        with torch.no_grad():
            for weight in self._model.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
        return self._measured() if step <= MEASURED else {}

    def _measured(self) -> dict[str, Any]:
        readout = self._meter.measure()
        (layer,) = readout.layers.values()
        exponents = layer.spectrum.exponents.tolist() if layer.spectrum is not None else []
        return {"readout": [readout.max, readout.mean], "exponents": exponents}


def make_lossy(storage: BaseStorage, every: int) -> None:
    """Let a storage forget every so many-th report, silently."""
    if "set_trial_intermediate_value" in vars(storage):
        return
    store, count = storage.set_trial_intermediate_value, itertools.count(1)

    def forgetful(trial_id: int, step: int, intermediate_value: float) -> None:
        if next(count) % every:
            store(trial_id, step, intermediate_value)

    vars(storage)["set_trial_intermediate_value"] = forgetful
