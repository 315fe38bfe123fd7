"""Studies whose readouts hold layers, are of different states or lack a mean."""

import csv
import io
import json
import math
import warnings
from pathlib import Path

import numpy as np
import optuna
import pytest
from click.testing import CliRunner
from optuna.trial import TrialState

import lyap_optuna as lyap
from lyap_optuna import visualization
from lyap_optuna.cli import main
from lyap_optuna.dashboard._note import note_text
from lyap_optuna.prediction._study import StudyModels
from lyap_optuna.prediction._table import FeatureTable
from lyap_optuna.prediction.evidence import EVIDENCE, TrialView
from lyap_optuna.records import write_study_spectra
from lyap_optuna.replay import Recording
from lyap_optuna.visualization._exponent_value import _get_info
from lyap_optuna.visualization._figures import Numbers
from lyap_optuna.visualization._publication import published_figures

HOSTILE = "<img src=x onerror=alert(1)>](http://x) |\n# x"


def numbers(largest, mean=-2.0, *, quantiles=False, **more):
    found = {"max": largest, "mean": mean, "max_stderr": 0.01, "mean_stderr": None, **more}
    if quantiles:
        found["quantiles"] = list(np.linspace(-3.0, largest, 32))
    return found


def series(quality, *, state="full", layers=(), mean=-2.0, quantiles=False, first=0):
    """A baseline and three readouts that move as ``quality`` says."""
    readouts = {}
    for step in range(first - 1, first + 3):
        moved = quality * 0.1 * (step - first + 1)
        top = numbers(-0.3 + moved, mean, quantiles=quantiles and not layers, state=state)
        if layers:
            top["layers"] = {
                name: numbers(-0.3 + moved / (i + 1), mean, quantiles=quantiles)
                for i, name in enumerate(layers)
            }
        readouts[str(step)] = top
    return readouts


def study_of(trials, storage=None, name="tune"):
    """A study of one trial per series, whose losses say nothing."""
    study = optuna.create_study(storage=storage, study_name=name)
    for i, readouts in enumerate(trials):
        study.add_trial(
            optuna.create_trial(
                value=math.exp(-quality(i)),
                params={"x": i / 100},
                distributions={"x": optuna.distributions.FloatDistribution(0, 1)},
                intermediate_values={0: 1.0 + (7 * i) % 5, 1: 1.0, 2: 1.0},
                user_attrs={} if readouts is None else {"lyapunov:readouts": readouts},
            )
        )
    return study


def quality(i):
    return ((13 * i) % 31) / 31


def view(trial):
    return TrialView.of(trial, 1)


def columns(study, kind, step=1):
    table = FeatureTable([kind], [view(trial) for trial in study.trials], step)
    return [name for name, _ in table._columns[kind]]


# Evidence --------------------------------------------------------------------------------------


def test_each_layer_has_columns_of_its_own():
    study = study_of([series(quality(i), layers=("enc", "dec")) for i in range(8)])
    moved = ["dec:max", "dec:mean", "enc:max", "enc:mean", "max", "mean"]
    assert columns(study, "displacement") == moved
    distances = ["dec:distance", "distance", "enc:distance"]
    assert columns(study, "exponents") == sorted(moved + distances)
    features = EVIDENCE["displacement"].features(view(study.trials[3]), 1)
    assert features["max"] == pytest.approx(0.2 * quality(3))
    assert features["dec:max"] == pytest.approx(0.1 * quality(3))


def test_a_layer_that_some_trials_lack_counts_for_those_that_have_it():
    trials = [series(quality(i), layers=("enc", "dec")) for i in range(4)]
    trials += [series(quality(i), layers=("enc",)) for i in range(4)]
    study = study_of([*trials, None])
    names = columns(study, "exponents")
    assert {"enc:max", "dec:max"} <= set(names)
    table = FeatureTable(["exponents"], [view(trial) for trial in study.trials], 1)
    missing = np.isnan(table.fitted["exponents"])
    np.testing.assert_array_equal(missing[:, names.index("dec:max")], [False] * 4 + [True] * 5)
    np.testing.assert_array_equal(missing[:, names.index("enc:max")], [False] * 8 + [True])


def test_a_mean_that_some_lack_is_missing_for_those():
    trials = [series(quality(i), mean=None if i == 3 else -2.0) for i in range(8)]
    study = study_of(trials)
    assert columns(study, "displacement") == ["max", "mean"]
    assert EVIDENCE["exponents"].features(view(study.trials[3]), 1).keys() == {"max", "distance"}
    assert all(entry.predicted_value is not None for entry in lyap.rank_trials(study))


