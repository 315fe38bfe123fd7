"""Replay: recordings that travel, pruners judged through Optuna's own loop."""

import dataclasses
import gzip
import json
import math
import os
import time
import tracemalloc
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import pytest
from click.testing import CliRunner
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.pruners import MedianPruner, NopPruner, PercentilePruner
from optuna.trial import TrialState, create_trial

import lyap_optuna as lyap
from lyap_optuna.cli import main
from lyap_optuna.records import Stretch, write_stretches
from lyap_optuna.replay import (
    REGRET_AT,
    Choosing,
    Recording,
    RecordingError,
    compare_pruners,
    default_pruners,
    replay,
    replay_freeze_thaw,
    summarize,
    winners,
)
from lyap_optuna.replay._compare import fingerprint
from lyap_optuna.replay._recorded import order_of
from lyap_optuna.replay._replay import run
from lyap_optuna.visualization import plot_regret, plot_replay
from studies.recordings.tasks import TASKS

DATA = Path(__file__).parents[1] / "studies" / "recordings" / "data"
RECORDINGS = sorted(DATA.glob("*.json.gz"))


def made_study(n: int = 30, *, direction: str = "minimize", seed: int = 0) -> optuna.Study:
    """A study whose early losses say nothing, and whose displacement says all."""
    rng = np.random.default_rng(seed)
    sign = 1.0 if direction == "minimize" else -1.0
    study = optuna.create_study(study_name=f"made-{seed}", direction=direction)
    for _ in range(n):
        quality = float(rng.uniform())
        losses = {step: sign * float(1.0 + 0.01 * rng.normal()) for step in range(1, 8)}
        losses |= {step: sign * (quality + 0.05 / step) for step in range(8, 11)}
        readouts = {
            "0": {"max": 0.1, "mean": -0.5},
            **{
                str(step): {"max": 0.1 + quality, "mean": -0.5 - quality + 0.02 * rng.normal()}
                for step in (1, 2, 4)
            },
        }
        study.add_trial(
            create_trial(
                params={"lr": float(rng.uniform()), "kind": "a"},
                distributions={
                    "lr": FloatDistribution(0, 1),
                    "kind": CategoricalDistribution(("a", "b")),
                },
                intermediate_values=losses,
                value=losses[10],
                user_attrs={"lyapunov:readouts": readouts},
            )
        )
    return study


def test_a_recording_survives_its_file(tmp_path: Path) -> None:
    study = made_study()
    study.add_trial(
        create_trial(state=TrialState.FAIL, intermediate_values={1: 2.0, 2: math.nan, 3: math.inf})
    )
    study.set_user_attr("kind", "memory")
    recording = Recording.from_study(study)
    for name in ("a.json", "a.json.gz"):
        recording.save(tmp_path / name)
        back = Recording.load(tmp_path / name)
        assert fingerprint(back) == fingerprint(recording)
        assert back.attributes == {"kind": "memory"}
        assert math.isnan(back.trials[-1].final)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.json.gz"]
    again = Recording.from_study(back.to_study())
    assert fingerprint(again) == fingerprint(recording)


@pytest.mark.parametrize("state", [TrialState.PRUNED, TrialState.RUNNING])
def test_a_study_that_did_not_run_to_its_end_is_refused(state: TrialState) -> None:
    study = made_study(3)
    study.add_trial(create_trial(state=state, intermediate_values={1: 0.5}))
    with pytest.raises(RecordingError, match=f"1 of its trials are {state.name}.*trial 3"):
        Recording.from_study(study)


def test_a_study_without_reports_is_refused() -> None:
    study = optuna.create_study()
    study.add_trial(create_trial(value=1.0))
    with pytest.raises(RecordingError, match="no COMPLETE trial that reported"):
        Recording.from_study(study)


def test_a_study_with_constraints_is_refused() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    trial.report(1.0, 0)
    trial.set_constraint("c", 1.0)
    study.tell(trial, 1.0)
    with pytest.raises(RecordingError, match=r"constraints \(the first is trial 0\)"):
        Recording.from_study(study)


