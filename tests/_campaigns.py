"""Campaigns for tests: a small objective with a real probe, whose progress is seen in files."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna.campaign import load_config, open_study, run_campaign, storage_of

EPOCHS = 4
COMMAND = "from lyap_optuna.cli import main; main()"

OBJECTIVE = '''
import os
import subprocess
import threading
import time
from pathlib import Path

import optuna
import torch

import lyap_optuna as lyap
from lyap_optuna.campaign import previous_attempt
from lyap_optuna.records import read_readouts, stored_trial

HERE = Path(__file__).parent


def checkpoint(number):
    return HERE / f"checkpoint-{number}"


def train(trial, *, resume=False):
    """Four epochs; epoch e of trial n waits while there is a file hold-n-e or hold."""
    stored = stored_trial(trial)
    trial.set_user_attr("inherited", sorted(read_readouts(stored)))
    trial.set_user_attr("threads", [torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]])
    x = trial.suggest_float("x", 0.0, 1.0)
    y = trial.suggest_categorical("y", ["a", "b"])
    torch.manual_seed(int(1e6 * x))
    model = torch.nn.GRU(input_size=2, hidden_size=3, batch_first=True)
    probe = lyap.LyapunovProbe(model, torch.randn(2, 12, 2), last_step=10)
    first = 0
    if resume and (previous := previous_attempt(trial)) is not None:
        if checkpoint(previous).exists():
            first = int(checkpoint(previous).read_text()) + 1
    for epoch in range(first, 4):
        (HERE / f"at-{trial.number}-{epoch}").write_text(str(os.getpid()))
        while (HERE / f"hold-{trial.number}-{epoch}").exists() or (HERE / "hold").exists():
            time.sleep(0.02)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.1 * x
        probe.report(trial, x + 1 / (1 + epoch), epoch)
        checkpoint(trial.number).write_text(str(epoch))
        if trial.should_prune():
            raise optuna.TrialPruned
    return x


def objective(trial):
    return train(trial)


def resuming(trial):
    return train(trial, resume=True)


def swallows(trial):
    try:
        return train(trial)
    except Exception:
        return 1.0


def curve(trial, *, resume=False):
    """Six epochs; a trial from the ninth on waits before its first while there is hold-later.

    The trials that train epoch e of a configuration x are listed in the file trained-x-e.
    """
    x = trial.suggest_float("x", -1.0, 1.0)
    first = 0
    if resume and (previous := previous_attempt(trial)) is not None:
        if (saved := HERE / "checkpoints" / f"{previous}.txt").exists():
            first = int(saved.read_text()) + 1
    for epoch in range(first, 6):
        (HERE / f"at-{trial.number}-{epoch}").write_text(str(os.getpid()))
        while epoch == first and trial.number >= 9 and (HERE / "hold-later").exists():
            time.sleep(0.02)
        with (HERE / f"trained-{x}-{epoch}").open("a") as file:
            file.write(f"{trial.number}\\n")
        if resume:  # before it can be stopped, at the report
            (HERE / "checkpoints").mkdir(exist_ok=True)
            (HERE / "checkpoints" / f"{trial.number}.txt").write_text(str(epoch))
        trial.report(x * x + 1 / (1 + epoch), epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return x * x


def resuming_curve(trial):
    return curve(trial, resume=True)


def generator(trial):
    x = trial.suggest_float("x", -1.0, 1.0)
    yield
    for epoch in range(6):
        trial.report(x * x + 1 / (1 + epoch), epoch)
        yield
    return x * x


MODELS = set()


def out_of_memory(trial):
    """There is room for four models, in each process."""
    x = trial.suggest_float("x", -1.0, 1.0)
    MODELS.add(trial.number)
    try:
        if len(MODELS) > 4:
            raise MemoryError
        for epoch in range(6):
            trial.report(x * x + 1 / (1 + epoch), epoch)
            yield
        return x * x
    finally:
        MODELS.discard(trial.number)


def on_a_grid(trial):
    i = trial.suggest_int("i", 0, 9)
    for epoch in range(6):
        trial.report(i + 1 / (1 + epoch), epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return i


def slow(trial):
    x = trial.suggest_float("x", 0.0, 1.0)
    for epoch in range(4):
        time.sleep(0.05)
        trial.report(x, epoch)
    return x


def endless(trial):
    trial.suggest_float("x", 0.0, 1.0)
    step = 0
    while True:
        time.sleep(0.05)
        trial.report(0.0, step)
        step += 1
        (HERE / f"at-{trial.number}-0").write_text(str(os.getpid()))


def forks(trial):
    """A child that outlives its parent holds all that was open."""
    if (child := os.fork()) == 0:
        time.sleep(600)
        os._exit(0)
    (HERE / f"child-{os.getpid()}").write_text(str(child))
    return train(trial)


def spawns(trial):
    """So does another program that inherits what is open."""
    inherited = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2]
    for fd in inherited:
        try:
            os.set_inheritable(fd, True)
        except OSError:  # what listed them
            pass
    child = subprocess.Popen(["sleep", "600"], close_fds=False)
    (HERE / f"child-{os.getpid()}").write_text(str(child.pid))
    return train(trial)


def leaves_a_thread(trial):
    threading.Thread(target=time.sleep, args=(600,)).start()
    return train(trial)


def fails(trial):
    raise RuntimeError("no <b>luck</b>\\nat all")


def returns_nan(trial):
    return float("nan")


def hangs(trial):
    (HERE / f"at-{trial.number}-0").write_text(str(os.getpid()))
    trial.suggest_float("x", 0.0, 1.0)
    while True:
        time.sleep(0.02)
'''


class Campaign:
    """A campaign file in a folder of its own, beside the objective."""

    def __init__(self, folder: Path, **keys: Any) -> None:
        self.folder = folder
        self.file = folder / "campaign.yaml"
        (folder / "toy.py").write_text(OBJECTIVE)
        self.write(**keys)

    def write(self, **keys: Any) -> None:
        defaults = {"study": "toy", "objective": "toy:objective", "trials": 4}
        self.file.write_text(yaml.safe_dump({**defaults, **keys}, sort_keys=False))

    def run(self, **options: Any) -> Any:
        return run_campaign(load_config(self.file), **options)

    @property
    def study(self) -> optuna.Study:
        config = load_config(self.file)
        return open_study(config, storage_of(config, config.workers or 1), create=False)

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def hold(self, number: int | None = None, epoch: int = 0) -> Path:
        path = self.folder / ("hold" if number is None else f"hold-{number}-{epoch}")
        path.touch()
        return path

    def pid_at(self, number: int, epoch: int) -> int:
        path = self.folder / f"at-{number}-{epoch}"
        wait_for(lambda: path.exists() and path.read_text() != "")
        return int(path.read_text())

    @contextlib.contextmanager
    def process(self, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
        """The command, in a process group of its own; it is killed if the test fails."""
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "campaign", "run", str(self.file), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self.kill_children()

    def kill_children(self) -> None:
        """End what the objectives forks and spawns have left."""
        for file in self.folder.glob("child-*"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(file.read_text()), signal.SIGKILL)


def wait_for(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    """Poll until it holds; the limit only keeps a broken test from running for ever."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "what the test waits for did not happen"
        time.sleep(0.02)


def counts(trials: list[FrozenTrial]) -> dict[str, int]:
    states = [t.state.name for t in trials]
    return {state: states.count(state) for state in sorted(set(states))}


def assert_whole(trials: list[FrozenTrial]) -> None:
    """Every report and every readout of the COMPLETE trials is there, its own, exactly once."""
    assert [t.number for t in trials] == list(range(len(trials)))
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            assert sorted(trial.intermediate_values) == list(range(EPOCHS))
            steps = [str(step) for step in range(-1, EPOCHS)]
            assert sorted(trial.user_attrs["lyapunov:readouts"]) == sorted(steps)
            assert trial.user_attrs["lyapunov:trial"] == trial.number
