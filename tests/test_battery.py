"""Every layer, kind of evidence, figure and storage keeps its facts; what does not is named."""

import copy
import math
import pkgutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any

import plotly.graph_objects as go
import pytest
import torch
from _networks import layer_dynamics, make_inputs, make_layer
from _storages import STORAGES, Opened
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor
from torch.func import jacrev

from lyap_optuna import LyapunovWarning, testing, visualization
from lyap_optuna.dynamics import (
    DiagonalDynamics,
    RecurrentDynamics,
    check_dynamics,
)
from lyap_optuna.dynamics._registry import _ARCHITECTURES, architecture_of
from lyap_optuna.dynamics.autodiff import AutodiffTrajectory
from lyap_optuna.dynamics.diagonal import DiagonalTrajectory
from lyap_optuna.dynamics.linear_tape import UntraceableError, record
from lyap_optuna.dynamics.torch_kernels import CELLS
from lyap_optuna.prediction import evidence
from lyap_optuna.prediction.evidence import EVIDENCE, Evidence, Feature, TrialView
from lyap_optuna.testing._expect import expect
from lyap_optuna.testing._figures import it_fits_light_and_dark
from lyap_optuna.visualization._figures import FIGURES
from lyap_optuna.visualization._spec import FigureSpec

N = 3


def test_a_tape_is_the_derivative_of_a_step():
    layer = torch.nn.GRUCell(2, 4).double()
    weight, scale = torch.randn(2, 4, 4).double(), torch.rand(4).double()
    x = make_inputs(2, 5, 4)

    def step(s: Any, x: Tensor) -> Any:
        a, b = (s @ weight[0].T + layer.bias_hh[:4]).chunk(2, 1)
        b = 1.0 - torch.cat([torch.sigmoid(b), -a], dim=1) * scale + s / 2 - s**2
        c = torch.nn.functional.linear(x * b, weight[1], scale)
        return torch.tanh(c) / (2 + torch.nn.functional.softplus(s)) - s.sigmoid() + x + 3 / (5 + s)

    before = make_inputs(2, 5, 4, seed=3)
    flat = x.flatten(0, 1)
    with torch.no_grad():
        tape, after = record(lambda s: step(s, flat), before)
    assert torch.allclose(after, step(before.flatten(0, 1), flat).view_as(after), atol=1e-14)
    for b, t in ((0, 1), (1, 4)):
        truth = jacrev(lambda s, b=b, t=t: step(s[None], x[b, t][None])[0])(before[b, t])
        found = tape.matrices(torch.tensor([b]), torch.tensor([t]), before, 4)[0]
        assert torch.allclose(found, truth, rtol=0, atol=1e-13)
        vectors = make_inputs(2, 3, 4, seed=4)
        image = tape.push(t, vectors)[b]
        assert torch.allclose(image, vectors[b] @ truth.mT, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "step",
    [
        lambda s: torch.softmax(s, dim=1),
        lambda s: s.sum(1, keepdim=True) * s,
        lambda s: s @ torch.outer(torch.ones(4), torch.ones(4)).to(s.dtype) @ (s + s.shape[0]),
        lambda s: torch.zeros(10, 4),
    ],
)
def test_a_tape_has_no_word_for_everything(step):
    with pytest.raises((UntraceableError, AttributeError)):
        record(step, make_inputs(2, 5, 4))


def inputs(features: int = N) -> Tensor:
    return make_inputs(2, 9, features)


WEIGHT = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.3]], dtype=torch.float64)


