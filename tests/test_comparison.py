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
    same = f"a and b found networks of the same value, {sign * 0.25:.3f}."
    assert compare_searches(studies) == [same]
    studies[better] = searched(direction, (0.1, sign * 0.125), (0.2, sign * 9.0), (0.3, None))
    (told,) = compare_searches(studies)
    best, other = f"{sign * 0.125:.3f}", f"{sign * 0.25:.3f}"
    assert told.startswith(f"{better} found the better network: value {best} against {other}.")


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
        f"{sign * 0.25:.3f} (trial 1), better than the {sign * 0.5:.3f} that a found."
    ]
