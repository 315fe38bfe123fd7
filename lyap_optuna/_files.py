"""Files that are written whole or not at all, and files of lines that survive a torn last one."""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import IO, Any

from optuna.storages.journal import JournalFileSymlinkLock

from lyap_optuna._logging import get_logger

_logger = get_logger(__name__)

_BLOCK = 1 << 16


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes the place of ``path`` once everything is on the disk.

    It is written under an unpredictable name, so that no link planted beside ``path`` is
    followed. Whatever fails leaves ``path`` as it was, and nothing beside it; an error of the file
    system names ``path``.
    """
    path = Path(path)
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(prefix=f".{path.name[:50]}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(unfinished, 0o666 & ~mask)
        with _naming(path):
            os.replace(unfinished, path)
    except BaseException:
        os.unlink(unfinished)
        raise


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an error name the file that was asked for, not the one that was to become it."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not of the system, and in words of its own
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file whole or not at all, text as UTF-8; see :func:`written_whole`."""
    with written_whole(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def harmless(cells: Iterable[Any]) -> list[Any]:
    """Return the cells of a CSV row so that no spreadsheet takes text for a formula.

    Text that begins as one, whatever blanks stand before it, gets an apostrophe in front; numbers,
    and text that is one, stay.
    """
    return [_text(cell) if isinstance(cell, str) else cell for cell in cells]


def _text(cell: str) -> str:
    cell = f"'{cell}" if _FORMULA.match(cell) else cell
    # `csv` quotes cells with the character that ends its lines; readers end them at both.
    return cell.replace("\r", "\n")


# Also the wide forms of the signs, and the control characters at which an import may cut.
_FORMULA = re.compile(
    r"(?![-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?\Z)"
    r"([\t\r\n]|[\s\u200b\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20])",
    re.IGNORECASE,
)


class AppendLock(JournalFileSymlinkLock):
    """The lock on a file of JSON lines; its holder finds a whole line at the end of the file.

    A kill or a power cut ends such a file in half a line, and what is appended to that is lost with
    it: in a journal, with everything that follows. So the half line is cut off first. It is kept
    beside the file, as ``NAME.torn``, and a warning is logged. What the holder could not finish
    itself, on a full disk, is taken back at once.

    A holder that does not move for half a minute loses the lock to another. When it moves again it
    cuts nothing off any more, and leaves the other's lock alone.
    """

    _mine: tuple[int, int] | None = None  # the lock that this object holds

    def acquire(self) -> bool:
        """Acquire the lock, then cut.

        Raises:
            ValueError: The file holds something else than JSON objects.
            OSError: What is to be cut cannot be kept, or the lock was lost; nothing was cut.
        """
        held = super().acquire()
        self._mine = self._present()
        try:
            self._cut_torn_line()
        except BaseException:
            self._let_go()
            raise
        return held

    def release(self) -> None:
        """Take back half a line of one's own, then release the lock, unless it was lost."""
        if self._mine is None:  # somebody else's, who does not move
            super().release()
            return
        try:
            self._take_back()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        kept, self._mine = self._is_kept(), None
        if kept:
            super().release()

    def _present(self) -> tuple[int, int] | None:
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(self._lock_file)
            return found.st_ino, found.st_ctime_ns
        return None

    def _is_kept(self) -> bool:
        return self._mine is not None and self._present() == self._mine

    def _cut_torn_line(self) -> None:
        path = self._lock_target_file
        with contextlib.suppress(FileNotFoundError), open(path, "r+b") as file:
            if file.read(1) not in (b"", b"{"):
                raise ValueError(f"{path} holds no lines of JSON. Name another file.")
            start, line = _last_line(file)
            if not line or _is_whole(line):
                return
            kept = _keep(path, line)
            if not self._is_kept():
                raise TimeoutError(f"Another process has taken the lock on {path}.")
            file.truncate(start)
            os.fsync(file.fileno())
            _logger.warning(
                f"{path} ended in {len(line)} bytes of an unfinished line, as a full disk or a "
                f"kill leaves one. They were moved to {kept}; everything before them is kept."
            )

    def _take_back(self) -> None:
        with contextlib.suppress(FileNotFoundError), open(self._lock_target_file, "r+b") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n" and self._is_kept():
                file.truncate(_last_line(file)[0])


def _last_line(file: IO[bytes]) -> tuple[int, bytes]:
    """Return where the last line begins, and what it is."""
    start = file.seek(0, os.SEEK_END)
    line = b""
    while start > 0 and b"\n" not in line[:-1]:
        step = min(_BLOCK, start)
        start -= step
        file.seek(start)
        line = file.read(step) + line
    begin = line.rfind(b"\n", 0, -1) + 1
    return start + begin, line[begin:]


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n")


def _keep(path: str, content: bytes) -> str:
    for number in count(1):
        kept = f"{path}.torn" if number == 1 else f"{path}.torn{number}"
        try:
            # Exclusive: what an earlier cut left, or a planted link, is not written to.
            handle = os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue
        try:
            with open(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            os.unlink(kept)
            raise
        return kept
    raise AssertionError
