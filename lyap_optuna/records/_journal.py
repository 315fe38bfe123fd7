"""Journal files: Optuna's own format, in which a torn last line costs nothing else."""

import contextlib
import json
import os
import shlex
from collections.abc import Generator
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from lyap_optuna._files import AppendLock

_BEGINNING = b'{"op_code":'


class JournalError(ValueError):
    """A file that is no journal, or that is damaged; the message says where and what to do."""


def open_journal(path: str | os.PathLike[str]) -> JournalStorage:
    """Open a journal file of Optuna's, creating it where it is absent.

    Where it ends in half a line (a full disk, a kill), that is moved to a file beside it before
    anything is appended; see :class:`~lyap_optuna._files.AppendLock`.

    Raises:
        JournalError: It is no journal, or damaged before its end.
        OSError: It cannot be opened.
    """
    path = os.fspath(path)
    if os.path.exists(path):
        with open(path, "rb") as file:
            head = file.read(len(_BEGINNING))
        if not _BEGINNING.startswith(head):
            raise JournalError(f"{path} is not an Optuna journal file.")
    return JournalStorage(_Journal(path, lock_obj=AppendLock(path)))


class _Journal(JournalFileBackend):
    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        offsets = self._log_number_offset
        first = log_number_from if log_number_from in offsets else 0
        with open(self._file_path, "rb", buffering=0) as file:
            size = file.seek(0, os.SEEK_END) - offsets[first]
            file.seek(offsets[first])
            # By one call: half a line that another process cuts off just now must not be read
            # together with the rest of the line that takes its place.
            *lines, _ = file.read(max(size, 0)).split(b"\n")
        for number, line in enumerate(lines, start=first):
            try:
                log = json.loads(line)
            except ValueError:
                if line is lines[-1]:  # whoever appends cuts it off
                    return
                raise JournalError(self._damage()) from None
            offsets[number + 1] = offsets[number] + len(line) + 1
            if number >= log_number_from:
                yield log

    def _damage(self) -> str:
        path, n_whole = self._file_path, 0
        with open(path, "rb") as file, contextlib.suppress(ValueError):
            for line in file:
                json.loads(line)
                n_whole += 1
        return (
            f"{path}, line {n_whole + 1}: damaged, and what follows it cannot be read. What stands "
            f"before it is whole: `head -n {n_whole} {shlex.quote(path)} > mended.journal` makes a "
            "journal of it."
        )
