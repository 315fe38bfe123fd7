"""What is put into optuna-dashboard: figures, note and file; by whom, when, and how often."""

import contextlib
import csv
import errno
import io
import json
import logging
import math
import os
import re
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import optuna_dashboard
import plotly.graph_objects as go
import pytest
import torch
from _campaigns import wait_for
from _dashboard import Dashboard
from _networks import spectrum_of
from _storages import LOCAL, STORAGES
from _studies import spec, specs, study_of
from click.testing import CliRunner
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

import lyap_optuna as lyap
from lyap_optuna._extras import how_to_install
from lyap_optuna.cli import main
from lyap_optuna.dashboard import SPECTRA_FILE, Publisher, _publish, make_dashboard, publish
from lyap_optuna.dashboard._note import BEGIN, END, literal, note_text, with_note
from lyap_optuna.dashboard._server import arranged
from lyap_optuna.visualization._figures import Numbers

NAME = "<b>a</b> **study** [link](javascript:alert(1))"
IDS = ["lyapunov-predictions", "lyapunov-skill", "lyapunov-exponents", "lyapunov-best-trial"]


@pytest.fixture(params=["memory", "sqlite", "journal"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, new_database: Any) -> BaseStorage:
    if request.param == "sqlite":
        return RDBStorage(new_database("sqlite"))
    if request.param == "journal":
        return JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))
    return optuna.storages.InMemoryStorage()


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    optuna.logging.enable_propagation()
    caplog.set_level(logging.WARNING)
    yield caplog
    optuna.logging.disable_propagation()


def _study(n_trials: int = 24, **options: Any) -> optuna.Study:
    return study_of(specs("plateau", n_trials, first=1), study_name=NAME, **options)


def _attrs(study: optuna.Study) -> dict[str, Any]:
    return study._storage.get_study_system_attrs(study._study_id)


def _served(
    study: optuna.Study, wsgi: Callable[[BaseStorage], Any] = optuna_dashboard.wsgi
) -> dict[str, Any]:
    """What an application, by default the dashboard itself, makes of the study, by its API."""
    app = wsgi(study._storage)
    answer: list[Any] = []
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": f"/api/studies/{study._study_id}",
        "wsgi.errors": sys.stderr,
    }
    body = b"".join(app(environ, lambda status, headers, *_: answer.append(status)))
    assert answer == ["200 OK"]
    return json.loads(body)


# publish ---------------------------------------------------------------------------------------


def test_the_dashboard_serves_figures_and_note(storage: BaseStorage) -> None:
    study = _study(storage=storage)
    optuna_dashboard.save_note(study, "Mine.")
    assert publish(study) == [*IDS, "note", "trial-notes"]
    served = _served(study)
    figures = {f["id"]: json.loads(f["graph_object"]) for f in served["plotly_graph_objects"]}
    assert sorted(figures) == sorted(IDS)
    assert all(figure["data"] for figure in figures.values())
    assert served["note"]["body"].startswith(f"Mine.\n\n{BEGIN}\n\n### Lyapunov exponents")


def test_what_is_there_already_is_not_written_again(storage: BaseStorage) -> None:
    study = _study(storage=storage)
    publish(study)
    before = _attrs(study)
    assert publish(study) == []
    assert _attrs(study) == before
    study.add_trial(optuna.create_trial(**specs("plateau", 1, seed=5, first=1)[0]))
    assert publish(study) == [*IDS[:3], "note", "trial-notes"]  # the best trial is the same
    served = _served(study)
    assert sorted(f["id"] for f in served["plotly_graph_objects"]) == sorted(IDS)  # none twice


def test_a_figure_that_shrinks_leaves_nothing_of_the_longer_one() -> None:
    study = _study()
    publish(study)
    key = "dashboard:plot_data:lyapunov-skill:"
    n_parts = sum(k.startswith(key) for k in _attrs(study))
    study._storage.set_study_system_attr(study._study_id, f"{key}{n_parts}", "left over")
    assert publish(study) == ["lyapunov-skill"]
    figures = {f["id"]: f["graph_object"] for f in _served(study)["plotly_graph_objects"]}
    json.loads(figures["lyapunov-skill"])
    assert publish(study) == []