def test_readouts_between_reports_are_known_at_the_next() -> None:
    study = optuna.create_study()
    series = {str(step): {"max": -step / 10, "mean": -1.0} for step in (0, 7, 12, 30)}
    study.add_trial(
        create_trial(
            value=1.0,
            intermediate_values={5: 1.0, 10: 1.0, 15: 1.0},
            user_attrs={"lyapunov:readouts": series},
        )
    )
    _, replayed = run(Recording.from_study(study), NopPruner(), 0)
    assert list(replayed.trials[0].user_attrs["lyapunov:readouts"]) == ["0", "7", "12"]


def test_readouts_of_a_dead_attempt_are_not_recorded() -> None:
    study = optuna.create_study()
    series = {str(step): {"max": -0.1, "mean": -1.0} for step in range(5)}
    study.add_trial(
        create_trial(
            value=1.0,
            intermediate_values={1: 1.0, 2: 1.0},
            user_attrs={
                "lyapunov:trial": 99,
                "lyapunov:readouts": series,
                "lyapunov:readouts:full": series,
            },
            system_attrs={"failed_trial": 99, "retry_history": [99]},
        )
    )
    readouts = Recording.from_study(study).trials[0].readouts
    assert {state: list(r) for state, r in readouts.items()} == {
        "recorded": [0, 1, 2],
        "full": [0, 1, 2],
    }


def test_a_study_that_only_diverged_never_succeeds() -> None:
    study = optuna.create_study()
    for _ in range(5):
        study.add_trial(create_trial(state=TrialState.FAIL, intermediate_values={1: math.nan}))
    assert not replay(Recording.from_study(study), NopPruner(), 0).succeeded


def test_an_infinite_choice_cannot_be_saved_and_says_so(tmp_path: Path) -> None:
    study = optuna.create_study()
    study.add_trial(
        create_trial(
            params={"clip": math.inf},
            distributions={"clip": CategoricalDistribution((1.0, math.inf))},
            value=1.0,
            intermediate_values={1: 1.0},
        )
    )
    recording = Recording.from_study(study)
    assert replay(recording, NopPruner(), 0).succeeded
    with pytest.raises(RecordingError, match="a hyperparameter is NaN or infinite"):
        recording.save(tmp_path / "new" / "x.json")
    assert not (tmp_path / "new").exists()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    good = tmp_path / "good.json"
    Recording.from_study(made_study(3)).save(good)
    document = json.loads(good.read_text())
    damages = {
        "not json": "{",
        "another format": json.dumps({"format": "x"}),
        "newer": json.dumps(document | {"version": 99}),
        "no trials": json.dumps(document | {"trials": []}),
        "bad value": good.read_text().replace('"final":', '"final":"__import__",  "x":', 1),
        "cut": gzip.compress(good.read_bytes())[:50],
    }
    for name, content in damages.items():
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(RecordingError, match=name):
            Recording.load(path)
    with pytest.raises(RecordingError, match="cannot be read"):
        Recording.load(tmp_path / "absent")


def _packed(document: bytes, blanks: int) -> bytes:
    # Members of a gzip file stand one after the other: a bomb of any size in no time.
    blank = gzip.compress(b" " * (1 << 24))
    return gzip.compress(document[:-1]) + blank * blanks + gzip.compress(document[-1:])


def test_a_file_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.json.gz"
    Recording.from_study(made_study(3)).save(tmp_path / "good.json")
    document = (tmp_path / "good.json").read_bytes()
    path.write_bytes(_packed(document, 2))
    assert len(Recording.load(path).trials) == 3
    for bomb in (_packed(document, 400), gzip.compress(b"[" * (1 << 27), compresslevel=1)):
        path.write_bytes(bomb)
        tracemalloc.start()
        with pytest.raises(RecordingError, match=r"bomb\.json\.gz is not a recording: .* 64 MB"):
            Recording.load(path)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
        tracemalloc.stop()
    with pytest.raises(RecordingError, match="larger than 64 MB"):
        Recording.load("/dev/zero")


