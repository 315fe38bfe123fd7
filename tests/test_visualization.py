"""The figures: their numbers, what they do without data, and that labels are harmless."""

import json
import logging
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
import pytest
import torch
from optuna.trial import TrialState
from scipy import stats

import lyap_optuna as lyap
from lyap_optuna import visualization
from lyap_optuna.testing._studies import EPOCHS, study_of_everything, wide_study
from lyap_optuna.visualization import (
    _convergence,
    _exponent_value,
    _prediction_skill,
    _predictions,
    _pruning_timeline,
    _publication,
    _spectrum,
    _style,
)
from lyap_optuna.visualization._figures import FIGURES, Numbers
from lyap_optuna.visualization._spec import FigureSpec

STUDY_PLOTS: dict[str, Callable[[optuna.Study], go.Figure]] = {
    name: getattr(visualization, name)
    for name, _, arguments in (spec.call.partition("(") for spec in FIGURES)
    if arguments == "study)"
}


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Any:
    optuna.logging.enable_propagation()
    caplog.set_level(logging.WARNING)
    yield caplog
    optuna.logging.disable_propagation()


@pytest.mark.parametrize("name", STUDY_PLOTS)
def test_a_study_without_data_gives_an_empty_figure_and_a_warning(name: str, warned: Any) -> None:
    figure = STUDY_PLOTS[name](optuna.create_study())
    assert len(figure.data) == 0
    assert figure.layout.title.text
    assert len(warned.records) == 1


def test_a_trial_without_readouts_gives_an_empty_evolution(warned: Any) -> None:
    study = optuna.create_study()
    study.add_trial(optuna.create_trial(value=1.0))
    assert len(visualization.plot_spectrum_evolution(study, 0).data) == 0
    assert len(warned.records) == 1


@pytest.mark.parametrize(
    "name", ["plot_exponent_value", "plot_predictions", "plot_prediction_skill"]
)
def test_several_objectives_are_refused_by_name(name: str) -> None:
    study = optuna.create_study(directions=["minimize", "maximize"])
    with pytest.raises(ValueError, match="minimize, maximize"):
        STUDY_PLOTS[name](study)


@pytest.mark.parametrize("name", ["plot_spectrum", "plot_pruning_timeline"])
def test_figures_without_a_target_take_several_objectives(name: str) -> None:
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.add_trial(
        optuna.create_trial(
            values=[1.0, 2.0],
            user_attrs={"lyapunov:readouts": {"1": {"max": 0, "mean": -1, "quantiles": [-1, 0]}}},
        )
    )
    STUDY_PLOTS[name](study)


def test_the_spectrum_of_a_network_has_a_band_over_its_inputs() -> None:
    torch.manual_seed(0)
    spectrum = lyap.lyapunov_spectrum(torch.nn.GRU(2, 5), torch.randn(30, 4, 2))
    info = _spectrum._get_spectrum_info(spectrum)
    assert info.n_inputs == 4
    assert info.position == pytest.approx((0, 0.25, 0.5, 0.75, 1))
    assert info.exponents == pytest.approx(spectrum.exponents.tolist())
    widths = np.subtract(info.upper, info.lower)
    assert widths == pytest.approx((2 * spectrum.std).tolist())
    assert len(visualization.plot_spectrum(spectrum).data) == 3


def test_one_input_has_no_band() -> None:
    torch.manual_seed(0)
    spectrum = lyap.lyapunov_spectrum(torch.nn.RNN(2, 5), torch.randn(30, 1, 2))
    assert len(visualization.plot_spectrum(spectrum).data) == 2


def test_trial_numbers_do_not_belong_to_a_spectrum() -> None:
    spectrum = lyap.lyapunov_spectrum(torch.nn.RNN(2, 3), torch.randn(9, 1, 2))
    with pytest.raises(ValueError, match="trial_numbers"):
        visualization.plot_spectrum(spectrum, [0])