def step(s: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(x + WEIGHT.to(s) @ s)


# Every one of the registries ---------------------------------------------------------------


def built(module: Any) -> Any:
    if isinstance(module, torch.nn.RNNBase):
        return layer_dynamics(module, "full")
    architecture = architecture_of(module.double())
    assert architecture is not None
    assert architecture.build is not None
    return architecture.build(module, "full")


LAYERS: dict[str, Callable[[], Any]] = {
    f"{kind}, {layers}": lambda kind=kind, layers=layers: make_layer(kind, layers=layers)
    for kind in CELLS
    for layers in (1, 2)
} | {
    module.__name__: lambda module=module: module(N, 4)
    for module, known in _ARCHITECTURES.items()
    if known.build is not None
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("check", testing.DYNAMICS_CHECKS)
def test_layers(check, layer):
    check(built(LAYERS[layer]()), inputs())


@pytest.mark.parametrize("module", [m for m, known in _ARCHITECTURES.items() if known.build])
def test_dynamics_are_of_what_the_layer_returns(module):
    layer, known = module(N, 4).double(), architecture_of(module(N, 4))
    assert known.outputs is not None, "Architecture(outputs=...) says what the layer returns."
    x, state = known.read_calls(layer, [((inputs(),), {})])
    rebuilt = known.outputs(layer, x, known.build(layer, "full").linearise(x, state))
    returned = layer(inputs())
    assert torch.allclose(rebuilt, returned[0] if isinstance(returned, tuple) else returned), (
        f"{module.__name__}.forward returns something else than its dynamics says."
    )


@pytest.mark.parametrize("name", EVIDENCE)
@pytest.mark.parametrize("check", testing.EVIDENCE_CHECKS)
def test_evidence(check, name):
    assert EVIDENCE[name].name == name
    check(EVIDENCE[name])


@pytest.mark.parametrize("spec", FIGURES, ids=lambda spec: spec.id)
@pytest.mark.parametrize("check", testing.FIGURE_CHECKS)
def test_figures(check, spec):
    check(spec)


def test_every_kind_of_evidence_is_registered_under_a_name_of_its_own():
    found = [
        kind
        for module in pkgutil.iter_modules(evidence.__path__, f"{evidence.__name__}.")
        for kind in vars(import_module(module.name)).values()
        if isinstance(kind, type) and issubclass(kind, Evidence) and kind.__module__ == module.name
    ]
    registered = [type(kind) for kind in EVIDENCE.values()]
    lost = [kind.__name__ for kind in set(found) - {Evidence, *registered}]
    assert not lost, f"{lost} are not registered, or another kind has the name of one of them."


def test_every_module_with_a_figure_is_registered_once():
    found = {
        module.name
        for module in pkgutil.iter_modules(visualization.__path__, f"{visualization.__name__}.")
        if isinstance(getattr(import_module(module.name), "FIGURE", None), FigureSpec)
    }
    assert len(found) == len(FIGURES) == len({spec.id for spec in FIGURES})


@pytest.fixture(scope="module", params=STORAGES)
def opened(request: pytest.FixtureRequest) -> Iterator[Opened]:
    with STORAGES[request.param]() as opened:
        yield opened


@pytest.mark.filterwarnings("ignore:Heartbeat of storage", "ignore::FutureWarning")
@pytest.mark.parametrize("check", testing.STORAGE_CHECKS)
def test_storages(check, opened):
    check(opened)


# What is right passes ----------------------------------------------------------------------


def test_all_that_is_checked_of_a_layer_is_told():
    errors = check_dynamics(built(make_layer("lstm")), inputs())
    assert {"states", "tangent", "jacobians", "log_abs_det", "select"} <= set(errors)
    assert max(errors.values()) < 1e-6


@pytest.mark.parametrize("is_complex", [False, True])
def test_diagonal_dynamics_pass(is_complex):
    a = torch.tensor([0.5, 0.9, 1.1], dtype=torch.float64)
    a = a * torch.exp(torch.tensor(0.3j)) if is_complex else a
    dynamics = DiagonalDynamics(lambda x: (a, x.to(a.dtype)), 3, is_complex)
    errors = check_dynamics(dynamics, inputs(), torch.ones(3, dtype=a.dtype))
    assert {"closed_log_abs_det", "closed_log_growth"} <= set(errors)


def test_one_decay_for_several_components_passes():
    decay = torch.tensor([0.5, 0.9], dtype=torch.float64)
    dynamics = DiagonalDynamics(lambda x: (decay, x.repeat(1, 1, 2)), 6)
    check_dynamics(dynamics, inputs())
    trajectory = dynamics.linearise(inputs())
    assert torch.allclose(
        trajectory.closed_log_growth[0, 0], decay.repeat_interleave(3).log(), atol=1e-12
    )


def test_a_large_state_is_checked_in_some_directions():
    weight = torch.randn(50, 50, dtype=torch.float64) / 7
    check_dynamics(RecurrentDynamics(lambda s, x: torch.tanh(weight @ s + x), 50), inputs(50))


def test_float32_passes():
    check_dynamics(RecurrentDynamics(step, N), inputs().float())


# What is wrong is named --------------------------------------------------------------------


class Wrong(RecurrentDynamics):
    """A right step, and a trajectory that is wrong in one respect."""

    def __init__(self, **answers: Any) -> None:
        super().__init__(step, N)
        self.answers = answers

    def linearise(self, inputs: Tensor, initial_state: Any = None) -> Any:
        right = super().linearise(inputs, initial_state)
        bases = (AutodiffTrajectory,)
        right.__class__ = type("WrongTrajectory", bases, self.answers)
        return right


def half_off(name: str) -> Any:
    def answer(self: Any, *args: Any) -> Tensor:
        return getattr(AutodiffTrajectory, name)(self, *args) * 1.01

    return answer


@pytest.mark.parametrize("name", ["tangent", "jacobians"])
def test_a_wrong_linearisation(name):
    with pytest.raises(ValueError, match=rf"^{name} disagrees by .* at step 1.*differences"):
        check_dynamics(Wrong(**{name: half_off(name)}), inputs())


def test_a_wrong_determinant():
    with pytest.raises(ValueError, match=r"^log_abs_det disagrees by .*determinants"):
        check_dynamics(Wrong(log_abs_det=half_off("log_abs_det")), inputs())


def test_a_wrong_closed_determinant():
    closed = property(lambda self: self.states.new_zeros(self.states.shape[:2]))
    with pytest.raises(ValueError, match=r"^closed_log_abs_det disagrees"):
        check_dynamics(Wrong(closed_log_abs_det=closed), inputs())


def test_a_closed_growth_of_what_is_not_diagonal():
    # Right determinants at every step, but the Jacobians do not share an eigenbasis.
    def growth(self: Any) -> Tensor:
        total = torch.stack(
            [torch.linalg.slogdet(self.jacobian(t))[1] for t in range(self.steps)], dim=1
        )
        return (total / N).unsqueeze(2).expand(-1, -1, N)

    with pytest.raises(ValueError, match=r"^closed_log_growth disagrees .*product"):
        check_dynamics(Wrong(closed_log_growth=property(growth)), inputs())


def test_a_selection_of_the_wrong_inputs():
    def select(self: Any, chosen: slice) -> Any:
        return AutodiffTrajectory.select(self, slice(0, 1))

    with pytest.raises(ValueError, match=r"^select disagrees"):
        check_dynamics(Wrong(select=select), inputs())


def test_an_incomplete_state():
    class Momentum(RecurrentDynamics):
        def linearise(self, inputs: Tensor, initial_state: Any = None) -> Any:
            # its velocity is part of what the next step depends on, but not of the state
            both = RecurrentDynamics(
                lambda s, x: torch.cat([0.9 * s[:N] + s[N:], 0.5 * s[N:] + x]), 2 * N
            )
            initial = torch.zeros(len(inputs), 2 * N)
            if initial_state is not None:
                initial[:, :N] = initial_state
            path = both.linearise(inputs, initial)
            a = torch.full((*path.states.shape[:2], N), 0.9, dtype=inputs.dtype)
            return DiagonalTrajectory(a, path.states[..., :N].contiguous())

    with pytest.raises(ValueError, match=r"^states disagree.*lacks something"):
        check_dynamics(Momentum(step, N), inputs())


def test_the_papers_hidden_state_is_incomplete():
    dynamics = layer_dynamics(make_layer("lstm_full"), "hidden")
    with pytest.raises(ValueError, match="incomplete"):
        check_dynamics(dynamics, inputs())


def test_states_in_a_layout_of_their_own():
    class Swapped(RecurrentDynamics):
        def linearise(self, inputs: Tensor, initial_state: Any = None) -> Any:
            if initial_state is not None and not isinstance(initial_state, tuple):
                raise ValueError("initial_state must be a tuple")
            return super().linearise(inputs, initial_state and initial_state[0])

    with pytest.raises(ValueError, match="pass as_initial_state"):
        check_dynamics(Swapped(step, N), inputs())
    check_dynamics(Swapped(step, N), inputs(), as_initial_state=lambda states: (states,))


@pytest.mark.parametrize("shape", [(2, 9), (1, 9, N), (2, 3, N)])
def test_inputs_that_are_too_few(shape):
    with pytest.raises(ValueError, match="inputs"):
        check_dynamics(RecurrentDynamics(step, N), torch.randn(shape))


class LossWith(Evidence):
    """The last loss, known too late, unoriented, remembered, or under other types."""

    def __init__(self, feature: Callable[[TrialView, int], Any], name: Any = "wrong") -> None:
        self.name, self.feature, self.asked = name, feature, 0

    def features(self, trial: TrialView, step: int | None) -> dict[str, Feature]:
        self.asked += 1
        n = trial.reports(step)
        return {"x": self.feature(trial, n)} if len(trial.losses) else {}


def last(trial: TrialView, n: int) -> float:
    return float(trial.losses[n - 1]) if n else math.nan


def unless(wrong: bool) -> float:
    if wrong:
        raise RuntimeError
    return 0.0


WRONG_EVIDENCE = {
    "it_has_a_name": [LossWith(last, "two words")],
    "its_features_are_numbers_or_words": [
        LossWith(lambda trial, n: n),
        LossWith(lambda trial, n: unless(trial.diverged)),
        LossWith(lambda trial, n: float(trial.losses[:n][2])),
    ],
    "it_knows_only_what_was_known_at_the_step": [
        LossWith(lambda trial, n: float(trial.losses[-1]))
    ],
    "it_does_not_know_how_a_trial_ended": [
        LossWith(lambda trial, n: math.nan if trial.value is None else trial.value),
        LossWith(lambda trial, n: trial.state.name),
        LossWith(lambda trial, n: str(trial.completed)),
        LossWith(lambda trial, n: str(trial.feasible)),
        LossWith(lambda trial, n: str(trial.cut_at)),
        LossWith(lambda trial, n: unless(trial.value is not None)),
        LossWith(lambda trial, n: unless(trial.state == TrialState.PRUNED)),
        LossWith(lambda trial, n: unless(trial.state == TrialState.FAIL)),
        LossWith(lambda trial, n: unless(trial.value == math.inf)),
    ],
    "a_score_that_is_maximised_is_a_loss_that_is_minimised": [
        LossWith(lambda trial, n: float(id(trial)))
    ],
    "it_remembers_nothing": [(forgets := LossWith(lambda trial, n: float(forgets.asked)))],
}


def each(checks: Iterable[Any], wrong: dict[str, list[Any]]) -> list[Any]:
    """Return each check with each of what it has to refuse."""
    return [
        pytest.param(check, one, id=f"{check.__name__}-{i}")
        for check in checks
        for i, one in enumerate(wrong[check.__name__])
    ]


@pytest.mark.parametrize(("check", "wrong"), each(testing.EVIDENCE_CHECKS, WRONG_EVIDENCE))
def test_wrong_evidence(check, wrong):
    with pytest.raises(ValueError, match=r"found|must be|raised \w+Error .* reported \["):
        check(wrong)


def drawn_with(text: str, **layout: Any) -> Callable[..., go.Figure]:
    def draw(info: Any, study: Any, most: int | None) -> go.Figure:
        names = [text.format(name=name) for name in study.trials[0].params]
        return go.Figure(go.Bar(x=names or ["x"], y=[1.0]), {"title": {"text": "x"}, **layout})

    return draw


def drawn_unless(wrong: Callable[[Study, int | None], bool]) -> Callable[..., go.Figure]:
    def draw(info: Any, study: Any, most: int | None) -> go.Figure:
        unless(wrong(study, most))
        return drawn_with("x")(info, study, most)

    return draw


def draw_all(trials: Any, study: Any, most: int | None) -> go.Figure:
    return go.Figure(go.Scatter(y=[t.value for t in trials]), {"title": {"text": "x"}})


GOOD = FigureSpec("x", "x", "Plain.", lambda study: study.trials or None, drawn_with("x"))
WRONG_FIGURES = {
    "it_draws_the_numbers_that_it_asked_for": [
        replace(GOOD, draw=lambda *_: go.Figure()),
        replace(GOOD, draw=drawn_unless(lambda study, most: study.direction.name == "MAXIMIZE")),
    ],
    "few_trials_suffice_or_there_is_no_figure": [
        replace(GOOD, draw=drawn_unless(lambda study, most: len(study.trials) == 1)),
        replace(GOOD, draw=drawn_unless(lambda study, most: len(study.trials) == 5)),
        replace(GOOD, draw=drawn_unless(lambda study, most: most == 1)),
        replace(GOOD, info=lambda study: unless(len(study.trials) == 2) or study.trials),
    ],
    "at_most_so_many_trials_are_drawn": [replace(GOOD, draw=draw_all)],
    "without_numbers_there_is_no_figure": [replace(GOOD, info=lambda study: study)],
    "its_caption_is_plain_text": [replace(GOOD, caption="Of *all* trials.")],
    "its_call_draws_it": [replace(GOOD, call="plot_nothing(study)")],
    "it_fits_light_and_dark": [replace(GOOD, draw=drawn_with("x", paper_bgcolor="white"))],
    "names_are_taken_literally": [replace(GOOD, draw=drawn_with("{name}"))],
    "a_thousand_trials_stay_small": [replace(GOOD, draw=drawn_with("x" * 2_000_000))],
    "the_study_is_left_as_it_is": [
        replace(GOOD, info=lambda study: study.set_user_attr("seen", True) or study.trials)
    ],
}


@pytest.mark.parametrize(("check", "wrong"), each(testing.FIGURE_CHECKS, WRONG_FIGURES))
def test_a_wrong_figure(check, wrong):
    check(GOOD)
    with pytest.raises(ValueError, match=r"^x: "):
        check(wrong)


def test_text_of_a_trace_is_not_coloured():
    bar = go.Bar(x=["x"], y=[1.0], textfont={"color": "black"})
    figure = go.Figure(bar, {"title": {"text": "x"}})
    with pytest.raises(ValueError, match=r"^x: data\.0\.textfont is set"):
        it_fits_light_and_dark(replace(GOOD, draw=lambda *_: figure))


def test_a_failure_shows_where_two_things_differ():
    long = list(range(1000))
    with pytest.raises(ValueError, match=r"^x: found \.\.\..* 998, 999\], where .* 998, 0\] is"):
        expect(long, [*long[:-1], 0], "x")


class Altering(InMemoryStorage):
    """A storage that keeps something else of an attribute than it was given."""

    def __init__(self, key: str, alter: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.key, self.alter = f"lyapunov:{key}", alter

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        if key == self.key:
            before = self.get_trial(trial_id).user_attrs.get(key)
            value = self.alter(before, copy.deepcopy(value))
        super().set_trial_user_attr(trial_id, key, value)


class LosingReports(InMemoryStorage):
    def set_trial_intermediate_value(self, trial_id: int, step: int, value: float) -> None:
        if step != 0:
            super().set_trial_intermediate_value(trial_id, step, value)


class Telling(InMemoryStorage):
    def set_trial_intermediate_value(self, trial_id: int, step: int, value: float) -> None:
        warnings.warn("written to mysql://user:s3cret@host", LyapunovWarning, stacklevel=2)
        super().set_trial_intermediate_value(trial_id, step, value)


class LosingTemplates(InMemoryStorage):
    def create_new_trial(self, study_id: int, template_trial: Any = None) -> int:
        if template_trial is not None:
            template_trial = copy.deepcopy(template_trial)
            template_trial.user_attrs = {}
        return super().create_new_trial(study_id, template_trial)


class Forgetting(InMemoryStorage):
    """A storage that writes nothing of one kind."""

    def __init__(self, setter: str) -> None:
        super().__init__()
        setattr(self, setter, lambda *_: None)


class Minimising(InMemoryStorage):
    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return [StudyDirection.MINIMIZE]


class Misreading(InMemoryStorage):
    """A storage that reads something else of a trial than was written."""

    def __init__(self, alter: Callable[[FrozenTrial], Any]) -> None:
        super().__init__()
        self.alter = alter

    def get_all_trials(self, *args: Any, **kwargs: Any) -> list[FrozenTrial]:
        trials = copy.deepcopy(super().get_all_trials(*args, **kwargs))
        for trial in trials:
            self.alter(trial)
        return trials


def misread(name: str, alter: Callable[[Any], Any]) -> Callable[[], BaseStorage]:
    """Return what opens a storage that reads an attribute of trials as something else."""
    return lambda: Misreading(lambda trial: setattr(trial, name, alter(getattr(trial, name))))


def chosen(holds: Callable[[Any], bool]) -> Callable[[Any], Any]:
    return lambda of: {key: value for key, value in of.items() if holds(value)}


WRONG_TRIALS: list[Callable[[], BaseStorage]] = [
    Minimising,
    lambda: Forgetting("set_study_user_attr"),
    lambda: Forgetting("set_study_system_attr"),
    lambda: Forgetting("set_trial_param"),
    lambda: Forgetting("set_trial_system_attr"),
    misread("params", chosen(lambda value: not isinstance(value, str))),
    misread("params", lambda params: {k: float(v) if v == 7 else v for k, v in params.items()}),
    misread("distributions", lambda _: {}),
    misread("intermediate_values", chosen(math.isfinite)),
    misread("intermediate_values", chosen(lambda value: not math.isnan(value))),
    misread("intermediate_values", lambda of: {s: 0.0 if v != v else v for s, v in of.items()}),
    misread("intermediate_values", lambda of: {s: abs(v) for s, v in of.items()}),
    misread("values", lambda values: values and [round(values[0], 6)]),
    misread("values", lambda values: values and [max(values[0], -1e308)]),
    misread("user_attrs", lambda of: {k: v for k, v in of.items() if k.startswith("lyapunov")}),
    misread("system_attrs", lambda _: {}),
    misread("datetime_start", lambda _: None),
    lambda: Misreading(
        lambda trial: trial.number % 2 and setattr(trial, "datetime_complete", None)
    ),
    misread("datetime_start", lambda time: time and time.replace(microsecond=0)),
    misread("datetime_complete", lambda time: time and time.replace(microsecond=0)),
    lambda: Misreading(
        lambda trial: trial.state == TrialState.PRUNED and setattr(trial, "values", None)
    ),
]


def without_quantiles(_: Any, series: Any) -> Any:
    return {s: {k: v for k, v in r.items() if k != "quantiles"} for s, r in series.items()}


WRONG_STORAGES: dict[str, list[Callable[[], BaseStorage]]] = {
    "a_trial_comes_back_whole": WRONG_TRIALS,
    "readouts_come_back": [
        lambda: Altering(
            "readouts", lambda _, new: new | {"0": new["0"] | {"max": round(new["0"]["max"], 2)}}
        )
    ],
    "a_second_process_extends_the_series": [
        lambda: Altering("readouts", lambda before, new: before or new)
    ],
    "the_baseline_is_stored_once": [
        lambda: Altering(
            "readouts", lambda before, new: new if before is None else new | {"-1": new["0"]}
        )
    ],
    "a_long_series_stays_small": [
        lambda: Altering("readouts", lambda _, new: dict(list(new.items())[1:]))
    ],
    "nan_is_never_stored": [lambda: Altering("failures", lambda _, new: math.nan)],
    "a_retry_knows_whose_readouts_it_has": [lambda: Altering("trial", lambda _, new: 0)],
    "spectra_are_whole_in_a_database_and_quantiles_elsewhere": [
        lambda: Altering("readouts", without_quantiles)
    ],
    "decisions_are_at_most_32": [
        lambda: Altering("decision", lambda _, new: new | {"earlier": []})
    ],
    "decisions_do_not_depend_on_the_storage": [LosingReports],
    "a_trial_that_rests_stays_so": [lambda: Altering("resting", lambda _, new: False)],
    "freeze_thaw_searches_as_in_memory": [
        lambda: Altering("stretches", lambda _, new: new | {"stretches": []})
    ],
    "a_copy_has_all_of_it": [LosingTemplates],
    "passwords_are_in_no_warning": [Telling],
}


@pytest.mark.filterwarnings("ignore::lyap_optuna.LyapunovWarning")
@pytest.mark.parametrize(("check", "wrong"), each(testing.STORAGE_CHECKS, WRONG_STORAGES))
def test_a_wrong_storage(check, wrong):
    storage = wrong()
    with pytest.raises(ValueError):
        check(lambda: storage)
