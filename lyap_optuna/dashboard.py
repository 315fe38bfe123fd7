"""What optuna-dashboard shows of a study: figures, a note in words, and its spectra as a file.

The dashboard itself shows ``lyapunov:max``, ``lyapunov:mean`` and ``lyapunov:predicted_value`` with
each trial, because they are trial attributes. :func:`publish` adds the rest to the study;
``lyap-optuna dashboard`` does so for every study of a storage, again and again while trials run.
"""

import contextlib
import math
import re
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from socketserver import ThreadingMixIn
from types import ModuleType
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lyap_optuna._logging import get_logger, without_passwords
from lyap_optuna.prediction import audited
from lyap_optuna.records import SpectraError, _keys, publish_spectra, read_stretches
from lyap_optuna.visualization import (
    _exponent_value,
    _prediction_skill,
    _pruning_timeline,
    _spectrum_evolution,
)
from lyap_optuna.visualization._figures import Numbers
from lyap_optuna.visualization._publication import published_figures

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

_logger = get_logger(__name__)

INTERVAL = 60.0
"""Seconds between two looks at a storage, at least."""

# Link definitions, which Markdown reads and does not show.
BEGIN = "[//]: # (lyap-optuna: this note, down to its end, is written anew; yours goes around it)"
END = "[//]: # (lyap-optuna: end of the note)"

SPECTRA_FILE = "lyapunov-spectra.csv"

_PUBLISHER_ATTR = "lyapunov:publisher"