def test_study_spectra_descend_and_are_those_asked_for() -> None:
    study = study_of_everything()
    infos = _spectrum._get_study_info(study, [3, 4], None)
    assert [(info.number, info.step) for info in infos] == [(3, 3), (4, 2)]
    for info in infos:
        assert list(info.exponents) == sorted(info.exponents, reverse=True)
    assert [info.step for info in _spectrum._get_study_info(study, None, 0)] == [0] * 30


def test_colours_go_by_rank_so_that_one_diverged_trial_moves_none() -> None:
    assert _spectrum._shades([3.0, 2.0, None], [1.0, 2.0, 3.0]) == [1.0, 0.5, None]
    assert _spectrum._shades([1.0, 2.0, 1e9], [1.0, 2.0, 1e9]) == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(("direction", "last"), [("minimize", 28), ("maximize", 0)])
def test_the_best_spectrum_lies_on_top(direction: str, last: int) -> None:
    figure = visualization.plot_spectrum(study_of_everything(direction=direction))
    lines = [trace for trace in figure.data if trace.customdata is not None]
    assert lines[-1].customdata[-1] == last


def test_chosen_trials_are_drawn_whole_and_with_the_band_that_the_database_holds() -> None:
    study = optuna.create_study(storage="sqlite:///:memory:")
    torch.manual_seed(0)
    for value in (0.5, 0.4):
        trial = study.ask()
        probe = lyap.LyapunovProbe(
            torch.nn.RNN(2, 40), torch.randn(30, 3, 2), full_spectrum=True, last_step=2
        )
        probe.report(trial, value, 1)
        probe.report(trial, value, 2)
        study.tell(trial, value)
    stored = lyap.load_spectra(study, trial_number=1, step=2)[0]
    [info] = _spectrum._get_study_info(study, [1], None)
    assert (info.step, info.exponents, info.std) == (2, stored.exponents, stored.std)
    assert len(_spectrum._get_study_info(study, None, None)[1].exponents) == 32  # quantiles
    figure = visualization.plot_spectrum(study, [0, 1])
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert len(bands) == 2
    upper, lower = bands[1].y[:40], bands[1].y[40:][::-1]
    assert np.subtract(upper, lower) == pytest.approx(2 * np.array(stored.std))
    names = [trace.name for trace in figure.data if trace.name]
    assert names == ["trial 0: 0.5", "trial 1: 0.4"]


def test_many_trials_are_thinned_evenly_by_rank() -> None:
    study = study_of_everything(60)
    figure = _spectrum._draw_study(_spectrum._get_study_info(study, None, None), study, 10)
    drawn = {number for trace in figure.data for number in (trace.customdata or ())}
    assert len(drawn) == 10
    assert {4, 58} <= drawn  # one without a final value, and the best
    assert "10 of 60" in figure.layout.title.text


def test_spread_is_even_and_keeps_both_ends() -> None:
    assert _style.spread(3, 5) == [0, 1, 2]
    assert _style.spread(11, 3) == [0, 5, 10]
    assert len(_style.spread(1000, 7)) == 7


def test_the_evolution_marks_the_baseline() -> None:
    figure = visualization.plot_spectrum_evolution(study_of_everything(), 29)
    names = [trace.name for trace in figure.data if trace.name]
    assert "step 0 (baseline)" in names
    assert "maximum" in names
    assert list(figure.data[0].x) == [0, 1, 2]
    assert figure.data[0].y[1] - figure.data[0].y[0] == pytest.approx(29 / 30)


def test_the_evolution_of_a_trial_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="not 30"):
        visualization.plot_spectrum_evolution(study_of_everything(), 30)


def test_displacement_is_counted_from_the_baseline() -> None:
    info = _exponent_value._get_info(study_of_everything(), "max_displacement", None)
    assert info.step == 1
    assert [point.x for point in info.points] == pytest.approx([i / 30 for i in range(30)])
    assert info.correlation == pytest.approx(-1.0)
    assert info.n_complete == 24


