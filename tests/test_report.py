"""The report of a study: what it says, what the page holds, and that it needs nothing else."""

import base64
import gzip
import html
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
import pytest
from _studies import specs, study_of
from click.testing import CliRunner
from optuna.trial import TrialState

import lyap_optuna as lyap
from lyap_optuna.cli import main
from lyap_optuna.prediction import _study, added_skill, prediction_skill, pruning_loss
from lyap_optuna.prediction._skill import AddedSkill, correlation_interval
from lyap_optuna.prediction._study import StepModel
from lyap_optuna.records import _keys
from lyap_optuna.report import (
    Section,
    Table,
    page,
    report_page,
    skill_table,
    summarize,
    write_report,
)
from lyap_optuna.report._page import TRACES
from lyap_optuna.visualization import _style
from lyap_optuna.visualization._figures import FIGURES, Numbers

NASTY = "</title><script>alert(1)</script>{{ 7 * 7 }}"


@pytest.fixture(scope="module")
def study() -> optuna.Study:
    """Forty trials, the last ten of them pruned at their second report."""
    trials = specs("plateau", 40, first=1)
    for made in trials[30:]:
        reported = dict(list(made["intermediate_values"].items())[:2])
        made |= {"state": TrialState.PRUNED, "value": None, "intermediate_values": reported}
    return study_of(trials)


def figures_of(text: str) -> list[dict[str, Any]]:
    packed = re.search(r'id="figures">([^<]*)<', text)
    assert packed is not None
    figures: list[dict[str, Any]] = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    return figures


