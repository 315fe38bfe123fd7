"""How a campaign stands: counts, epochs spent and saved, and the best that is predicted."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna._logging import get_logger
from lyap_optuna.campaign._config import CampaignConfig
from lyap_optuna.campaign._retry import INTERRUPTED
from lyap_optuna.campaign._worker import strategy_of
from lyap_optuna.prediction import TrialPrediction, rank_trials
from lyap_optuna.records import number_in
from lyap_optuna.records._keys import CONTINUES, RESTING

_logger = get_logger(__name__)


@dataclass(frozen=True)
class CampaignStatus:
    """How a campaign stands.

    Args:
        total: Trials that it will have, COMPLETE and PRUNED.
        tried: Those that are done with. With ``n_steps`` a campaign may be done before the total.
        missing: Those still to end; 0 when it is done.
        running: Trials that run.
        resting: Trials that a worker has paused and may go on with (strategy ``freeze_thaw``).
        waiting: Trials that are queued.
        complete: COMPLETE trials.
        pruned: PRUNED trials.
        failed: FAIL trials, those interrupted included.
        interrupted: FAIL trials that were stopped with the campaign.
        epochs_spent: Reports of all trials, also of those that failed.
        epochs_saved: What training every COMPLETE and PRUNED configuration to the end would have
            taken, less what all ended trials took; None before a trial is COMPLETE.
        best_value: Best value of a COMPLETE trial.
        predicted_best: The trial that ranks first.
    """

    total: int
    tried: int
    missing: int
    running: int
    resting: int
    waiting: int
    complete: int
    pruned: int
    failed: int
    interrupted: int
    epochs_spent: int
    epochs_saved: int | None
    best_value: float | None
    predicted_best: TrialPrediction | None


def campaign_status(config: CampaignConfig, study: Study) -> CampaignStatus:
    """Return how a campaign stands.

    Args:
        config: What the campaign file says.
        study: Its study.
    """
    trials = study.get_trials(deepcopy=False)
    strategy = strategy_of(config)
    rests = [t.user_attrs.get(RESTING) is True and t.state == TrialState.RUNNING for t in trials]
    states = [trial.state for trial in trials]
    values = [t.value for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    best = min if config.direction == "minimize" else max
    return CampaignStatus(
        total=config.trials,
        tried=strategy.tried(trials),
        missing=strategy.missing(trials),
        running=states.count(TrialState.RUNNING) - sum(rests),
        resting=sum(rests),
        waiting=states.count(TrialState.WAITING),
        complete=states.count(TrialState.COMPLETE),
        pruned=states.count(TrialState.PRUNED),
        failed=states.count(TrialState.FAIL),
        interrupted=sum(t.user_attrs.get(INTERRUPTED) is True for t in trials),
        epochs_spent=sum(len(t.intermediate_values) for t in trials),
        epochs_saved=epochs_saved(trials),
        best_value=best(values) if values else None,
        predicted_best=_first(study),
    )


def epochs_saved(trials: Sequence[FrozenTrial]) -> int | None:
    """Return the epochs saved by the trials that have ended.

    Every epoch that was trained counts as spent: of failed and interrupted trials, and of continued
    ones, which report the epochs that they train themselves. A whole training is taken to be as
    long as the median COMPLETE trial that continues no other.

    Args:
        trials: All trials of a study.

    Returns:
        Epochs, below 0 where failed trials cost more than was saved; None before one is COMPLETE.

    Example:
        >>> import optuna
        >>> study = optuna.create_study()
        >>> for state, n in (("COMPLETE", 5), ("PRUNED", 2)):
        ...     study.add_trial(
        ...         optuna.create_trial(
        ...             state=optuna.trial.TrialState[state],
        ...             value=1.0,
        ...             intermediate_values={step: 1.0 for step in range(n)},
        ...         )
        ...     )
        >>> epochs_saved(study.trials)
        3
    """
    ended = [t for t in trials if t.state.is_finished()]
    tried = [t for t in ended if t.state != TrialState.FAIL and number_in(t, CONTINUES) is None]
    lengths = [len(t.intermediate_values) for t in tried if t.state == TrialState.COMPLETE]
    if not lengths:
        return None
    whole = statistics.median_low(lengths)
    return whole * len(tried) - sum(len(t.intermediate_values) for t in ended)


def _first(study: Study) -> TrialPrediction | None:
    try:
        ranking = rank_trials(study)
    except Exception as error:  # a status must not fail over one odd trial
        _logger.warning(f"The trials could not be ranked ({type(error).__name__}).")
        return None
    return ranking[0] if ranking else None