def test_without_a_baseline_there_is_no_displacement(warned: Any) -> None:
    study = optuna.create_study()
    study.add_trial(
        optuna.create_trial(
            value=1.0,
            intermediate_values={1: 1.0},
            user_attrs={"lyapunov:readouts": {"1": {"max": -0.5, "mean": -1.0}}},
        )
    )
    assert _exponent_value._get_info(study, "max_displacement", 1).points == []
    assert [point.x for point in _exponent_value._get_info(study, "max", 1).points] == [-0.5]


def test_an_unknown_exponent_is_named() -> None:
    with pytest.raises(ValueError, match="'median'"):
        visualization.plot_exponent_value(study_of_everything(), exponent="median")


def test_infinite_and_missing_values_are_left_out() -> None:
    study = study_of_everything(3)
    study.add_trial(
        optuna.create_trial(
            value=math.inf,
            intermediate_values={1: math.inf},
            user_attrs={"lyapunov:readouts": {"1": {"max": 9.0, "mean": 8.0}}},
        )
    )
    assert len(_exponent_value._get_info(study, "max", 1).points) == 3
    json.loads(visualization.plot_exponent_value(study).to_json())
    json.loads(visualization.plot_spectrum(study).to_json())
    json.loads(visualization.plot_predictions(study).to_json())


@pytest.mark.parametrize(("direction", "word"), [("minimize", "lower"), ("maximize", "higher")])
def test_the_value_axis_says_which_way_is_better(direction: str, word: str) -> None:
    figure = visualization.plot_exponent_value(study_of_everything(direction=direction))
    assert f"{word} is better" in figure.layout.yaxis.title.text


def test_predictions_hold_the_intervals_that_the_ranking_gives() -> None:
    study = study_of_everything()
    ranked = {p.number: p for p in lyap.rank_trials(study)}
    infos = _predictions.predictions_in(study, lyap.rank_trials(study))
    assert {info.number for info in infos} == set(ranked)
    for info in infos:
        assert info.x == ranked[info.number].predicted_value
        assert info.lower == ranked[info.number].lower
        assert (info.value is None) == (info.state != TrialState.COMPLETE)
    complete = [info for info in infos if info.state == TrialState.COMPLETE]
    assert [info.value for info in complete] == [study.trials[i.number].value for i in complete]


def test_skill_names_every_kind_of_evidence() -> None:
    study = study_of_everything()
    figure = visualization.plot_prediction_skill(study)
    traces = {trace.name: trace for trace in figure.data}
    assert {"loss so far", "displacement", "chance alone", "used"} <= traces.keys()
    chosen = {(s.step, s.rank_correlation) for s in lyap.prediction_skill(study) if s.chosen}
    assert set(zip(traces["used"].x, traces["used"].y, strict=True)) == chosen


def test_combinations_of_evidence_share_one_entry_of_the_legend() -> None:
    line = _prediction_skill._SkillLine
    figure = _prediction_skill._draw(
        [
            line("loss", [1, 2], [0.1, 0.5], [20, 20], [False, False]),
            line("loss + exponents", [1], [0.7], [20], [True]),
            line("exponents + hyperparameters", [2], [0.8], [20], [True]),
        ]
    )
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces) == ["chance alone", "loss so far", "all together", "used", None]
    assert list(traces["all together"].y) == list(traces["used"].y) == [0.7, 0.8]
    assert traces["all together"].text[1].startswith("exponents and hyperparameters<br>20 trials")


def test_predictions_are_correlated_with_the_complete_trials() -> None:
    study = study_of_everything()
    ranked = [p for p in lyap.rank_trials(study) if p.state == TrialState.COMPLETE]
    rho = stats.spearmanr([p.predicted_value for p in ranked], [p.value for p in ranked]).statistic
    title = visualization.plot_predictions(study).layout.title.text
    assert f"rank correlation {rho:.2f} over {len(ranked)} COMPLETE trials" in title