def test_whole_spectra_give_each_layer_an_rms():
    study = study_of([series(quality(i), layers=("a", "b"), quantiles=True) for i in range(6)])
    assert {"a:rms", "b:rms"} <= set(columns(study, "displacement"))


def test_there_is_no_displacement_between_states():
    mixed = series(0.5)
    mixed["-1"]["state"] = "hidden"
    (trial,) = study_of([mixed]).trials
    assert EVIDENCE["displacement"].features(view(trial), 1) == {}
    assert EVIDENCE["exponents"].features(view(trial), 1)
    assert "without a baseline" in str(lyap.explain(study_of([mixed]), 0))


@pytest.mark.parametrize("first", [0, 1])
def test_a_readout_before_any_report_is_the_baseline(first):
    at_once = {"-1": numbers(-0.3, state="full"), "1": numbers(-0.1, state="full")}
    trial = optuna.create_trial(
        state=TrialState.RUNNING,
        intermediate_values={first: 1.0, 1: 1.0},
        user_attrs={"lyapunov:readouts": at_once},
    )
    assert EVIDENCE["displacement"].features(view(trial), 1)["max"] == pytest.approx(0.2)
    unreported = optuna.create_trial(
        state=TrialState.RUNNING, user_attrs={"lyapunov:readouts": at_once}
    )
    assert view(unreported).baseline.max == -0.3
    assert view(unreported).readouts == {}


# States ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_hidden", "n_full", "used"), [(9, 12, "full"), (12, 9, "hidden"), (10, 10, "full")]
)
def test_a_study_of_both_states_uses_the_one_that_most_complete_trials_have(n_hidden, n_full, used):
    trials = [series(quality(i), state="hidden") for i in range(n_hidden)]
    for readouts in trials[::2]:  # as earlier releases wrote them
        for readout in readouts.values():
            del readout["state"]
    trials += [series(quality(i), state="full") for i in range(n_full)]
    study = study_of(trials)
    with pytest.warns(lyap.LyapunovWarning, match=f"of different states .*'{used}' are used") as c:
        models = StudyModels(1, ["displacement"])
        models.update(study.trials)
        models.update(study.trials)
    assert len(c) == 1
    states = {r.state for v in models.complete for r in [*v.readouts.values(), v.baseline] if r}
    assert states == {used}
    other = "full" if used == "hidden" else "hidden"
    running = optuna.create_trial(
        state=TrialState.RUNNING,
        intermediate_values={0: 1.0},
        user_attrs={"lyapunov:readouts": series(0.5, state=other)},
    )
    assert models.view(running).readouts == {}
    assert models.view(running).baseline is None


def test_the_state_follows_the_trials_that_come_to_an_end():
    trials = [series(quality(i), state="hidden") for i in range(7)]
    trials += [series(quality(i), state="full") for i in range(9)]
    study = study_of(trials)
    models = StudyModels(1, ["displacement"])
    models.update(study.trials[:7])
    assert models.complete[0].readouts
    before = models.at(1, refit=True)
    with pytest.warns(lyap.LyapunovWarning, match="'full' are used"):
        models.update(study.trials)
    assert not models.complete[0].readouts
    assert models.complete[-1].readouts
    assert models.at(1, refit=True) is not before
    with pytest.warns(lyap.LyapunovWarning, match="'full' are used"):
        fresh = StudyModels(1, ["displacement"])
        fresh.update(study.trials)
    assert fresh.at(1, refit=True).skill == models.at(1, refit=True).skill


def test_states_that_do_not_mix_say_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lyap.rank_trials(study_of([series(quality(i), state="hidden") for i in range(12)]))


def test_a_figure_shows_one_state():
    trials = [series(quality(i), state="hidden" if i % 3 else "full") for i in range(12)]
    assert len(_get_info(study_of(trials), "max", 1).points) == 8


@pytest.mark.parametrize("state", ["hidden", "full"])
def test_a_recording_keeps_state_and_layers(state, tmp_path):
    study = study_of([series(quality(i), state=state, layers=("a", "b")) for i in range(5)])
    path = tmp_path / "recording.json.gz"
    Recording.from_study(study).save(path)
    again = Recording.load(path).to_study()
    before = [lyap.records.read_readouts(t) for t in study.trials]
    assert [lyap.records.read_readouts(t) for t in again.trials] == before