def publish(study: Study, *, artifact_store: "ArtifactStore | None" = None) -> list[str]:
    """Put the figures of a study, and a note that says what they show, into optuna-dashboard.

    The figures have fixed ids, so that they replace those of an earlier call. The note stands
    between two markers, which the dashboard does not show, and leaves all other text of the
    study's note alone. What is already there as it should be is not written again.

    Args:
        study: A study of any storage, while it runs or afterwards.
        artifact_store: An artifact store that the dashboard was started with; the spectra of
            finished trials go there as the study's file ``lyapunov-spectra.csv``.

    Returns:
        What was written: ids of figures, ``"note"``, ``"lyapunov-spectra.csv"``. Empty, with a
        warning logged, where no trial has readouts.

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
    dashboard = _optuna_dashboard()
    if not _measured(study.get_trials(deepcopy=False)):
        _logger.warning("No trial has Lyapunov readouts. Record them with `LyapunovProbe`.")
        return []
    numbers = Numbers(study)
    written = []
    stored = study._storage.get_study_system_attrs(study._study_id)
    for name, figure in published_figures(numbers).items():
        if _stored_figure(stored, name) != figure.to_json():
            dashboard.save_plotly_graph_object(study, figure, graph_object_id=name)
            written.append(name)
    note = note_text(numbers)
    before = dashboard.get_note(study)
    after = with_note(before, note)
    if after != before:
        dashboard.save_note(study, after)
        written.append("note")
    if artifact_store is not None and publish_spectra(study, artifact_store, SPECTRA_FILE):
        written.append(SPECTRA_FILE)
    return written


def _measured(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if _keys.READOUTS in trial.user_attrs]


def _optuna_dashboard() -> ModuleType:
    try:
        import optuna_dashboard
    except ImportError as error:
        raise ImportError(
            "optuna-dashboard is not installed: pip install 'lyap-optuna[dashboard]'"
        ) from error
    module: ModuleType = optuna_dashboard
    return module


def _stored_figure(attrs: Mapping[str, Any], name: str) -> str:
    # As optuna-dashboard splits it. Were that to change, figures would be written once too often.
    parts: list[str] = []
    while (part := attrs.get(f"dashboard:plot_data:{name}:{len(parts)}")) is not None:
        parts.append(part)
    return "".join(parts)


# The note -------------------------------------------------------------------------------------


def with_note(text: str, note: str) -> str:
    """Return ``text`` with ``note`` in place of the one between the markers, or appended."""
    block = f"{BEGIN}\n\n{note}\n\n{END}"
    begin, end = re.escape(BEGIN), re.escape(END)
    # From a begin to an end with no other begin between: what a lost marker leaves is not ours.
    found = re.search(f"{begin}(?:(?!{begin}).)*?{end}", text, re.DOTALL)
    if found:
        return text[: found.start()] + block + text[found.end() :]
    return f"{text}\n\n{block}" if text else block


def note_text(numbers: Numbers) -> str:
    """Return in words, as Markdown, what the exponents of a study show.

    No text from the study is in it, only numbers, this package's own words and such names of layers
    as cannot be markup.
    """
    study = numbers.study
    trials = study.get_trials(deepcopy=False)
    measured = _measured(trials)
    states = Counter(trial.state.name for trial in measured)
    counts = ", ".join(f"{n} {name}" for name, n in sorted(states.items()))
    parts = [
        f"### Lyapunov exponents\n\n{len(measured)} of {len(trials)} trials have readouts: "
        f"{counts}. Exponents are rates per time step, in natural logarithms (nats/step): at 0 a "
        "small change of the state survives, below 0 it fades, above 0 it grows.",
        *_best_words(numbers),
        *_exponent_words(numbers),
        *_skill_words(numbers),
        *_pruning_words(numbers),
        *_resting_words(trials),
    ]
    return "\n\n".join(parts)


def _best_words(numbers: Numbers) -> list[str]:
    best = numbers.of(_spectrum_evolution.FIGURE)
    if best is None:
        return []
    step = max(best.readouts)
    readout = best.readouts[step]
    words = (
        f"**The best trial** is {best.number}, with value {numbers.study.best_value:.4g}. Its "
        f"maximum exponent at step {step} is {readout.max:.3g} nats/step: over 100 time steps "
        f"{_after(readout.max, 100)}."
    )
    if best.baseline is not None and best.baseline != step:
        before = best.readouts[best.baseline].max
        words += f" Before training it was {before:.3g}."
    if readout.layers:
        each = ", ".join(f"{_layer(name)} {r.max:.3g}" for name, r in readout.layers.items())
        words += f" It is the largest of its layers: {each}."
    return [words]


def _layer(name: str) -> str:
    # A name comes from a shared database: only what cannot be markup is shown.
    return f"`{name}`" if re.fullmatch(r"[A-Za-z0-9_.]{1,60}", name) else "(a layer)"


def _after(exponent: float, steps: int) -> str:
    """Say what a perturbation becomes: exp(exponent * steps)."""
    growth = exponent * steps
    if abs(growth) < 0.05:
        return "a small change of the state stays as it is, within 5 %"
    if growth < 0:
        left = math.exp(growth)
        return "a small change of the state fades to " + (
            f"{left:.0%}".replace("%", " %") if left >= 0.01 else "less than 1 %"
        )
    factor = f"{math.exp(growth):.3g}" if growth < 14 else "more than a million"
    return f"a small change of the state grows {factor} times"


def _exponent_words(numbers: Numbers) -> list[str]:
    found = numbers.of(_exponent_value.FIGURE)
    if found is None or found.correlation is None or found.n_complete < 5:
        return []
    at = f"at step {found.step}"
    chance = 2 / math.sqrt(found.n_complete - 1)
    told = f"rank correlation {found.correlation:.2f} over {found.n_complete} COMPLETE trials"
    moved = found.exponent.endswith("displacement")
    what = f"how far the maximum exponent has moved {at}" if moved else f"the maximum exponent {at}"
    if abs(found.correlation) < chance:
        return [
            f"**{what[0].upper()}{what[1:]}** does not go with the final value, beyond chance "
            f"({told}; chance alone reaches {chance:.2f})."
        ]
    lower = found.correlation < 0
    better = lower == (numbers.study.direction == optuna.study.StudyDirection.MINIMIZE)
    more = "The further up it has moved" if moved else "The higher it is"
    return [
        f"**{what[0].upper()}{what[1:]}** goes with the final value. {more}, the "
        f"{'lower' if lower else 'higher'}, and so {'better' if better else 'worse'}, the value "
        f"({told})."
    ]


def _skill_words(numbers: Numbers) -> list[str]:
    skill = numbers.of(_prediction_skill.FIGURE) or []
    first = min((line.steps[0] for line in skill), default=None)
    lines = [line for line in skill if line.steps[0] == first]
    if not lines:
        return []
    lines.sort(key=lambda line: -line.correlations[0])
    ranked = ", ".join(f"{line.evidence} {line.correlations[0]:.2f}" for line in lines)
    n_trials = max(line.n_trials[0] for line in lines)
    used = [line.evidence for line in lines if line.chosen[0]]
    return [
        f"**What predicts the final value** at step {first}: {ranked} (rank correlation of "
        f"predicted and actual value, out of sample, on {n_trials} COMPLETE trials; chance reaches "
        f"{2 / math.sqrt(max(n_trials - 1, 1)):.2f}). "
        + (f"The predictor weighs {used[0]}." if used else "Nothing is predicted there.")
    ]


def _pruning_words(numbers: Numbers) -> list[str]:
    study = numbers.study
    pruning = numbers.of(_pruning_timeline.FIGURE)
    words = []
    if pruning is not None and pruning.n_saved:
        total = pruning.n_saved + pruning.n_spent
        share = f"{pruning.n_saved / total:.0%}".replace("%", " %")
        words.append(f"**Pruning** saved {pruning.n_saved} of {total} steps ({share}).")
    if len(study.directions) == 1 and (audit := audited(study)).condemned:
        words.append(str(audit).replace("%", " %"))
    return [" ".join(words)] if words else []


_MOST_NAMED = 5
"""Resting trials that the note names: those with the largest chance."""


def _resting_words(trials: Sequence[FrozenTrial]) -> list[str]:
    """Say which trials rest, and why."""
    resting = [
        (stretches[-1].after if (stretches := read_stretches(t)) else None, t)
        for t in trials
        if t.state == TrialState.RUNNING and t.user_attrs.get(_keys.RESTING) is True
    ]
    if not resting:
        return []
    resting.sort(key=lambda pair: (pair[0] is None, -(pair[0] or 0.0), pair[1].number))
    named = "; ".join(
        f"trial {trial.number}, {'unknown' if chance is None else format(chance, '.2g')} after "
        f"{len(trial.intermediate_values)} report"
        f"{'' if len(trial.intermediate_values) == 1 else 's'}"
        for chance, trial in resting[:_MOST_NAMED]
    )
    rest = "1 trial rests" if len(resting) == 1 else f"{len(resting)} trials rest"
    return [
        f"**Resting**: {rest}, because freeze_thaw found more promise for the cost in others. "
        f"Chance of ending among the best when it paused, the largest first: {named}."
    ]


# Keeping it fresh -----------------------------------------------------------------------------


class Publisher:
    """Publishes the studies of a storage, one look after the other.

    A study is published when it has readouts and something changed since it was published last.
    In a journal, which only grows, that happens at the first look, and after it only once no trial
    runs and nothing has changed between two looks. The study's file of spectra is written while
    no trial runs, and at the first look.

    Of several publishers, on whatever machine, one at a time writes to a study: it holds a lease
    that ends by itself.

    Args:
        storage: Any storage.
        artifact_store: Passed on to :func:`publish`.
        study_name: Only this study.
        interval: Seconds between two looks.
    """

    def __init__(
        self,
        storage: BaseStorage,
        *,
        artifact_store: "ArtifactStore | None" = None,
        study_name: str | None = None,
        interval: float = INTERVAL,
    ) -> None:
        self._storage = storage
        self._artifact_store = artifact_store
        self._only = study_name
        self._interval = interval
        self._token = uuid.uuid4().hex
        self._studies: dict[str, Study] = {}
        self._seen: dict[str, object] = {}
        self._published: dict[str, object] = {}
        self._warned: set[tuple[str, str]] = set()

    def run(self, stop: threading.Event) -> None:
        """Look again and again until ``stop`` is set, then give up the leases."""
        while True:
            began = time.monotonic()
            self.look(stop)
            # A large study takes a while to draw: spend nine tenths of the time waiting.
            if stop.wait(max(self._interval, 9 * (time.monotonic() - began))):
                break
        for study in self._studies.values():
            with contextlib.suppress(Exception):
                self._release(study)

    def look(self, stop: threading.Event | None = None) -> list[str]:
        """Publish what changed; return the names of the studies that were written to.

        A study that cannot be published is logged, once for each kind of error.
        """
        written = []
        try:
            names = optuna.get_all_study_names(self._storage)
        except Exception as error:
            self._warn("", error)
            return []
        for name in names:
            if stop is not None and stop.is_set():
                break
            if self._only not in (None, name):
                continue
            try:
                if self._look_at(name):
                    written.append(name)
            except Exception as error:
                self._warn(name, error)
        return written

    def _look_at(self, name: str) -> bool:
        study = self._study(name)
        trials = study.get_trials(deepcopy=False)
        if not _measured(trials):
            return False
        now = _fingerprint(study, trials)
        unchanged = self._seen.get(name) == now
        self._seen[name] = now
        if self._published.get(name) == now:
            return False
        first = name not in self._published
        running = any(trial.state == TrialState.RUNNING for trial in trials)
        if isinstance(self._storage, JournalStorage) and not first and (running or not unchanged):
            return False
        if not self._lease(study):
            return False
        # The file of spectra reads them all, so that it waits for the campaign's end.
        store = None if running and not first else self._artifact_store
        wrote = bool(publish(study, artifact_store=store))
        self._published[name] = now
        return wrote

    def _study(self, name: str) -> Study:
        # Kept, because a study of a database remembers its finished trials.
        study = self._studies.get(name)
        if study is None or study._study_id != self._storage.get_study_id_from_name(name):
            study = self._studies[name] = optuna.load_study(study_name=name, storage=self._storage)
        return study

    def _lease(self, study: Study) -> bool:
        storage, study_id = study._storage, study._study_id
        held = storage.get_study_system_attrs(study_id).get(_PUBLISHER_ATTR)
        if isinstance(held, dict) and held.get("by") != self._token:
            until = held.get("until")
            if isinstance(until, (int, float)) and until > time.time():
                return False
        lease: dict[str, Any] = {
            "by": self._token,
            "until": round(time.time() + 3 * self._interval),
        }
        storage.set_study_system_attr(study_id, _PUBLISHER_ATTR, lease)
        # Another one may have written its own at the same moment.
        return storage.get_study_system_attrs(study_id).get(_PUBLISHER_ATTR) == lease

    def _release(self, study: Study) -> None:
        storage, study_id = study._storage, study._study_id
        held = storage.get_study_system_attrs(study_id).get(_PUBLISHER_ATTR)
        if isinstance(held, dict) and held.get("by") == self._token and held.get("until"):
            storage.set_study_system_attr(study_id, _PUBLISHER_ATTR, {"until": 0})

    def _warn(self, name: str, error: Exception) -> None:
        kind = type(error).__name__
        if (name, kind) not in self._warned:
            self._warned.add((name, kind))
            # The type only: messages of database drivers may hold the URL with its password.
            what = f"Study {name!r}" if name else "The storage"
            why = f"{error} " if isinstance(error, SpectraError) else ""
            _logger.warning(f"{what} could not be published ({kind}); trying again later. {why}")
            trace = "".join(traceback.format_exception(error))
            _logger.debug(f"Publishing failed.\n{without_passwords(trace)}")


def _fingerprint(study: Study, trials: Sequence[FrozenTrial]) -> object:
    # Finished trials do not change in Optuna, and running ones report.
    states = Counter(trial.state for trial in trials)
    n_reports = sum(len(trial.intermediate_values) for trial in trials)
    n_attrs = sum(len(trial.user_attrs) for trial in trials)
    return study._study_id, sorted(states.items()), n_reports, n_attrs


# Serving it -----------------------------------------------------------------------------------


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        _logger.debug(format % args)


def make_dashboard(
    storage: BaseStorage,
    host: str,
    port: int,
    *,
    artifact_store: "ArtifactStore | None" = None,
) -> WSGIServer:
    """Return a server of optuna-dashboard that listens, and serves with ``serve_forever()``.

    Args:
        storage: Any storage.
        host: The address to listen at.
        port: The port; 0 for one that is free, which ``server_port`` then tells.
        artifact_store: Where its files are.

    Raises:
        ImportError: optuna-dashboard is not installed.
        OSError: The port is taken.
    """
    app = _optuna_dashboard().wsgi(storage, artifact_store=artifact_store)
    return make_server(host, port, app, server_class=_Server, handler_class=_Handler)