def test_the_page_is_one_small_file_with_plotly_once(study: optuna.Study, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(study, path)
    text = path.read_text()
    assert path.stat().st_size < 1_000_000
    assert text.count('id="plotly"') == 1
    packed = re.search(r'id="plotly">([^<]*)<', text)
    assert packed is not None
    code = gzip.decompress(base64.b64decode(packed[1]))
    assert b"plotly.js (cartesian - minified)" in code[:100]
    # Nothing is fetched, from anywhere.
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=|@import|url\(", text)
    assert "http://" not in text
    assert "https://" not in text


def test_the_page_has_every_figure_of_the_registry(study: optuna.Study, tmp_path: Path) -> None:
    write_report(study, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    numbers = Numbers(study)
    shown = [spec for spec in FIGURES if numbers.of(spec) is not None]
    assert len(shown) >= 4
    figures = figures_of(text)
    assert len(figures) == len(shown) == text.count('class="figure"')
    for spec in shown:
        assert f"<h2>{html.escape(spec.name)}</h2>" in text
    kinds = {trace["type"] for figure in figures for trace in figure["data"]}
    assert kinds <= set(TRACES)


def test_every_text_is_taken_literally(tmp_path: Path) -> None:
    study = optuna.create_study(study_name=NASTY)
    study.add_trial(
        optuna.create_trial(
            value=1.0,
            params={"x": NASTY},
            distributions={"x": optuna.distributions.CategoricalDistribution([NASTY, "y"])},
        )
    )
    write_report(study, tmp_path / "report.html", notes=[NASTY])
    text = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in text
    assert text.count("{{ 7 * 7 }}") == 4  # title, heading, note, hyperparameter
    assert "49" not in re.sub(r"<style>.*?</style>|<script.*?</script>", "", text, flags=re.S)


def test_a_page_shows_what_its_sections_hold() -> None:
    table = Table({"a": "A", "b": "B", "c": "C"}, [{"a": 0, "b": None}, {"a": 1.5, "b": ""}])
    text = page("Title", ["First."], [Section("One", ["Text."], ["Point."], table)])
    assert "<li>Point.</li>" in text
    assert re.findall(r"<th>(.*?)</th>", text) == ["A"]  # nothing is in B, C
    assert re.findall(r"<td>(.*?)</td>", text) == ["0", "1.5"]
    assert "plotly" not in text.lower()[: text.index("<script>")]


def test_what_is_long_stands_below_its_row() -> None:
    table = Table({"a": "A"}, [{"a": 1, "long": "x" * 500}, {"a": 2, "long": ""}], below="long")
    text = page("Title", [], [Section("One", table=table)])
    rows = re.findall(r"<tr.*?</tr>", text)
    assert len(rows) == 4  # the heads, two rows, and what is long of the first
    assert "x" * 500 in rows[2]
    assert 'colspan="1"' in rows[2]


def test_a_title_does_not_repeat_the_heading() -> None:
    figure = go.Figure(layout={"title": _style.title("Skill", ["of ten"])})
    shown = figures_of(page("T", [], [Section("Skill", figure=figure)]))[0]
    assert re.sub("<.*?>", "", shown["layout"]["title"]["text"]) == "of ten"
    shown = figures_of(page("T", [], [Section("Ski", figure=figure)]))[0]
    assert shown["layout"]["title"]["text"].startswith("Skill<br>")
    assert figure.layout.title.text.startswith("Skill<br>")  # the caller's own is as it was


def test_a_study_of_several_objectives_has_a_page_too(tmp_path: Path) -> None:
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.add_trial(optuna.create_trial(values=[1.0, 2.0]))
    write_report(study, tmp_path / "report.html")
    assert "several objectives" in (tmp_path / "report.html").read_text()


def test_an_empty_study_has_a_page(tmp_path: Path) -> None:
    write_report(optuna.create_study(), tmp_path / "report.html")
    assert "0 trials." in (tmp_path / "report.html").read_text()


def test_the_summary_counts_what_was_spent_saved_and_lost(study: optuna.Study) -> None:
    summary = summarize(study)
    assert summary.states == {"COMPLETE": 30, "PRUNED": 10}
    assert (summary.steps_spent, summary.steps_saved) == (30 * 10 + 10 * 2, 10 * 8)
    assert "Pruning saved 80 of the 400 steps that all trials would have taken (20 %)." in (
        summary.pruning_in_words
    )
    assert summary.loss is not None
    assert summary.loss.pruned == summary.loss.judged == 10
    chances = [p.probability or 0.0 for p in summary.ranking if p.state == TrialState.PRUNED]
    assert summary.loss.expected == pytest.approx(sum(chances))
    assert "What pruning lost is not known" in summary.pruning_in_words


def test_what_pruning_lost_is_known_of_trials_that_were_continued() -> None:
    trials = specs("noise", 20)
    for made in trials[:2]:
        made |= {"state": TrialState.PRUNED, "value": None}
    study = study_of(trials)
    for number, value in ((0, -1.0), (1, 1e6)):
        made = specs("noise", 1, seed=9 + number)[0] | {"value": value}
        made["user_attrs"] = {_keys.CONTINUES: number}
        study.add_trial(optuna.create_trial(**made))
    loss = pruning_loss(study)
    assert loss.continued == {0: True, 1: False}
    assert "Of 2 pruned trials that got a second chance and ran to the end, 1 ended among" in str(
        loss
    )
    assert "not known" not in str(loss)


def test_what_only_the_exponents_know_is_what_they_add() -> None:
    (first, *_) = added_skill(study_of(specs("plateau", 60, first=1)), steps=[1])
    assert first.skill > 0.8
    assert first.without < 0.4
    assert first.lower > 0
    assert "more than chance explains" in str(first)
    (easy,) = added_skill(study_of(specs("easy", 60)), steps=[5])
    assert easy.without > 0.9
    assert abs(easy.difference) < 0.05
    assert easy.lower <= easy.difference <= easy.upper


def test_what_is_added_is_the_difference_of_two_skills() -> None:
    study = study_of(specs("plateau", 25, first=1))
    (added,) = added_skill(study, steps=[2])
    (together,) = (s for s in prediction_skill(study, steps=[2]) if s.chosen)
    others = prediction_skill(study, steps=[2], evidence=["loss", "hyperparameters"])
    (without,) = (s for s in others if s.chosen)
    assert added.skill == pytest.approx(together.rank_correlation)
    assert added.without == pytest.approx(without.rank_correlation)
    assert added.added == ("exponents", "displacement")


def test_nothing_is_added_where_nothing_was_measured() -> None:
    assert added_skill(study_of(specs("easy", 20, readouts=False))) == []
    assert added_skill(study_of(specs("easy", 20)), ["loss"], steps=[99]) == []
    with pytest.raises(ValueError, match="Unknown kind of evidence"):
        added_skill(optuna.create_study(), ["weather"])


@pytest.mark.parametrize(("rho", "n"), [(0.0, 20), (0.6, 12), (-0.4, 60)])
def test_the_interval_of_a_rank_correlation_holds_four_times_in_five(rho: float, n: int) -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, n))
    y = rho * x + math.sqrt(1 - rho**2) * rng.normal(size=(2000, n))
    truth = 6 / math.pi * math.asin(rho / 2)  # of two normal variables, in the limit
    held = 0
    for a, b in zip(x, y, strict=True):
        ends = correlation_interval(float(spearmanr(a, b).statistic), n)
        assert ends is not None
        held += ends[0] <= truth <= ends[1]
    assert 0.76 < held / 2000 < 0.85
    assert correlation_interval(0.5, 3) is None
    assert correlation_interval(1.0, 10) is not None


def test_the_table_of_skill_is_that_of_the_function(study: optuna.Study) -> None:
    summary = summarize(study)
    columns, rows, _ = skill_table(summary)
    by_step: dict[int, dict[str, Any]] = {}
    step = 0
    for row in rows:
        step = row["step"] or step
        by_step.setdefault(step, {})[row["evidence"]] = row
    assert list(by_step) == [1, 2, 3]
    for skill in prediction_skill(study, steps=[1, 2, 3]):
        if skill.rank_correlation is None:
            continue
        name = {"loss": "loss so far"}.get(skill.evidence, skill.evidence)
        row = by_step[skill.step]["all together" if " + " in name else name]
        assert row["correlation"] == f"{skill.rank_correlation:.2f}"
        lower, upper = skill.interval or (math.nan, math.nan)
        assert row["interval"] == f"{lower:.2f} to {upper:.2f}"
    assert set(columns) >= {key for row in rows for key in row}


def test_every_model_behind_a_report_is_fitted_once(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[tuple[int | None, tuple[str, ...]]] = []

    class Counted(StepModel):
        def __init__(self, rows: Any, step: int | None, kinds: Any, *options: Any) -> None:
            fitted.append((step, tuple(kinds)))
            super().__init__(rows, step, kinds, *options)

    monkeypatch.setattr(_study, "StepModel", Counted)
    write_report(study, tmp_path / "report.html")
    assert len(fitted) == len(set(fitted)) > 40
    fitted.clear()
    few = summarize(study, most_steps=3)
    assert {step for step, kinds in fitted if len(kinds) == 1} == {1, 2, 3}
    assert few.skills == tuple(prediction_skill(study, steps=[1, 2, 3]))
    assert skill_table(few) == skill_table(summarize(study))


@pytest.mark.parametrize("sign", [1, -1])
def test_where_one_kind_beats_all_together_it_is_said_why(sign: int) -> None:
    said = set()
    for seed in range(6):
        for n in (6, 12, 40):
            made = study_of(specs("plateau", n, seed, first=1, sign=sign), sign=sign)
            summary = summarize(made, most_steps=2)
            _, rows, _ = skill_table(summary)
            beaten = {}
            for step in (1, 2):
                skills = [s for s in summary.skills if s.step == step]
                alone = max(round(s.rank_correlation or 0, 2) for s in skills[:-1])
                beaten[step] = alone - round(skills[-1].rank_correlation or 0, 2)
            words = summary.hindsight_in_words
            assert bool(words) == (max(beaten.values()) > 0)
            if words:
                numbers = re.search(r"\((\S+) against (\S+)\)", words)
                assert numbers is not None
                assert {*numbers.groups()} <= {row["correlation"] for row in rows}
                assert ("too few" in words) == (n < 30)
            said.add(bool(words))
    assert said == {True, False}


def test_the_caveats_are_those_that_hold(study: optuna.Study) -> None:
    told = " ".join(summarize(study).caveats)
    assert "pruning chose which these are" in told
    assert "Only" not in told
    assert "readouts" not in told
    bare = " ".join(summarize(study_of(specs("easy", 5, readouts=False))).caveats)
    assert "Only 5 trials ran to the end" in bare
    assert "No trial has Lyapunov readouts" in bare
    assert "pruning chose" not in bare


# In a browser


def test_the_page_draws_its_figures_in_light_and_in_dark(
    browser: Any,
    study: optuna.Study,
    tmp_path: Path,
    screenshot: Callable[[Any, str], None],
) -> None:
    write_report(study, tmp_path / "report.html")
    for width in (1366, 390):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark", offline=True
        )
        opened = context.new_page()
        errors: list[object] = []
        opened.on("pageerror", lambda error, errors=errors: errors.append(error))
        opened.goto((tmp_path / "report.html").as_uri())
        n = opened.locator(".figure").count()
        assert n >= 4
        opened.wait_for_function(f"document.querySelectorAll('.figure .main-svg').length >= {n}")
        color = "getComputedStyle(document.querySelector('.figure .xtick text')).fill"
        background = "getComputedStyle(document.body).backgroundColor"
        dark = opened.evaluate(color), opened.evaluate(background)
        screenshot(opened, f"report-dark-{width}")
        opened.locator("#look").click()
        opened.wait_for_function(f"{color} !== '{dark[0]}'")
        light = opened.evaluate(color), opened.evaluate(background)
        screenshot(opened, f"report-light-{width}")
        assert sum(map(int, re.findall(r"\d+", dark[1])[:3])) < 100
        assert sum(map(int, re.findall(r"\d+", light[1])[:3])) > 700
        # Nothing is wider than the screen; wide tables scroll by themselves.
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        assert not errors
        context.close()


# The commands


@pytest.fixture(scope="module")
def url(study: optuna.Study, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('report')}/study.db"
    copied = optuna.create_study(storage=url, study_name="tune")
    copied.add_trials(study.trials)
    return url


def test_the_command_writes_the_page(url: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    done = CliRunner().invoke(main, ["report", "--storage", url, "-o", str(path)])
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    assert str(path) in done.stderr
    assert "<title>tune</title>" in path.read_text()


def test_skill_prints_the_table_and_what_it_means(url: str) -> None:
    done = CliRunner().invoke(main, ["skill", "--storage", url])
    assert done.exit_code == 0, done.output
    assert re.search(r"^ *1 +loss so far +-?0\.\d\d ", done.stdout, re.MULTILINE)
    said = " ".join(done.output.split())  # wrapped as wide as the terminal is
    assert "the exponents and displacement added" in said
    assert "Pruning saved 80 of the 400 steps" in said
    assert "pruning chose which these are" in said


def test_skill_of_a_step_as_rows(url: str) -> None:
    done = CliRunner().invoke(main, ["skill", "--storage", url, "--step", "2", "-f", "json"])
    rows = json.loads(done.stdout)
    assert {row["step"] for row in rows} == {2}
    told = [row for row in rows if row["n_trials"]]
    assert told
    assert all(row["lower"] < row["rank_correlation"] < row["upper"] for row in told)


def test_explain_writes_a_small_page(url: str, tmp_path: Path) -> None:
    path = tmp_path / "story.html"
    arguments = ["explain", "--storage", url, "--trial-number", "31", "--plot", str(path)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert path.stat().st_size < 1_000_000
    assert html.escape(
        lyap.explain(optuna.load_study(storage=url, study_name="tune"), 31).sentence
    ) in (path.read_text())


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_best_trial_is_the_first_of_the_ranking(direction: str) -> None:
    study = optuna.create_study(direction=direction)
    for value in (0.2, math.inf, 0.1, -math.inf, 0.3):
        study.add_trial(optuna.create_trial(value=value, intermediate_values={0: value}))
    summary = summarize(study)
    assert summary.best is not None
    assert summary.best.number == summary.ranking[0].number == (2 if direction == "minimize" else 4)
    assert f"The best is trial {summary.best.number}, " in summary.overview


def test_a_page_stays_small_and_holds_any_name() -> None:
    study = optuna.create_study(study_name="half a \ud83d name")
    space = {
        f"p{i}": optuna.distributions.CategoricalDistribution(["v" * 2000]) for i in range(100)
    }
    for number in range(20):
        params = dict.fromkeys(space, "v" * 2000)
        study.add_trial(optuna.create_trial(value=number, params=params, distributions=space))
    text = report_page(study).encode()
    assert len(text) < 1_000_000
    assert "half a \N{REPLACEMENT CHARACTER} name".encode() in text


@pytest.mark.parametrize(
    ("lower", "upper", "beyond"),
    [
        (-0.59, -0.05, "which is worse than chance explains"),
        (0.05, 0.59, "which is more than chance explains"),
        (-0.1, 0.1, "which chance explains too"),
    ],
)
def test_what_exponents_added_is_said_with_its_verdict_at_each_step(
    lower: float, upper: float, beyond: str
) -> None:
    added = AddedSkill(2, ("exponents",), 0.834, 0.826, lower, upper, 13)
    assert "added +0.00 to" in str(added)  # 0.83 with them, 0.83 without
    assert beyond in str(added)
    assert (beyond.removeprefix("which is ") in added.measured) == (lower * upper > 0)