def test_convergence_draws_equally_spaced_exponents() -> None:
    torch.manual_seed(0)
    spectrum = lyap.lyapunov_spectrum(
        torch.nn.RNN(2, 9), torch.randn(40, 2, 2), warmup=5, keep_history=True
    )
    info = _convergence._get_info(spectrum, 3)
    assert [line.column for line in info.lines] == [0, 4, 8]
    assert info.lines[0].steps[-1] == 35
    assert info.lines[0].estimates[-1] == pytest.approx(spectrum.max)
    with pytest.raises(ValueError, match="n_exponents"):
        visualization.plot_convergence(spectrum, n_exponents=0)


def test_convergence_without_history_is_empty(warned: Any) -> None:
    spectrum = lyap.lyapunov_spectrum(torch.nn.RNN(2, 3), torch.randn(9, 1, 2))
    assert len(visualization.plot_convergence(spectrum).data) == 0
    assert "keep_history" in warned.text


def test_the_timeline_counts_what_was_saved() -> None:
    info = _pruning_timeline._get_info(study_of_everything())
    # 6 of 30 trials stopped after 2 of 6 steps.
    assert info.n_saved == 6 * 4
    assert info.n_spent == 24 * 6 + 6 * 2
    title = visualization.plot_pruning_timeline(study_of_everything()).layout.title.text
    assert title == "Pruning: 24 of 180 steps saved (13 %)"


@pytest.mark.parametrize("number", [1, 12])
def test_what_is_pruned_before_training_saves_all_of_it(number: int) -> None:
    study = study_of_everything()
    for _ in range(number):
        study.add_trial(optuna.create_trial(state=TrialState.PRUNED))
    info = _pruning_timeline._get_info(study)
    assert info.n_saved == 24 + number * EPOCHS
    assert len(info.bars) == 30 + number
    alone = optuna.create_study()
    alone.add_trial(optuna.create_trial(state=TrialState.PRUNED))
    assert len(visualization.plot_pruning_timeline(alone).data) == 0


def test_of_many_trials_a_marker_shows_where_each_one_ended() -> None:
    figure = visualization.plot_pruning_timeline(study_of_everything(200))
    ends = {
        number: steps
        for trace in figure.data
        for number, steps in zip(trace.x, trace.y, strict=True)
    }
    assert ends == {i: 2 if i % 5 == 4 else EPOCHS for i in range(200)}


def test_running_trials_save_nothing() -> None:
    study = study_of_everything(2)
    trial = study.ask()
    trial.report(1.0, 1)
    bars = _pruning_timeline._get_info(study).bars
    assert [(bar.state, bar.saved) for bar in bars][-1] == (TrialState.RUNNING, 0)


def test_the_value_axis_is_logarithmic_only_for_wide_positive_values() -> None:
    assert _style.value_axis_type([0.01, 10.0]) == "log"
    assert _style.value_axis_type([1.0, 2.0, math.inf]) == "linear"
    assert _style.value_axis_type([-1.0, 1000.0]) == "linear"
    assert _style.value_axis_type([]) == "linear"


def test_a_logarithmic_axis_has_whole_numbers_as_ticks() -> None:
    axis = _style.value_axis([0.03, 4.0])
    assert [v for v in axis["tickvals"] if 0.03 < v < 4] == [0.05, 0.1, 0.2, 0.5, 1, 2]
    assert axis["ticktext"][axis["tickvals"].index(0.05)] == "0.05"
    assert "tickvals" not in _style.value_axis([1e-9, 1.0])
    assert "tickvals" not in _style.value_axis([1.0, 2.0])


