"""Searches of one space, side by side, in words: no more than was measured."""

import itertools
from collections.abc import Mapping

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna._numbers import apart
from lyap_optuna.prediction.evidence.base import is_feasible


def compare_searches(studies: Mapping[str, Study], *, target_name: str = "value") -> list[str]:
    """Say which search found the better network, and what became of those that one pruned.

    Args:
        studies: By name, two studies or more of one space and objective. Trials of the same number
            and parameters are taken for the same, as they are in searches with the same seed.
        target_name: What the objective returns, as in :mod:`optuna.visualization`.

    Returns:
        Sentences. The best are the best trials that meet their constraints.

    Raises:
        ValueError: There are fewer than two studies, one has several objectives, or their
            directions differ.

    Example:
        >>> import optuna
        >>> from lyap_optuna.report import compare_searches
        >>> studies = {"a": optuna.create_study(), "b": optuna.create_study()}
        >>> for study, value in zip(studies.values(), (0.5, 0.25)):
        ...     study.add_trial(optuna.create_trial(value=value))
        >>> print(compare_searches(studies)[0].partition(".")[0])
        b found the better network: value 0
    """
    if len(studies) < 2:
        raise ValueError(f"Pass two studies or more to compare; {len(studies)} given.")
    directions = {name: [d.name for d in study.directions] for name, study in studies.items()}
    if len({str(d) for d in directions.values()}) > 1 or len(next(iter(directions.values()))) > 1:
        raise ValueError(f"Searches are compared by one objective of one direction: {directions}.")
    ended = {name: _best_first(study) for name, study in studies.items()}
    if not all(ended.values()):
        return ["Too few trials ran to the end to compare the searches."]
    sign = _sign(next(iter(studies.values())))
    first, second = sorted(ended, key=lambda name: sign * _value(ended[name][0]))[:2]
    best, next_best = _value(ended[first][0]), _value(ended[second][0])
    if best == next_best:
        same = f"{best:.3g}"
        told = [f"{first} and {second} found networks of the same {target_name}, {same}."]
    else:
        shown, next_shown = apart(best, next_best)
        told = [
            f"{first} found the better network: {target_name} {shown} against {next_shown}. One "
            "seed does not settle which search is better; `lyap-optuna replay` compares them in "
            "many orders."
        ]
    for name, other in itertools.permutations(studies, 2):
        pruned = studies[name].get_trials(deepcopy=False, states=(TrialState.PRUNED,))
        same_trials = {_identity(trial) for trial in pruned}
        known = [trial for trial in ended[other] if _identity(trial) in same_trials]
        if not known:
            continue
        lost, kept = known[0], ended[name][0]
        better = "better" if sign * _value(lost) < sign * _value(kept) else "no better"
        ran = "it" if len(known) == 1 else "they"
        reached, found = apart(_value(lost), _value(kept))
        told.append(
            f"Of the {len(pruned)} trials that {name} pruned, {other} ran {len(known)} to the end: "
            f"the best of what {ran} reached is {reached} (trial {lost.number}), {better} than the "
            f"{found} that {name} found."
        )
    return told


def _best_first(study: Study) -> list[FrozenTrial]:
    """Return the COMPLETE trials that meet their constraints, best first."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    feasible = [trial for trial in complete if is_feasible(trial) is not False]
    return sorted(feasible, key=lambda trial: _sign(study) * _value(trial))


def _sign(study: Study) -> int:
    return 1 if study.direction == StudyDirection.MINIMIZE else -1


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


def _identity(trial: FrozenTrial) -> tuple[int, str]:
    return trial.number, repr(sorted(trial.params.items()))
