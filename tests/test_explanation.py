"""The story of a trial: one sentence, a table of steps, and what is known now."""

import re
from collections.abc import Generator

import optuna
import pytest
from _studies import specs, study_of
from optuna.trial import TrialState

import lyap_optuna as lyap
from lyap_optuna._numbers import number
from lyap_optuna.prediction import explained
from lyap_optuna.prediction.evidence import EVIDENCE, in_words


def judged(n: int = 30, sign: int = 1, **decision: object) -> optuna.Study:
    """A study whose last trial was pruned by such a decision."""
    trials = specs("plateau", n, first=1, sign=sign)
    last = dict(trials[-1])
    steps = list(last["intermediate_values"].items())[:2]
    told = {
        "trial": n,
        "step": 2,
        "verdict": "pruned",
        "predicted_value": 0.5,
        "lower": 0.4,
        "upper": 0.6,
        "threshold": 0.25,
        "top_fraction": 0.1,
        "probability": 0.01,
        "min_probability": 0.06,
        "shares": {"loss": 0.5, "displacement": 0.25},
        "n_trials": 12,
    }
    last |= {
        "state": TrialState.PRUNED,
        "value": None,
        "intermediate_values": dict(steps),
        "user_attrs": {**last["user_attrs"], "lyapunov:decision": told | decision},
    }
    return study_of([*trials, last], sign=sign)


def test_one_sentence_says_why() -> None:
    assert lyap.explain(judged(), 30).sentence == (
        "Trial 30 was pruned at step 2, after 2 of 10 reports: its chance of ending among the best "
        "10 % of trials (0.25 or better) was 0.01; to go on, 0.06 was needed."
    )


@pytest.mark.parametrize("chance", [0.06, 0.05999999, 0.0599, 0.00001, 1e-9])
def test_the_two_chances_compare_as_they_did(chance: float) -> None:
    explanation = lyap.explain(judged(probability=chance), 30)
    row = next(row for row in explanation.table() if row["verdict"])
    told, needed = row["chance"], row["needed"]
    assert told != needed
    assert float(told.lstrip("<")) < float(needed) or told == f"<{needed}"
    assert told == f"<{needed}" or told.lstrip("<") in explanation.sentence


def test_where_a_score_is_maximised_nothing_is_called_a_loss() -> None:
    for kind in ("lower", "higher"):
        sign = 1 if kind == "lower" else -1
        story = str(lyap.explain(judged(sign=sign), 30))
        assert ("loss" in story) == (sign == 1)
        assert ("score so far 50 %" in story) == (sign == -1)


def test_in_words_names_every_kind() -> None:
    kinds = ["loss", "exponents", "displacement", "hyperparameters"]
    assert in_words(kinds) == "loss so far, exponents, displacement and hyperparameters"
    assert all(kind in in_words(EVIDENCE) for kind in EVIDENCE)
    assert in_words(["something else"], -1) == "something else"
    assert in_words([]) == ""


def test_what_is_known_now_is_what_the_ranking_says() -> None:
    study = judged()
    explanation = lyap.explain(study, 30)
    ranking = lyap.rank_trials(study)
    place = [t.number for t in ranking].index(30)
    assert explanation.prediction == ranking[place]
    assert explanation.rank == place + 1
    now = f"predicted to end at {ranking[place].predicted_value:.4g} ("
    assert re.search(rf"In hindsight, on 30 COMPLETE trials: {re.escape(now)}", str(explanation))
    assert f"rank {place + 1} of 31" in str(explanation)


def test_the_table_has_what_was_reported_measured_and_decided() -> None:
    study = judged()
    trial = study.trials[30]
    rows = lyap.explain(study, 30).table()
    assert [row["step"] for row in rows] == ["before", "1", "2", "3"]
    assert [row["reported"] for row in rows[1:3]] == [
        number(trial.intermediate_values[step]) for step in (1, 2)
    ]
    readouts = trial.user_attrs["lyapunov:readouts"]
    moved = readouts["2"]["max"] - readouts["0"]["max"]
    assert rows[2]["moved"] == number(moved, sign=True)
    assert rows[0]["moved"] == ""
    assert (rows[2]["predicted"], rows[2]["80 % interval"]) == ("0.5000", "0.4000 to 0.6000")


@pytest.mark.parametrize("width", [30, 60, 80, 120])
def test_it_fits_the_width(width: int) -> None:
    text = lyap.explain(judged(), 30).text(width)
    assert max(map(len, text.splitlines())) <= max(width, 44)  # step, predicted, chance, verdict
    assert not re.search(r"[ \t]$", text, re.MULTILINE)
    whole = lyap.explain(judged(), 30).text(1000)
    assert whole.split("\n")[0].split() == text.split("\n\n")[0].split()


def test_a_long_trial_shows_its_decisions_and_ends() -> None:
    study = optuna.create_study()
    decision = {"trial": 0, "step": 500, "verdict": "kept", "probability": 0.5}
    study.add_trial(
        optuna.create_trial(
            value=1.0,
            intermediate_values={step: 1.0 for step in range(1000)},
            user_attrs={"lyapunov:decision": decision},
        )
    )
    steps = [step.step for step in lyap.explain(study, 0).steps]
    assert {0, 500, 999} <= set(steps)
    assert len(steps) <= 16
    assert steps == sorted(steps)


def test_it_says_where_no_lyapunov_pruner_judged() -> None:
    nobody = "No LyapunovPruner judged it, nor any other trial of this study"
    study = judged()
    assert nobody not in str(lyap.explain(study, 30))
    assert "recorded no decision on it" in str(lyap.explain(study, 0))
    other = study_of(specs("plateau", 5))
    assert nobody in str(lyap.explain(other, 0))


def test_a_decision_of_an_earlier_version_is_told_as_it_was_recorded() -> None:
    study = optuna.create_study()
    decision = {"step": 3, "verdict": "pruned", "reason": "Hopeless.", "trial": 0}
    study.add_trial(
        optuna.create_trial(
            state=TrialState.PRUNED,
            intermediate_values={3: 2.0},
            user_attrs={"lyapunov:decision": decision},
        )
    )
    explanation = lyap.explain(study, 0)
    assert explanation.sentence == "Trial 0 was pruned at step 3, after 1 report: Hopeless."


def test_several_trials_are_explained_as_each_alone() -> None:
    study = judged()
    assert explained(study, [30, 3]) == [lyap.explain(study, 30), lyap.explain(study, 3)]
    with pytest.raises(ValueError, match="has no trial 31"):
        explained(study, [3, 31])


def test_a_trial_that_freeze_thaw_trained_to_its_end_is_not_said_to_wait_for_a_pruner() -> None:
    def objective(trial: optuna.Trial) -> Generator[None, None, float]:
        x = trial.suggest_float("x", 0, 1)
        for step in range(4):
            trial.report(x, step)
            yield
        return x

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    lyap.freeze_thaw(study, objective, n_steps=40, seed=0, cost="steps")
    never_rested = next(t for t in study.trials if t.state.name == "COMPLETE")
    assert "lyapunov:stretches" not in never_rested.user_attrs
    assert "freeze_thaw searched this study" in str(lyap.explain(study, never_rested.number))
