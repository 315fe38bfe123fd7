"""What is written into a study for optuna-dashboard, and that nothing is written twice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial

from lyap_optuna._extras import how_to_install
from lyap_optuna._logging import get_logger
from lyap_optuna.dashboard._note import BEGIN, note_text, trial_note_text, with_note
from lyap_optuna.prediction import explained
from lyap_optuna.records import _keys, publish_spectra
from lyap_optuna.visualization._figures import Numbers
from lyap_optuna.visualization._publication import published_figures

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

_logger = get_logger(__name__)

SPECTRA_FILE = "lyapunov-spectra.csv"

MOST_NOTES = 200
"""Trials that have a note, those that rank first: about a kilobyte each, which the dashboard reads
with every page."""


def publish(study: Study, *, artifact_store: "ArtifactStore | None" = None) -> list[str]:
    """Put the figures of a study, and notes that say what they show, into optuna-dashboard.

    The figures have fixed ids, so that they replace those of an earlier call. The study's note says
    what the exponents show; that of a trial that has ended, why it ended as it did, as
    :func:`~lyap_optuna.explain` does (of more than 200 trials, the 200 that rank first have one).
    A note stands between two markers, which the dashboard does not show, and leaves all other text
    there alone. What is already there as it should be is not written again.

    Args:
        study: A study of any storage, while it runs or afterwards.
        artifact_store: An artifact store that the dashboard was started with; the spectra of
            finished trials go there as the study's file ``lyapunov-spectra.csv``.

    Returns:
        What was written: ids of figures, ``"note"``, ``"trial-notes"``,
        ``"lyapunov-spectra.csv"``. Empty, with a warning logged, where no trial has readouts.

    Raises:
        ImportError: optuna-dashboard is not installed.

    Example:
        >>> import optuna
        >>> import lyap_optuna as lyap
        >>> study = optuna.create_study()
        >>> for value in (1.0, 2.0, 3.0):
        ...     series = {"0": {"max": 0.0, "mean": -4.0}, "1": {"max": -value, "mean": -4.0}}
        ...     study.add_trial(
        ...         optuna.create_trial(
        ...             value=value,
        ...             intermediate_values={1: value},
        ...             user_attrs={"lyapunov:readouts": series},
        ...         )
        ...     )
        >>> written = lyap.dashboard.publish(study)
        >>> "lyapunov-exponents" in written, "note" in written
        (True, True)
        >>> lyap.dashboard.publish(study)
        []
    """
    return write(study, artifact_store)


def write(
    study: Study, artifact_store: "ArtifactStore | None", *, only_new_notes: bool = False
) -> list[str]:
    """Publish a study; with ``only_new_notes``, leave trials alone that have a note of ours."""
    dashboard = optuna_dashboard()
    if not measured(study.get_trials(deepcopy=False)):
        _logger.warning("No trial has Lyapunov readouts. Record them with `LyapunovProbe`.")
        return []
    numbers = Numbers(study)
    written = []
    stored = study._storage.get_study_system_attrs(study._study_id)
    for name, figure in published_figures(numbers).items():
        if _joined(stored, f"dashboard:plot_data:{name}:") != figure.to_json():
            dashboard.save_plotly_graph_object(study, figure, graph_object_id=name)
            written.append(name)
    if _write_note(study, dashboard.get_note(study), note_text(numbers)):
        written.append("note")
    if len(study.directions) == 1 and _write_trial_notes(study, stored, only_new_notes):
        written.append("trial-notes")
    if artifact_store is not None and publish_spectra(study, artifact_store, SPECTRA_FILE):
        written.append(SPECTRA_FILE)
    return written


def _write_trial_notes(study: Study, stored: Mapping[str, Any], only_new: bool) -> bool:
    """Write the notes of trials that have ended; return whether one was not there as it is now."""
    notes: dict[int, tuple[_NotedTrial, str]] = {}
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        if trial.state.is_finished() and {_keys.READOUTS, _keys.DECISION} & trial.user_attrs.keys():
            before = _joined(stored, f"dashboard:{trial._trial_id}:note_str:")
            if not (only_new and BEGIN in before):
                noted = _NotedTrial(study, study._storage, trial._trial_id)
                notes[trial.number] = noted, before
    # Those without a rank, such as FAIL ones, come behind all others.
    placed = [(story.rank or len(trials), story) for story in explained(study, notes)]
    placed.sort(key=lambda pair: pair[0])
    chosen = [s for place, s in placed if not only_new or place <= MOST_NOTES][:MOST_NOTES]
    return any([_write_note(*notes[s.number], trial_note_text(s)) for s in chosen])


@dataclass(frozen=True)
class _NotedTrial:
    """What the dashboard's ``save_note`` asks of a trial; Optuna's own would draw parameters."""

    study: Study
    storage: BaseStorage
    _trial_id: int


def _write_note(of: "Study | _NotedTrial", before: str, note: str) -> bool:
    after = with_note(before, note)
    if after != before:
        optuna_dashboard().save_note(of, after)
    return after != before


def measured(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that have readouts."""
    return [trial for trial in trials if _keys.READOUTS in trial.user_attrs]


def optuna_dashboard() -> ModuleType:
    """Return the module.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import optuna_dashboard
    except ImportError as error:
        raise ImportError(
            f"optuna-dashboard is not installed: {how_to_install('dashboard')}"
        ) from error
    module: ModuleType = optuna_dashboard
    return module


def _joined(attrs: Mapping[str, Any], prefix: str) -> str:
    # As optuna-dashboard splits a text. Were that to change, it would be written once too often.
    parts: list[str] = []
    while (part := attrs.get(f"{prefix}{len(parts)}")) is not None:
        parts.append(part)
    return "".join(parts)
