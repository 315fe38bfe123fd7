"""Two searches side by side, in words."""

import optuna
import pytest
from optuna.study import Study
from optuna.trial import TrialState

from lyap_optuna.report import compare_searches

SPACE: dict[str, optuna.distributions.BaseDistribution] = {
    "x": optuna.distributions.FloatDistribution(0.0, 1.0)
}


def searched(direction: str, *trials: tuple[float, float | None]) -> Study:
    """A study of trials: x, and the value, or None where it was pruned."""
    study = optuna.create_study(direction=direction)
    for x, value in trials:
        trial = optuna.create_trial(
            state=TrialState.PRUNED if value is None else TrialState.COMPLETE,
            value=value,
            params={"x": x},
            distributions=SPACE,
            intermediate_values={1: -1e9},  # of a pruned trial this is its value, and no result
        )
        study.add_trial(trial)
    return study


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("better", ["a", "b"])
def test_the_better_search_is_named_whichever_it_is(direction: str, better: str) -> None:
    sign = 1 if direction == "minimize" else -1
    values = {"a": sign * 0.25, "b": sign * 0.25}
    studies = {name: searched(direction, (0.1, value)) for name, value in values.items()}
    same = f"a and b found networks of the same value, {sign * 0.25:g}."
    assert compare_searches(studies) == [same]
    studies[better] = searched(direction, (0.1, sign * 0.125), (0.2, sign * 9.0), (0.3, None))
    (told,) = compare_searches(studies)
    best, other = f"{sign * 0.125:g}", f"{sign * 0.25:g}"
    assert told.startswith(f"{better} found the better network: value {best} against {other}.")


def test_values_that_differ_look_different() -> None:
    near = {"a": searched("minimize", (0.1, 1.0)), "b": searched("minimize", (0.2, 0.9999))}
    assert "b found the better network: value 0.9999 against 1." in compare_searches(near)[0]
    tiny = {"a": searched("maximize", (0.1, 1e-9)), "b": searched("maximize", (0.2, 1e-5))}
    assert "b found the better network: value 1e-05 against 1e-09." in compare_searches(tiny)[0]


def test_a_trial_that_breaks_its_constraints_is_no_find() -> None:
    studies = {"a": optuna.create_study(), "b": searched("minimize", (0.2, 0.5))}
    for value, broken in ((0.1, 1.0), (0.9, -1.0)):
        studies["a"].add_trial(optuna.create_trial(value=value, constraints={"c": broken}))
    assert studies["a"].best_value == 0.9
    assert "b found the better network: value 0.5 against 0.9." in compare_searches(studies)[0]


@pytest.mark.parametrize("directions", [["minimize", "maximize"], ["maximize"]])
def test_what_cannot_be_compared_is_named(directions: list[str]) -> None:
    a, b = searched("minimize", (0.1, 0.5)), optuna.create_study(directions=directions)
    with pytest.raises(ValueError, match="MAXIMIZE"):
        compare_searches({"a": a, "b": b})
    with pytest.raises(ValueError, match="1 given"):
        compare_searches({"a": a})


def test_without_a_trial_that_ended_nothing_is_compared() -> None:
    studies = {"a": searched("minimize", (0.1, 1.0)), "b": searched("minimize", (0.1, None))}
    assert compare_searches(studies) == ["Too few trials ran to the end to compare the searches."]


@pytest.mark.parametrize(("sign", "direction"), [(1, "minimize"), (-1, "maximize")])
def test_what_became_of_a_trial_that_the_other_search_ran_to_the_end_is_told(
    sign: int, direction: str
) -> None:
    in_a = [(0.1, sign * 0.5), (0.2, None), (0.3, None), (0.4, None)]
    in_b = [
        (0.1, sign * 0.5),
        (0.2, sign * 0.25),
        (0.3, sign * 0.75),
        (0.9, sign * 0.3),  # the same number, another configuration
    ]
    studies = {"a": searched(direction, *in_a), "b": searched(direction, *in_b)}
    assert compare_searches(studies)[1:] == [
        f"Of the 3 trials that a pruned, b ran 2 to the end: the best of what they reached is "
        f"{sign * 0.25:g} (trial 1), better than the {sign * 0.5:g} that a found."
    ]
