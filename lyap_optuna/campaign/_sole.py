"""One run of a campaign at a time: a mark on the study says which, and shows signs of life."""

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

from optuna.study import Study

from lyap_optuna._logging import get_logger
from lyap_optuna.campaign._recovery import is_local, owner, process_is_gone

_RUN = "lyapunov:campaign_run"
_BEAT_SECONDS = 10.0
"""How often a run shows that it lives: a write, and a third of a minute to see that one is gone."""

_SETTLE_SECONDS = 0.5
"""How long a run that begins waits for another that begins in the same moment: a write or two."""


_here: set[str] = set()  # runs that this process holds

_logger = get_logger(__name__)


class CampaignError(RuntimeError):
    """Why a campaign ended before its total."""


class SoleRun:
    """The right to run a campaign, held from construction to :meth:`release`.

    A run that was killed leaves its mark. On its own machine that is seen at once; elsewhere after
    two signs of life have failed to come, whatever the clocks say.

    Args:
        study: The campaign's study.
        run: The id of this run.
        one_machine: Whether only processes of one machine can reach the study.
        note: Is told why it takes a while.

    Raises:
        CampaignError: Another run is going on.
    """

    def __init__(
        self, study: Study, run: str, *, one_machine: bool, note: Callable[[str], None]
    ) -> None:
        self._study = study
        self._mark = {**owner("", run), "beat": 0}
        self._written = 0.0
        held = self._held()
        if held.get("run") and not _has_ended(held, one_machine):
            if is_local(held):
                raise _refused(held)
            note(f"A run on {held.get('host')!s:.80} did not end: waiting for a sign of life.")
            limit = time.monotonic() + 2 * _BEAT_SECONDS
            while time.monotonic() < limit:
                time.sleep(_BEAT_SECONDS / 10)
                if self._held() != held:
                    raise _refused(self._held())
        self._write()
        _here.add(run)
        time.sleep(_SETTLE_SECONDS)
        self._check()

    def beat(self) -> None:
        """Show a sign of life, where the last is old; called all the time while it runs.

        Raises:
            CampaignError: Another run has begun in the meantime.
        """
        if time.monotonic() - self._written < _BEAT_SECONDS:
            return
        try:
            self._check()
            self._mark["beat"] += 1
            self._write()
        except CampaignError:
            raise
        except Exception as error:  # a full disk, say: the trials will tell
            self._written = time.monotonic()
            _logger.debug(f"No sign of life could be left ({type(error).__name__}).")

    def release(self) -> None:
        """Let another run begin."""
        _here.discard(self._mark["run"])
        with contextlib.suppress(Exception):  # the mark of a process that is gone is seen through
            if self._held().get("run") == self._mark["run"]:
                self._study._storage.set_study_system_attr(self._study._study_id, _RUN, None)

    def _held(self) -> dict[str, Any]:
        held = self._study._storage.get_study_system_attrs(self._study._study_id).get(_RUN)
        return held if isinstance(held, dict) else {}

    def _check(self) -> None:
        if self._held().get("run") != self._mark["run"]:
            raise _refused(self._held())

    def _write(self) -> None:
        self._study._storage.set_study_system_attr(self._study._study_id, _RUN, dict(self._mark))
        self._written = time.monotonic()


def _has_ended(held: dict[str, Any], one_machine: bool) -> bool:
    if is_local(held) and held.get("pid") == os.getpid():
        return str(held["run"]) not in _here
    return process_is_gone(held, one_machine=one_machine)


def _refused(held: dict[str, Any]) -> CampaignError:
    return CampaignError(
        f"The campaign is running already: process {held.get('pid')!r:.20} on "
        f"{held.get('host')!s:.80}. One run at a time; stop that one first, or wait for its end."
    )