def test_a_study_without_readouts_is_left_alone(warned: Any) -> None:
    study = study_of(specs("easy", 5, readouts=False))
    assert publish(study) == []
    assert _attrs(study) == {}
    assert "LyapunovProbe" in warned.text


def test_several_objectives_are_published_without_a_prediction() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"])
    readout = {"max": 0.0, "mean": -1.0, "quantiles": [-2.0, -1.0, 0.0]}
    study.add_trial(
        optuna.create_trial(values=[1.0, 2.0], user_attrs={"lyapunov:readouts": {"1": readout}})
    )
    assert publish(study) == ["lyapunov-spectra", "note"]
    assert "1 of 1 trials have readouts: 1 COMPLETE." in optuna_dashboard.get_note(study)


def test_without_optuna_dashboard_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, new_database: Any
) -> None:
    url = new_database("sqlite")
    study = _study(storage=url)
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(ImportError, match=re.escape(how_to_install("dashboard"))):
        publish(study)
    result = CliRunner().invoke(main, ["dashboard", "--storage", url])
    assert result.exit_code == 1
    assert result.output == (
        f"Error: optuna-dashboard is not installed: {how_to_install('dashboard')}\n"
    )


# The note --------------------------------------------------------------------------------------


def test_other_text_of_the_note_stays_as_it_is() -> None:
    first = with_note("", "one")
    assert with_note(first, "two") == first.replace("one", "two")
    around = f"Before.  \n\n{first}\n\nAfter <b>.\n"
    assert with_note(around, "two") == f"Before.  \n\n{with_note('', 'two')}\n\nAfter <b>.\n"
    assert with_note("Before.", "one") == f"Before.\n\n{first}"


@pytest.mark.parametrize("lost", [BEGIN, END])
def test_text_beside_a_marker_that_somebody_broke_is_kept(lost: str) -> None:
    text = with_note("Mine.", "one").replace(lost, "") + "\n\nMine too."
    once = with_note(text, "two")
    twice = with_note(once, "three")
    for note in (once, twice):
        assert note.startswith(text)
    assert "two" not in twice
    assert "three" in twice


def test_a_note_with_backslashes_is_taken_literally() -> None:
    assert r"\1 \g<0>" in with_note(with_note("", "one"), r"\1 \g<0>")


def test_the_note_says_what_the_numbers_say() -> None:
    study = _study()
    note = note_text(Numbers(study))
    best = study.best_trial
    last = best.user_attrs["lyapunov:readouts"]["3"]["max"]
    assert "24 of 24 trials have readouts: 24 COMPLETE." in note
    assert f"**The best trial** is {best.number}, with value {best.value:.4g}." in note
    assert f"maximum exponent at step 3 is {last:.3g} nats/step" in note
    # In these studies a low value goes with exponents that moved down.
    assert "The further up it has moved, the higher, and so worse, the value" in note
    skills = {s.evidence: s for s in lyap.prediction_skill(study, steps=[1])}
    assert f"displacement {skills['displacement'].rank_correlation:.2f}" in note
    assert "The predictor weighs loss so far, exponents, displacement and hyperparameters." in note
    assert "Pruning" not in note


def test_the_note_says_how_many_prunings_were_wrong() -> None:
    study = _study()
    attrs = {"lyapunov:decision": {"step": 1, "verdict": "kept", "because": "audit"}}
    study.add_trial(optuna.create_trial(value=1e9, user_attrs=attrs))
    assert "Of 1 condemned trial that ran on to the end (audit), 0 ended" in note_text(
        Numbers(study)
    )


def test_the_note_tells_better_from_lower() -> None:
    study = study_of(specs("plateau", 24, first=1, sign=-1), sign=-1)
    note = note_text(Numbers(study))
    assert "The further up it has moved, the lower, and so worse, the value" in note


def test_the_note_says_when_exponents_tell_nothing() -> None:
    study = study_of(specs("easy", 24, seed=1, first=1))
    note = note_text(Numbers(study))
    assert "does not go with the final value, beyond chance" in note