# All that reads a study ------------------------------------------------------------------------


def odd_study(storage=None):
    """Trials with and without layers, means and readouts, of both states."""
    trials = []
    for i in range(24):
        q = quality(i)
        trials.append(
            [
                series(q, layers=("encoder", HOSTILE), quantiles=True),
                series(q, layers=("encoder", HOSTILE), mean=None),
                series(q, mean=None, quantiles=True),
                series(q, state="hidden"),
                series(q),
                None,
            ][i % 6]
        )
    study = study_of(trials, storage)
    study.add_trial(
        optuna.create_trial(
            state=TrialState.PRUNED,
            value=3.0,
            intermediate_values={0: 1.0},
            user_attrs={"lyapunov:readouts": series(0.3, mean=None, layers=("encoder", HOSTILE))},
        )
    )
    return study


@pytest.mark.filterwarnings("ignore::lyap_optuna.LyapunovWarning")
def test_nothing_that_reads_a_study_stumbles():
    study = odd_study()
    assert len(lyap.rank_trials(study)) == 25
    assert any(t.mean is None and t.max is not None for t in lyap.rank_trials(study))
    assert lyap.prediction_skill(study)
    for number in range(25):
        assert lyap.explain(study, number).sentence.startswith(f"Trial {number} ")
    assert "mean exponent - nats/step" in str(lyap.explain(study, 2))
    for exponent in ("max", "mean", "max_displacement", "mean_displacement"):
        visualization.plot_exponent_value(study, exponent=exponent)
    for number in range(25):
        visualization.plot_spectrum_evolution(study, number)
    names = [trace.name for trace in visualization.plot_spectrum_evolution(study, 2).data]
    assert "mean" not in names
    assert "maximum" in names
    assert published_figures(Numbers(study))
    text = visualization.plot_spectrum(study).to_json()
    assert "<img" not in json.loads(text)["data"][0].get("name", "")


@pytest.mark.filterwarnings("ignore::lyap_optuna.LyapunovWarning")
def test_the_note_names_layers_and_shows_no_markup():
    best = min(range(24), key=lambda i: math.exp(-quality(i)))
    trials = [series(quality(i), layers=("encoder.0", HOSTILE)) for i in range(24)]
    study = study_of(trials)
    note = note_text(Numbers(study))
    assert study.best_trial.number == best
    assert "It is the largest of its layers: `encoder.0` " in note
    assert "(a layer) " in note
    assert "img" not in note


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.filterwarnings("ignore::lyap_optuna.LyapunovWarning")
def test_the_command_lists_layers_and_shows_a_missing_mean_as_a_dash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "120")  # room for the mean
    url = f"sqlite:///{tmp_path / 'study.db'}"
    odd_study(url)
    at = ("--storage", url)
    for arguments in (("rank",), ("rank", "-f", "json"), ("explain", "--trial-number", "2")):
        run(arguments[0], *at, *arguments[1:])
    table = run("spectra", *at, "--trial-number", "1")
    assert " layer " in table
    rows = [line for line in table.splitlines() if " encoder " in line]
    assert len(rows) == 4
    assert " - " in rows[0]
    assert " layer " not in run("spectra", *at, "--trial-number", "4")
    for line in run("rank", *at).splitlines():
        if line.split()[1:2] == ["2"]:
            assert line.rstrip().endswith("-")
    rows = list(csv.DictReader(io.StringIO(run("spectra", *at, "-f", "csv"))))
    first = [row for row in rows if row["number"] == "0"]
    assert [row["layer"] for row in first[:3]] == ["", "encoder", HOSTILE]
    assert first[0]["layer_state"] == "full"
    loaded = json.loads(run("spectra", *at, "-f", "json", "--trial-number", "1"))
    assert [row["layer"] for row in loaded[:3]] == [None, "encoder", HOSTILE]
    assert all(row["mean"] is None for row in loaded)


def test_the_file_of_spectra_has_a_row_for_each_layer(tmp_path: Path):
    trials = [series(quality(i), layers=("enc", "dec"), quantiles=True) for i in range(2)]
    path = tmp_path / "spectra.csv"
    assert write_study_spectra(path, study_of(trials)) == 8
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["trial"], r["step"], r["layer"], r["layer_state"], r["kind"]) for r in rows[:4]] == [
        ("0", step, layer, "full", "quantiles") for step in ("-1", "2") for layer in ("enc", "dec")
    ]
    assert float(rows[0]["exponent_1"]) > float(rows[0]["exponent_32"])