@pytest.mark.parametrize(
    "draw", [visualization.plot_predictions, visualization.plot_exponent_value]
)
def test_a_last_report_is_drawn_as_no_final_value(
    draw: Callable[[optuna.Study], go.Figure],
) -> None:
    study = study_of_everything()
    strip = [trace for trace in draw(study).data if trace.yaxis == "y2"]
    assert [set(trace.y) for trace in strip] == [{"PRUNED"}]
    assert len(strip[0].x) == 6
    complete = [v for t in draw(study).data if t.name and "COMPLETE" in t.name for v in t.y]
    values = [t.value for t in study.trials if t.state == TrialState.COMPLETE]
    assert sorted(complete) == pytest.approx(sorted(values))


def test_the_zero_line_spans_the_axis() -> None:
    figure = go.Figure()
    _style.zero_line(figure, [3, 1, 2])
    assert list(figure.data[0].x) == [1, 3]
    assert list(figure.data[0].y) == [0, 0]


# What is published ------------------------------------------------------------------------------


def test_numbers_are_gathered_once() -> None:
    calls = []
    spec = FigureSpec("x", "x", "x", calls.append, lambda *_: go.Figure())
    numbers = Numbers(optuna.create_study())
    assert numbers.of(spec) is None
    assert numbers.of(spec) is None
    assert len(calls) == 1


@pytest.mark.slow
@pytest.mark.parametrize("n_trials", [119, 1000, 3000])
def test_published_figures_stay_within_what_a_page_can_load(n_trials: int) -> None:
    study = wide_study(n_trials)
    figures = _publication.published_figures(Numbers(study))
    assert len(figures) == len(FIGURES)
    sizes = {name: len(json.dumps(figure.to_json())) for name, figure in figures.items()}
    assert max(sizes.values()) < 150_000, sizes
    assert sum(sizes.values()) < 600_000, sizes


def test_a_figure_too_large_to_publish_is_drawn_of_fewer_trials() -> None:
    study = study_of_everything(200)
    figure = _publication.published_figures(Numbers(study), max_bytes=3000)["lyapunov-exponents"]
    assert len(figure.to_json()) <= 3000
    assert "of 200 drawn" in figure.layout.title.text


def test_published_figures_are_rounded_and_bring_no_template() -> None:
    study = wide_study(30)
    numbers = []
    for figure in _publication.published_figures(Numbers(study)).values():
        drawn = json.loads(figure.to_json())
        assert len(json.dumps(drawn["layout"]["template"])) < 100  # an empty one
        numbers += [x for trace in drawn["data"] for x in trace["y"] if isinstance(x, float)]
    assert len(numbers) > 100
    assert all(x == float(f"{x:.4g}") for x in numbers)


def test_what_has_no_data_is_not_published() -> None:
    study = optuna.create_study()
    assert _publication.published_figures(Numbers(study)) == {}
    several = optuna.create_study(directions=["minimize", "maximize"])
    readout = {"max": 0, "mean": -1, "quantiles": [-1, 0]}
    several.add_trial(
        optuna.create_trial(values=[1.0, 2.0], user_attrs={"lyapunov:readouts": {"1": readout}})
    )
    figures = _publication.published_figures(Numbers(several))
    assert list(figures) == ["lyapunov-spectra"]


def test_spectra_of_floored_networks_are_drawn() -> None:
    spectrum: Any = SimpleNamespace(
        exponents=torch.tensor([0.1, -1.0, -math.inf]),
        std=torch.tensor([0.1, math.nan, math.nan]),
        per_input=torch.zeros(2, 3),
    )
    info = _spectrum._get_spectrum_info(spectrum)
    assert info.exponents == pytest.approx((0.1, -1.0))
    assert info.position == (0.0, 0.5)
    json.loads(visualization.plot_spectrum(spectrum).to_json())


def test_far_outliers_do_not_squash_the_axis() -> None:
    bulk = [i / 100 for i in range(40)]
    assert _exponent_value._axis_range(bulk) == (None, 0)
    seen, n_outside = _exponent_value._axis_range([*bulk, 50.0])
    assert n_outside == 1
    assert seen is not None
    assert seen[0] < 0.0
    assert 0.39 < seen[1] < 1.0