@pytest.mark.parametrize(
    ("exponent", "words"),
    [
        (-3.0, "halves 4.3 times in a time step"),
        (-800.0, "halves 1200 times in a time step"),
        (710.0, "doubles 1000 times in a time step"),
        (math.log(2), "doubles once in a time step"),
        (-math.log(2) / 160, "halves every 160 time steps"),
        (0.0, "neither doubles nor halves within 1,000 time steps"),
        (math.log(2) / 1.5, "doubles every 1.5 time steps"),
    ],
)
def test_the_note_says_what_becomes_of_a_small_change(exponent: float, words: str) -> None:
    study = optuna.create_study()
    series = {"0": {"max": -1.0, "mean": -2.0}, "1": {"max": exponent, "mean": -2.0}}
    study.add_trial(
        optuna.create_trial(
            value=1.0, intermediate_values={1: 1.0}, user_attrs={"lyapunov:readouts": series}
        )
    )
    assert f"a small change of the state {words}" in note_text(Numbers(study))


def test_no_markup_of_the_study_gets_into_note_or_figures() -> None:
    study = _study()
    trial = spec(np.random.default_rng(1), "plateau", first=1)
    trial |= {"state": TrialState.PRUNED, "intermediate_values": {1: 1.0}}
    decision = {"step": 1, "verdict": "pruned", "reason": NAME}
    trial["user_attrs"] |= {"lyapunov:decision": decision}
    study.add_trial(optuna.create_trial(**trial))
    publish(study)
    served = _served(study)
    assert "javascript" not in served["note"]["body"]
    figures = {f["id"]: f["graph_object"] for f in served["plotly_graph_objects"]}
    pruning = json.dumps(json.loads(figures["lyapunov-pruning"]))
    assert "&lt;b&gt;a&lt;/b&gt;" in pruning
    assert "<b>" not in pruning


def _trial_notes(study: optuna.Study) -> dict[int, str]:
    return {trial["number"]: trial["note"]["body"] for trial in _served(study)["trials"]}


def test_each_trial_that_has_ended_has_its_story_in_its_note(storage: BaseStorage) -> None:
    study = _study(storage=storage)
    running = study.ask()
    failed = study.ask()
    for trial in (running, failed):
        trial.set_user_attr("lyapunov:readouts", {"0": {"max": 0.0, "mean": -1.0}})
    study.tell(failed, state=TrialState.FAIL)
    publish(study)
    notes = _trial_notes(study)
    assert notes.pop(24) == ""
    for number, note in notes.items():
        sentence = literal(lyap.explain(study, number).sentence)
        assert note.startswith(f"{BEGIN}\n\n### Explanation\n\n**{sentence}**")


def test_the_notes_of_trials_wait_until_no_trial_runs(storage: BaseStorage) -> None:
    study = _study(storage=storage)
    running = study.ask()
    publisher = Publisher(storage)
    publisher.look()
    before = _trial_notes(study)
    study.tell(running, state=TrialState.FAIL)
    _add(study, 9)
    third = study.ask()
    if not isinstance(storage, JournalStorage):
        publisher.look()
        notes = _trial_notes(study)
        assert notes[25]
        assert {number: notes[number] for number in before} == before
    study.tell(third, state=TrialState.FAIL)
    publisher.look()
    publisher.look()
    now = _trial_notes(study)
    assert "25 COMPLETE trials" in now[0]
    assert "25 COMPLETE trials" not in before[0]


def test_of_many_trials_those_that_rank_first_have_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_publish, "MOST_NOTES", 5)
    study = _study()
    failed = study.ask()  # has no rank
    failed.set_user_attr("lyapunov:readouts", {"0": {"max": 0.0, "mean": -1.0}})
    study.tell(failed, state=TrialState.FAIL)
    publish(study)
    noted = {number for number, note in _trial_notes(study).items() if note}
    assert noted == {prediction.number for prediction in lyap.rank_trials(study)[:5]}


@pytest.mark.parametrize(
    "text",
    [
        NAME,
        "a | b",
        "# no",
        "- no",
        "1. no",
        "<script>",
        "https://x.org",
        "www.x.org",
        "$x$ ~a~ &lt;",
    ],
)
def test_text_of_a_trial_is_no_markup(text: str) -> None:
    shown = literal(text)
    assert re.sub(r"\\(.)", r"\1", shown) == text
    assert not re.search(r"(?<!\\)[*_`<>\[\]|~&$]|(?<!\\):|^[-#]|^\d+\.|www\.", shown)