@pytest.mark.parametrize(
    "damage",
    [
        ('"final":', '"final":' + "9" * 5000 + ',"x":'),
        ('"final":', '"final":' + "9" * 400 + ',"x":'),
        ('"values":{"', '"values":{"' + "9" * 30),
        ('"values":{"', '"values":{"-'),
        ('"distributions":["', '"distributions":["' + "[" * 100_000),
        ('"distributions":["', '"distributions":[' + "[" * 100_000 + '"'),
    ],
    ids=["digits", "float", "step", "negative", "nested text", "nested"],
)
def test_numbers_and_nesting_without_end_are_refused(
    tmp_path: Path, damage: tuple[str, str]
) -> None:
    path = tmp_path / "damaged.json"
    Recording.from_study(made_study(3)).save(path)
    assert damage[0] in path.read_text()
    path.write_text(path.read_text().replace(*damage, 1))
    with pytest.raises(RecordingError, match=r"damaged\.json"):
        Recording.load(path)


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = tmp_path / "r.json"
    for name in (f".r.json.{os.getpid()}.part", "r.json"):
        (tmp_path / name).symlink_to(victim)
    Recording.from_study(made_study(3)).save(path)
    assert victim.read_text() == "precious"
    assert not path.is_symlink()
    assert len(Recording.load(path).trials) == 3


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_without_pruning_everything_is_spent_and_the_best_is_found(direction: str) -> None:
    recording = Recording.from_study(made_study(direction=direction))
    result = replay(recording, NopPruner(), 3)
    assert (result.epochs_spent, result.regret, result.succeeded) == (1.0, 0.0, True)
    assert (result.n_pruned, result.wrongly_pruned) == (0, 0)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_replay_agrees_with_the_study_run_live(direction: str) -> None:
    recording = Recording.from_study(made_study(direction=direction))
    result = replay(recording, PercentilePruner(25.0), 1)
    ordered = [recording.trials[i] for i in order_of(recording, 1)]
    live = optuna.create_study(direction=direction, pruner=PercentilePruner(25.0))
    spent = 0

    def objective(trial: optuna.Trial) -> float:
        nonlocal spent
        for step, value in ordered[trial.number].values.items():
            trial.report(value, step)
            spent += 1
            if trial.should_prune():
                raise optuna.TrialPruned
        return ordered[trial.number].final

    live.optimize(objective, n_trials=len(ordered))
    assert result.epochs_spent == spent / sum(len(t.values) for t in ordered)
    assert result.n_pruned == sum(t.state == TrialState.PRUNED for t in live.trials)


def test_the_same_order_gives_the_same_decisions() -> None:
    recording = Recording.from_study(made_study(40))
    first, second = (replay(recording, lyap.LyapunovPruner(), 5) for _ in range(2))
    assert first.epochs_spent == second.epochs_spent < 1.0
    assert (first.regret, first.covered) == (second.regret, second.covered)


def test_exponents_tell_where_the_loss_does_not() -> None:
    recording = Recording.from_study(made_study(60))
    pruners = {
        "ours": lyap.LyapunovPruner,
        "loss": lambda: lyap.LyapunovPruner(evidence=["loss"]),
        "median": MedianPruner,
    }
    replays = compare_pruners(recording, pruners, orders=5)
    spent = {s.pruner: s.epochs_spent.value for s in summarize(recording, replays)}
    success = {s.pruner: s.success.value for s in summarize(recording, replays)}
    assert spent["ours"] < spent["loss"]
    assert success["ours"] > max(success["loss"], success["median"])


def test_a_recording_without_readouts_can_be_replayed() -> None:
    study = optuna.create_study(study_name="plain")
    for i in range(20):
        study.add_trial(create_trial(intermediate_values={1: i + 0.5, 2: float(i)}, value=float(i)))
    recording = Recording.from_study(study)
    assert recording.state is None
    assert replay(recording, lyap.LyapunovPruner(), 0).succeeded
    with pytest.raises(ValueError, match="no readouts of state 'full'; it has none"):
        recording.with_state("full")