# What is served --------------------------------------------------------------------------------


def test_figures_are_served_in_order_and_attributes_short() -> None:
    study = _study()
    optuna_dashboard.save_plotly_graph_object(study, go.Figure(), graph_object_id="another")
    publish(study)
    long = _served(study)
    server = make_dashboard(study._storage, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/api/studies"
        with urllib.request.urlopen(f"{url}/{study._study_id}") as answer:
            served = json.load(answer)
        with urllib.request.urlopen(url) as answer:
            assert json.load(answer)["study_summaries"]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert [f["id"] for f in served["plotly_graph_objects"]] == [*IDS, "another"]
    ours = [a for t in served["trials"] for a in t["user_attrs"] if a["key"].startswith("lyap")]
    assert ours
    assert max(len(attr["value"]) for attr in ours) < 100
    for trial in long["trials"]:
        trial["user_attrs"] = []
    for trial in served["trials"]:
        trial["user_attrs"] = []
    assert served["trials"] == long["trials"]


def test_attributes_of_others_are_shown_as_they_are() -> None:
    trial = {"user_attrs": [{"key": "mine", "value": "x" * 500}]}
    before = json.dumps(trial)
    arranged({"plotly_graph_objects": [], "trials": [trial], "best_trials": []})
    assert json.dumps(trial) == before


def test_what_the_note_tells_is_not_shown_as_json_too() -> None:
    def shown(note: str) -> str:
        trial = {
            "number": 7,
            "note": {"body": note},
            "user_attrs": [{"key": "lyapunov:stretches", "value": '{"trial": 7}'}],
        }
        arranged({"plotly_graph_objects": [], "trials": [trial], "best_trials": []})
        return trial["user_attrs"][0]["value"]

    assert shown(with_note("Mine.", "Why.")) == "in words: above, in the Note"
    # A trial that rests has none, and of many not every one has.
    assert shown("Mine.") == "in words: lyap-optuna explain --trial-number 7"


def test_a_server_of_ones_own_serves_short_attributes_too() -> None:
    study = _study()
    trials = _served(study, lyap.dashboard.wsgi)["trials"]
    assert max(len(attr["value"]) for trial in trials for attr in trial["user_attrs"]) < 100


# The file of spectra ---------------------------------------------------------------------------


def _measured(storage: str | None, *, end: bool = True) -> optuna.Study:
    study = optuna.create_study(storage=storage)
    for value in (0.5, 0.25):
        trial = study.ask()
        torch.manual_seed(0)
        probe = lyap.LyapunovProbe(
            torch.nn.GRU(3, 40), torch.randn(30, 4, 3), full_spectrum=True, last_step=2
        )
        for step in (1, 2):
            probe.report(trial, value, step)
        if end or value == 0.5:
            study.tell(trial, value)
    return study


def _file(study: optuna.Study, store: FileSystemArtifactStore) -> list[dict[str, str]]:
    found = [meta for meta in _served(study)["artifacts"] if meta["filename"] == SPECTRA_FILE]
    assert len(found) == 1
    with store.open_reader(found[0]["artifact_id"]) as file:
        return list(csv.DictReader(file.read().decode().splitlines()))


def test_the_file_holds_baseline_and_latest_spectrum_of_finished_trials(tmp_path: Path) -> None:
    store = FileSystemArtifactStore(tmp_path)
    study = _measured("sqlite:///:memory:", end=False)
    assert SPECTRA_FILE in publish(study, artifact_store=store)
    rows = _file(study, store)
    assert [(r["trial"], r["step"], r["baseline"], r["value"]) for r in rows] == [
        ("0", "0", "yes", "0.5"),
        ("0", "2", "no", "0.5"),
    ]
    stored = lyap.load_spectra(study, trial_number=0, step=2)[0].exponents
    written = [float(rows[1][f"exponent_{i}"]) for i in range(1, 41)]
    assert written == pytest.approx(stored, rel=1e-5)
    assert (rows[1]["kind"], rows[1]["layer_state"]) == ("spectrum", "full")


def test_without_a_database_the_file_holds_quantiles(tmp_path: Path) -> None:
    store = FileSystemArtifactStore(tmp_path)
    study = _measured(None)
    publish(study, artifact_store=store)
    rows = _file(study, store)
    assert [(r["trial"], r["step"]) for r in rows] == [
        ("0", "0"),
        ("0", "2"),
        ("1", "0"),
        ("1", "2"),
    ]
    quantiles = study.trials[0].user_attrs["lyapunov:readouts"]["2"]["quantiles"]
    written = [float(rows[1][f"exponent_{i}"]) for i in range(1, 33)]
    assert written == pytest.approx(quantiles[::-1], rel=1e-5)
    assert "exponent_33" not in rows[1]
    assert rows[1]["kind"] == "quantiles"


def test_the_file_is_replaced_and_not_multiplied(tmp_path: Path) -> None:
    store = FileSystemArtifactStore(tmp_path)
    study = _measured(None, end=False)
    publish(study, artifact_store=store)
    first = _served(study)["artifacts"]
    assert publish(study, artifact_store=store) == []
    study.tell(1, 0.25)
    assert SPECTRA_FILE in publish(study, artifact_store=store)
    assert _served(study)["artifacts"] == first
    assert len(_file(study, store)) == 4
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("kind", LOCAL)
@pytest.mark.parametrize("same_name", [False, True])
def test_a_copy_has_a_file_of_its_own(
    tmp_path: Path, kind: str, same_name: bool, request: pytest.FixtureRequest
) -> None:
    store = FileSystemArtifactStore(tmp_path)
    opening = contextlib.ExitStack()
    request.addfinalizer(opening.close)
    source, other = (opening.enter_context(STORAGES[kind]())() for _ in range(2))
    study = optuna.create_study(study_name="s", storage=source)
    entry = {"max": -1.0, "mean": -2.0, "quantiles": [-2.0, -1.0]}
    made = optuna.create_trial(value=1.0, user_attrs={"lyapunov:readouts": {"1": entry}})
    study.add_trial(made)
    publish(study, artifact_store=store)
    first = _served(study)["artifacts"]
    # A copy within the storage has another name; one elsewhere has all that the study had.
    target = other if same_name else source
    name = "s" if same_name else "copy"
    optuna.copy_study(
        from_study_name="s", from_storage=source, to_storage=target, to_study_name=name
    )
    copy = optuna.load_study(study_name=name, storage=target)
    copy.add_trial(made)
    for _ in range(2):
        publish(copy, artifact_store=store)
        publish(study, artifact_store=store)
        assert len(_file(study, store)) == 1
        assert len(_file(copy, store)) == 2
        assert _served(study)["artifacts"] == first
        assert len(os.listdir(tmp_path)) == 2
    study.add_trial(made)
    study.add_trial(made)
    publish(study, artifact_store=store)
    assert len(_file(study, store)) == 3
    assert len(_file(copy, store)) == 2


class FullStore(FileSystemArtifactStore):
    """Holds so many bytes, as a disk does: what does not fit is written as far as it does."""

    def __init__(self, folder: Path, size: int) -> None:
        super().__init__(folder)
        self.folder, self.size = folder, size

    def write(self, artifact_id: str, content_body: Any) -> None:
        others = [p for p in self.folder.iterdir() if p.name != artifact_id]
        left = self.size - sum(p.stat().st_size for p in others)
        content = content_body.read()
        super().write(artifact_id, io.BytesIO(content[:left]))
        if len(content) > left:
            raise OSError(errno.ENOSPC, "No space left on device")


def _entries(study: optuna.Study) -> list[str]:
    attrs = study._storage.get_study_system_attrs(study._study_id)
    return [key for key in attrs if key.startswith("artifacts:")]


def test_a_full_disk_leaves_neither_entries_nor_files(tmp_path: Path) -> None:
    study = _measured(None, end=False)
    store = FullStore(tmp_path, 100)
    publisher = Publisher(study._storage, artifact_store=store)
    for _ in range(3):
        publisher.look()
        assert _entries(study) == []
        assert os.listdir(tmp_path) == []
    store.size = 100_000
    publisher.look()
    assert len(_file(study, store)) == 2
    # The file grows, and there is no space for both: the old one stays whole.
    store.size = next(tmp_path.iterdir()).stat().st_size + 50
    study.tell(1, 0.25)
    for _ in range(3):
        publisher.look()
        assert len(_file(study, store)) == 2
        assert len(_entries(study)) == len(os.listdir(tmp_path)) == 1
    store.size = 100_000
    publisher.look()
    assert len(_file(study, store)) == 4
    assert len(_entries(study)) == len(os.listdir(tmp_path)) == 1


def test_a_trials_file_that_does_not_fit_leaves_no_entry(tmp_path: Path) -> None:
    study = optuna.create_study()
    trial = study.ask()
    with pytest.raises(OSError, match="No space left"):
        lyap.ArtifactSink(FullStore(tmp_path, 10)).write(trial, 1, {"rnn": spectrum_of([-1.0])})
    assert study.trials[0].system_attrs == {}
    assert os.listdir(tmp_path) == []
    lyap.ArtifactSink(FullStore(tmp_path, 1000)).write(trial, 1, {"rnn": spectrum_of([-1.0])})
    metas = optuna.artifacts.get_all_artifact_meta(study.trials[0], storage=study._storage)
    assert [(m.filename, m.mimetype) for m in metas] == [
        ("lyapunov-spectrum-step-1.csv", "text/csv")
    ]


def test_a_file_that_was_deleted_comes_back(tmp_path: Path) -> None:
    study = _measured(None)
    publish(study, artifact_store=(store := FileSystemArtifactStore(tmp_path)))
    artifact_id = _served(study)["artifacts"][0]["artifact_id"]
    # As the dashboard deletes it.
    store.remove(artifact_id)
    study._storage.set_study_system_attr(study._study_id, f"artifacts:{artifact_id}", "null")
    assert publish(study, artifact_store=store) == [SPECTRA_FILE]
    assert len(_file(study, store)) == 4
    # In a store that was moved away, the same file under the same id.
    elsewhere = FileSystemArtifactStore(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    assert publish(study, artifact_store=elsewhere) == [SPECTRA_FILE]
    assert len(_file(study, elsewhere)) == 4


def test_without_whole_spectra_there_is_no_file(tmp_path: Path) -> None:
    study = _study()
    assert publish(study, artifact_store=FileSystemArtifactStore(tmp_path)) == [
        *IDS,
        "note",
        "trial-notes",
    ]
    assert list(tmp_path.iterdir()) == []


# Keeping it fresh ------------------------------------------------------------------------------


def _add(study: optuna.Study, seed: int) -> None:
    study.add_trial(optuna.create_trial(**specs("plateau", 1, seed=seed, first=1)[0]))


def test_a_look_publishes_what_changed_and_has_readouts(new_database: Any) -> None:
    url = new_database("sqlite")
    study = _study(storage=url)
    other = study_of(specs("plateau", 6, first=1), storage=url, study_name="other")
    study_of(specs("easy", 6, readouts=False), storage=url, study_name="without")
    publisher = Publisher(RDBStorage(url))
    assert sorted(publisher.look()) == sorted([NAME, "other"])
    assert publisher.look() == []
    _add(other, 9)
    assert publisher.look() == ["other"]
    running = study.ask()
    running.set_user_attr("lyapunov:readouts", {"0": {"max": 0.0, "mean": -1.0}})
    running.report(1.0, 1)
    assert publisher.look() == [NAME]
    assert "1 RUNNING" in optuna_dashboard.get_note(study)
    optuna.delete_study(study_name="other", storage=url)
    again = study_of(specs("plateau", 7, first=1), storage=url, study_name="other")
    assert publisher.look() == ["other"]
    assert optuna_dashboard.get_note(again)


def test_one_study_of_several(new_database: Any) -> None:
    url = new_database("sqlite")
    _study(storage=url)
    study_of(specs("plateau", 6, first=1), storage=url, study_name="other")
    assert Publisher(RDBStorage(url), study_name="other").look() == ["other"]


def test_a_journal_is_written_to_at_first_and_when_its_trials_have_ended(tmp_path: Path) -> None:
    file = tmp_path / "study.journal"
    storage = JournalStorage(JournalFileBackend(str(file)))
    study = _study(storage=storage)
    running = study.ask()
    publisher = Publisher(storage)
    assert publisher.look() == [NAME]
    running.report(1.0, 1)
    size = file.stat().st_size
    assert publisher.look() == []
    study.tell(running, 1.0)
    _add(study, 9)
    grown = file.stat().st_size
    assert publisher.look() == []  # more may come
    assert file.stat().st_size == grown > size
    assert publisher.look() == [NAME]
    assert publisher.look() == []


def test_of_two_publishers_one_writes(storage: BaseStorage) -> None:
    study = _study(storage=storage)
    first, second = Publisher(storage), Publisher(storage)
    assert first.look() == [NAME]
    note = optuna_dashboard.get_note(study)
    _add(study, 9)
    assert second.look() == []
    assert optuna_dashboard.get_note(study) == note
    stop = threading.Event()
    stop.set()
    first.run(stop)  # gives up its lease
    assert second.look() == [NAME]
    assert "25 of 25" in optuna_dashboard.get_note(study)


def test_the_lease_of_a_publisher_that_died_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    study = _study()
    assert Publisher(study._storage).look() == [NAME]
    _add(study, 9)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 200)
    assert Publisher(study._storage).look() == [NAME]


def test_a_study_that_fails_is_logged_once_and_holds_up_no_other(
    new_database: Any, monkeypatch: pytest.MonkeyPatch, warned: Any
) -> None:
    url = new_database("sqlite")
    _study(storage=url)
    study_of(specs("plateau", 6, first=1), storage=url, study_name="other")
    real = _publish.write

    def write(study: optuna.Study, *args: Any, **options: Any) -> list[str]:
        if study.study_name == NAME:
            raise OSError("postgresql://user:s3cret@host/name")
        return real(study, *args, **options)

    monkeypatch.setattr(_publish, "write", write)
    publisher = Publisher(RDBStorage(url))
    assert publisher.look() == ["other"]
    assert publisher.look() == []
    assert warned.text.count("could not be published (OSError)") == 1
    assert "s3cret" not in warned.text
    monkeypatch.setattr(_publish, "write", real)
    assert publisher.look() == [NAME]


def test_the_file_of_spectra_waits_until_no_trial_runs(tmp_path: Path) -> None:
    store = FileSystemArtifactStore(tmp_path)
    study = _measured(None, end=False)
    publisher = Publisher(study._storage, artifact_store=store)
    publisher.look()
    assert len(_file(study, store)) == 2
    third = study.ask()
    study.tell(1, 0.25)
    publisher.look()
    assert len(_file(study, store)) == 2
    study.tell(third, state=TrialState.FAIL)
    publisher.look()
    assert len(_file(study, store)) == 4


# The command -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_publishes_serves_and_ends(
    number: int, new_database: Any, tmp_path: Path
) -> None:
    url = new_database("sqlite")
    study = _study(storage=url)
    dashboard = Dashboard(url, "--artifact-dir", f"{tmp_path}/a/b")
    try:
        assert dashboard.said.endswith("(Ctrl-C ends it)\n")
        wait_for(lambda: BEGIN in dashboard.json("api/studies/1")["note"]["body"])
        served = dashboard.json("api/studies/1")
        assert {f["id"] for f in served["plotly_graph_objects"]} == set(IDS)
        assert dashboard.json("api/meta")["artifact_is_available"] is True
        taken = CliRunner().invoke(
            main,
            ["dashboard", "--storage", url, "--port", dashboard.port],
        )
        assert taken.exit_code == 1
        assert taken.output.startswith(f"Error: Nothing can listen at 127.0.0.1:{dashboard.port} (")
    finally:
        errors = dashboard.end(number)
    assert errors == "Stopping.\n"
    assert dashboard.code == 0
    assert _attrs(study)["lyapunov:publisher"] == {"until": 0}


def test_the_command_names_a_study_that_does_not_exist(new_database: Any) -> None:
    url = new_database("sqlite")
    _study(storage=url)
    result = CliRunner().invoke(main, ["dashboard", "--storage", url, "--study-name", "tune"])
    assert result.exit_code == 1
    assert "There is no study 'tune'" in result.output