def test_processes_and_interruptions_change_nothing(tmp_path: Path) -> None:
    recording = Recording.from_study(made_study(20))
    pruners = {"none": NopPruner, "median": MedianPruner}
    plain = compare_pruners(recording, pruners, orders=4)
    results = tmp_path / "replays.jsonl"
    compare_pruners(recording, pruners, orders=2, results=results)
    with results.open("a") as file:
        file.write('{"recording": "cut off he')
    told: list[tuple[int, int]] = []
    again = compare_pruners(
        recording,
        pruners,
        orders=4,
        jobs=2,
        results=results,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told[0] == (4, 8)
    assert told[-1] == (8, 8)

    def facts(replays: dict) -> list:
        return [
            (name, r.order, r.epochs_spent, r.regret, r.n_pruned)
            for name, found in replays.items()
            for r in found
        ]

    assert facts(again) == facts(plain)
    told.clear()
    third = compare_pruners(
        recording,
        pruners,
        orders=4,
        results=results,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(8, 8)]  # nothing that was written after the cut line is lost
    assert facts(third) == facts(plain)
    other = Recording.from_study(made_study(20, seed=1))
    assert facts(compare_pruners(other, pruners, orders=1, results=results)) != facts(
        compare_pruners(recording, pruners, orders=1)
    )


def timed(recording: Recording, seconds: Sequence[float | None]) -> Recording:
    trials = [
        dataclasses.replace(t, seconds=s) for t, s in zip(recording.trials, seconds, strict=True)
    ]
    return dataclasses.replace(recording, trials=trials)


COMPARED = {"none": NopPruner, "median": MedianPruner, "freeze_thaw": replay_freeze_thaw}


def told_by_hyperparameters(n: int = 40) -> Recording:
    """Return a study whose hyperparameter says how each trial ends, and whose losses do not."""
    study = optuna.create_study(study_name="told")
    rng = np.random.default_rng(3)
    for x in rng.permutation(n):
        study.add_trial(
            create_trial(
                params={"x": float(x)},
                distributions={"x": FloatDistribution(0.0, float(n))},
                intermediate_values={step: 1.0 for step in range(1, 6)},
                value=float(x),
            )
        )
    return Recording.from_study(study)


@pytest.mark.parametrize("search", [NopPruner, replay_freeze_thaw])
def test_who_chooses_among_all_finds_what_the_hyperparameters_tell(search: object) -> None:
    recording = told_by_hyperparameters()
    found = compare_pruners(recording, {"order": search, "choosing": Choosing(search)}, orders=8)
    late = {name: np.median([r.found_by for r in replays]) for name, replays in found.items()}
    assert late["choosing"] < 0.5 * late["order"]
    # Until something can be told the order is kept, and each trial begins once.
    for replays in found.values():
        assert [r.order for r in replays] == list(range(8))
        assert all(r.succeeded for r in replays)


def test_freeze_thaw_runs_a_recording_of_one_trial_to_its_end() -> None:
    study = optuna.create_study(study_name="one")
    study.add_trial(create_trial(value=1.0, intermediate_values={1: 2.0, 2: 1.0}))
    result = replay_freeze_thaw(Recording.from_study(study))
    assert result.succeeded
    assert (result.epochs_spent, result.found_by) == (1.0, 1.0)


def test_freeze_thaw_is_replayed_without_some_evidence() -> None:
    recording = told_by_hyperparameters()
    blind = replay_freeze_thaw(recording, 1, evidence=["loss"])
    assert blind.fell != replay_freeze_thaw(recording, 1).fell
    compared = {"blind": partial(replay_freeze_thaw, evidence=["loss"])}
    assert compare_pruners(recording, compared, orders=2)["blind"][1].fell == blind.fell


def test_where_all_epochs_cost_the_same_seconds_are_epochs() -> None:
    recording = timed(Recording.from_study(made_study(20)), [12.5] * 20)
    for found in compare_pruners(recording, COMPARED, orders=3).values():
        for result in found:
            assert result.found_by_seconds == pytest.approx(result.found_by)


def test_found_by_in_seconds_counts_what_each_trial_took() -> None:
    seconds = [float(1 + i**2) for i in range(20)]
    recording = timed(Recording.from_study(made_study(20)), seconds)
    won = set(winners(recording))
    for order in range(3):
        spent = 0.0
        for i in order_of(recording, order):
            spent += seconds[i]
            if i in won:
                break
        found = replay(recording, NopPruner(), order).found_by_seconds
        assert found == pytest.approx(spent / sum(seconds))
    summary = summarize(recording, compare_pruners(recording, COMPARED, orders=3))[0]
    assert summary.found_by_seconds.value <= summary.found_by_seconds_late.value <= 1.0


def test_where_one_trials_seconds_are_unknown_nothing_is_said_of_seconds() -> None:
    recording = timed(Recording.from_study(made_study(12)), [1.0] * 11 + [None])
    replays = compare_pruners(recording, COMPARED, orders=1)
    assert all(r.found_by_seconds is None for found in replays.values() for r in found)
    assert all(s.found_by_seconds is None for s in summarize(recording, replays))


def test_seconds_come_from_the_study_and_survive_a_file(tmp_path: Path) -> None:
    def objective(trial: optuna.Trial) -> Generator[None, None, float]:
        x = trial.suggest_float("x", 0, 1)
        for epoch in range(2):
            time.sleep(0.02)
            trial.report(x, epoch)
            yield
        return x

    study = optuna.create_study()
    lyap.freeze_thaw(study, objective, n_trials=3)
    study.add_trial(create_trial(value=0.5, intermediate_values={0: 0.5, 1: 0.5}))  # no time passed
    recording = Recording.from_study(study)
    took = [t.seconds for t in recording.trials]
    assert all(s >= 0.04 for s in took[:3])
    assert took[3] is None
    recording.save(tmp_path / "timed.json.gz")
    assert [t.seconds for t in Recording.load(tmp_path / "timed.json.gz").trials] == took


def test_a_rest_is_no_training() -> None:
    study = optuna.create_study()
    trial = study.ask()
    for step, stretch in enumerate((Stretch(0.0, 1.5, 1), Stretch(3600.0, 2.0, 1, index=1))):
        trial.report(1.0, step)
        write_stretches(trial, [stretch] if step == 0 else [Stretch(0.0, 1.5, 1), stretch])
    study.tell(trial, 1.0)
    assert Recording.from_study(study).trials[0].seconds == 3.5


def test_the_falls_of_the_regret_agree_with_what_is_told_at_some_shares(tmp_path: Path) -> None:
    recording = Recording.from_study(made_study(20))
    results = tmp_path / "replays.jsonl"
    replays = compare_pruners(recording, COMPARED, orders=3, results=results)
    # Lines that were written before the falls were are read, and tell what they know.
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    for line in lines:
        del line["fell"], line["found_by_seconds"]
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told: list[tuple[int, int]] = []
    earlier = compare_pruners(
        recording,
        COMPARED,
        orders=3,
        results=results,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(9, 9)]
    for name, found in replays.items():
        for result, old in zip(found, earlier[name], strict=True):
            assert [r for _, r in result.fell] == sorted((r for _, r in result.fell), reverse=True)
            assert old.fell == ()
            for share, regret in zip(REGRET_AT, result.regret_at, strict=True):
                assert result.regret_after(share) == old.regret_after(share) == regret
            assert result.regret_after(1.0) == old.regret_after(1.0) == result.regret


def test_the_regret_falls_from_left_to_right_and_in_fewer_orders_later() -> None:
    recording = Recording.from_study(made_study(20))
    replays = compare_pruners(recording, COMPARED, orders=5)
    figure = plot_regret(replays)
    assert [trace.name for trace in figure.data] == [n for name in COMPARED for n in (name, name)]
    for half, late in zip(figure.data[::2], figure.data[1::2], strict=True):
        for trace in (half, late):
            assert list(trace.x) == sorted(trace.x)
            assert list(trace.y) == sorted(trace.y, reverse=True)
            assert trace.x[-1] == 1.0
        at = dict(zip(half.x, half.y, strict=True))
        assert all(y >= at[x] for x, y in zip(late.x, late.y, strict=True))
    assert figure.data[0].y[-1] == 1e-3  # without pruning every order ends the true best


def test_bad_arguments_are_named() -> None:
    recording = Recording.from_study(made_study(3))
    with pytest.raises(ValueError, match="jobs=0"):
        compare_pruners(recording, jobs=0)
    with pytest.raises(ValueError, match=r"\{'none': 0\}"):
        compare_pruners(recording, {"none": NopPruner}, orders=0)
    with pytest.raises(ValueError, match=r"differ in \['x'\]"):
        compare_pruners(recording, {"none": NopPruner}, orders={"none": 1, "x": 1})


def test_every_default_pruner_is_fresh() -> None:
    for make in default_pruners().values():
        assert make() is not make()


def test_the_figure_has_a_panel_per_recording_and_a_marker_per_pruner() -> None:
    summaries = []
    for seed in (0, 1):
        recording = Recording.from_study(made_study(12, seed=seed))
        replays = compare_pruners(recording, {"none": NopPruner, "median": MedianPruner}, orders=2)
        summaries += summarize(recording, replays)
    figure = plot_replay(summaries)
    assert len(figure.data) == 4
    assert [a.text for a in figure.layout.annotations[:2]] == ["made-0", "made-1"]
    assert sum(bool(trace.showlegend) for trace in figure.data) == 2


def test_command(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.copy_study(
        from_study_name="made-0",
        from_storage=made_study(12)._storage,
        to_storage=storage,
    )
    file = tmp_path / "made.json.gz"
    done = CliRunner().invoke(main, ["replay", "--storage", storage, "--record", str(file)])
    assert done.exit_code == 0, done.output
    args = ["replay", str(file), "--orders", "2", "--pruner", "median", "--pruner", "none"]
    table = CliRunner().invoke(main, [*args, "--plot", str(tmp_path / "plot.html")])
    assert table.exit_code == 0, table.output
    assert "MedianPruner" in table.output
    assert "Hyperband" not in table.output
    assert "plotly" in (tmp_path / "plot.html").read_text()
    assert (tmp_path / "plot.html").read_text().count('class="figure"') == 2
    search = CliRunner().invoke(main, ["replay", str(file), "--orders", "1", "--pruner", "freeze"])
    assert search.exit_code == 0, search.output
    assert "freeze_thaw" in search.output
    rows = json.loads(CliRunner().invoke(main, [*args, "-q", "-f", "json"]).stdout)
    assert [row["pruner"] for row in rows][:2] == ["none", "MedianPruner"]
    assert rows[0]["epochs_spent"] == 1.0


def test_command_errors(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text("{}")
    for args, said in (
        ([str(file)], "is not a recording"),
        ([str(file), "--storage", "sqlite:///x.db"], "not both"),
        ([str(tmp_path / "absent")], "does not exist"),
    ):
        done = CliRunner().invoke(main, ["replay", *args])
        assert done.exit_code != 0
        assert said in done.output
    Recording.from_study(made_study(5)).save(file)
    done = CliRunner().invoke(main, ["replay", str(file), "--pruner", "mediam"])
    assert done.exit_code == 2
    assert "No pruner is called 'mediam'" in done.output


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda p: p.name.split(".")[0])
def test_recordings_that_come_with_the_source(path: Path) -> None:
    recording = Recording.load(path)
    assert len(recording.trials) == TASKS[recording.name].trials
    assert recording.attributes["kind"] in ("memory", "easy")
    for trial in recording.trials:
        for state in trial.readouts:
            assert set(trial.readouts[state]) <= {0, 1, 2, 4, 8}
            assert all(len(r["quantiles"]) == 32 for r in trial.readouts[state].values())


def test_recordings_are_small() -> None:
    assert len(RECORDINGS) >= 5
    assert sum(path.stat().st_size for path in RECORDINGS) < 3_000_000
