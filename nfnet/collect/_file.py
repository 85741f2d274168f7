"""Records in a file that the collector or another program rotates, or on standard output."""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import shutil
import stat
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from threading import Thread
from typing import Any, ClassVar

from .._io import private_files
from .._io.system import append_only
from . import _units
from ._batch import Batch
from ._output import Output, OutputError

_log = logging.getLogger("nfnet")

_STANDARD_OUTPUT = "-"
_UNFINISHED = ".unfinished"


class File(Output):
    """Appends records to a file.

    target: the name of the file; "-" is the standard output.
    rotate_size: rename the file before it has more than so many bytes. Default: never.
    rotate_time: rename it every so many seconds. Default: never.
    keep: the number of renamed files to keep; older ones are removed. Default: all.
    compress: whether to compress renamed files with gzip.

    A file is renamed from ``log.jsonl`` to ``log.jsonl.20261127T180000.000000Z``. If another process renamed or removed
    it, it is created again before the next record.

    Nothing can be appended to another process's file if files of this kind have a header. Such a file is renamed, too,
    unless it is empty.
    """

    settings: ClassVar[Mapping[str, Callable[[Any], Any]]] = {
        "rotate_size": _units.size,
        "rotate_time": _units.seconds,
        "keep": _units.count,
        "compress": _units.yes_or_no,
    }

    def __init__(
        self,
        target: str,
        *,
        rotate_size: int | None = None,
        rotate_time: int | None = None,
        keep: int | None = None,
        compress: bool = False,
    ) -> None:
        super().__init__(target)
        self._rotate_size = rotate_size
        self._rotate_time = rotate_time
        self._keep = keep
        self._compress = compress
        self._fd: int | None = None
        self._regular = False
        self._began: os.stat_result | None = None  # the file that this process writes
        self._empty_stream = True  # no byte was written yet, to a pipe for instance
        self._period = 0
        self._left: list[str] = []  # files of other processes that were renamed, and may be unfinished
        self._worker: Thread | None = None
        if target != _STANDARD_OUTPUT:
            self._open()
            self._close()

    @abstractmethod
    def data(self, batch: Batch) -> bytes:
        """Return the bytes to write for a batch, including a record of the loss before it."""

    def header(self) -> bytes:
        """Return the bytes with which each file begins."""
        return b""

    def mend(self, path: str) -> None:
        """Remove what a killed process left unfinished at the end of a renamed file. Raises OSError."""

    def begin(self) -> None:
        self._set_aside(self._open())
        with contextlib.suppress(OSError):  # a full disk, for instance: `write` reports it, and other outputs work
            self._append(b"")
        if self._regular:
            self._tidy()

    def write(self, batch: Batch) -> None:
        data = self.data(batch)
        try:
            self._follow()
            if self._is_due(len(data)):
                self._rotate()
            self._append(data)
        except OSError as error:
            # The reader closed the pipe, or a part of a record was written to a stream of a kind with a header.
            lasting = isinstance(error, BrokenPipeError) or (bool(self.header()) and not self._regular)
            raise OutputError(str(error.strerror), lasting=lasting) from error

    def idle(self) -> None:
        try:
            if self._fd is not None and self._is_due(0):
                self._rotate()
        except OSError as error:
            raise OutputError(str(error.strerror)) from error

    def reopen(self) -> None:
        if self.target == _STANDARD_OUTPUT:
            return
        self._close()
        try:
            self._append(b"")
        except OSError as error:
            raise OutputError(str(error.strerror)) from error

    def close(self) -> None:
        self._close()
        if self._worker is not None:
            self._worker.join()

    def _close(self) -> None:
        if self._fd is not None and self.target != _STANDARD_OUTPUT:
            private_files.unlock(self._fd)
            os.close(self._fd)
        self._fd = None

    # --- the file

    def _open(self) -> int:
        if self._fd is not None:
            return self._fd
        if self.target == _STANDARD_OUTPUT:
            sys.stdout.flush()
            fd = sys.stdout.fileno()
        else:
            fd = private_files.create(self.target)
        try:
            status = os.fstat(fd)
            self._regular = stat.S_ISREG(status.st_mode) and self.target != _STANDARD_OUTPUT
            if self._regular:
                private_files.lock(fd, self.target)
                append_only(fd)  # another process can shorten it: logrotate's copytruncate
                if status.st_size == 0:
                    os.fchmod(fd, 0o600)
                begun = status.st_mtime if status.st_size else time.time()
                self._period = self._period_of(begun)
        except BaseException:
            if self.target != _STANDARD_OUTPUT:
                os.close(fd)
            raise
        self._fd = fd
        if self._began is not None:
            fd = self._set_aside(fd)
        return fd

    def _set_aside(self, fd: int) -> int:
        """Rename a file of another process to which nothing can be appended, and begin a new one."""
        status, header = os.fstat(fd), self.header()
        foreign = self._began is None or not os.path.samestat(status, self._began)
        if foreign and self._regular and 0 < status.st_size < len(header) and self._is_part_of_header(status.st_size):
            os.ftruncate(fd, 0)  # the process that began the file was killed
        elif foreign and self._regular and status.st_size and header:
            self._left.append(self._rename())
            self._began = None
            return self._set_aside(self._open())
        self._began = status
        return fd

    def _is_part_of_header(self, size: int) -> bool:
        with open(self.target, "rb") as file:
            return self.header().startswith(file.read(size))

    def _follow(self) -> None:
        """Close the file if it was renamed or removed, so that the next record creates it."""
        if self._fd is None or not self._regular:
            return
        try:
            if os.path.samestat(os.stat(self.target), os.fstat(self._fd)):
                return
        except FileNotFoundError:
            pass
        self._close()

    def _append(self, data: bytes) -> None:
        fd = self._open()
        before = os.fstat(fd).st_size if self._regular else 0
        if not before and (self._regular or self._empty_stream):
            data = self.header() + data
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(fd, left) :]
                self._empty_stream = False
        except OSError:
            # Remove a part that was written: all of it will be written again.
            if self._regular and len(left) < len(data):
                os.ftruncate(fd, before)
            raise

    # --- rotating

    def _period_of(self, moment: float) -> int:
        return int(moment // self._rotate_time) if self._rotate_time else 0

    def _is_due(self, more: int) -> bool:
        fd = self._open()
        if not self._regular or (size := os.fstat(fd).st_size) <= len(self.header()):
            return False
        if self._rotate_size and more and size + more > self._rotate_size:
            return True
        return self._period != self._period_of(time.time())

    def _rotate(self) -> None:
        self._rename()
        self._tidy()
        self._append(b"")

    def _rename(self) -> str:
        """Rename the file, and return its new path."""
        path = f"{self.target}.{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%fZ}"
        os.rename(self.target, path)
        self._close()
        return path

    def _rotated(self) -> list[str]:
        """Return the paths of the rotated files, the oldest first."""
        directory, name = os.path.split(self.target)
        found = []
        for each in os.listdir(directory or "."):
            stamp = each.removeprefix(f"{name}.").removesuffix(_UNFINISHED).removesuffix(".gz")
            with contextlib.suppress(ValueError):
                if each.startswith(f"{name}.") and datetime.strptime(stamp, "%Y%m%dT%H%M%S.%fZ"):
                    found.append(os.path.join(directory, each))
        return sorted(found)

    def _tidy(self) -> None:
        """Mend and compress renamed files and remove the oldest, in a thread."""
        if self._worker is not None:
            if self._worker.is_alive():
                return  # the next time
            self._worker.join()
        if self._keep or self._compress or self._left:
            self._worker = Thread(target=self._tidy_up, name=f"rotating {self.target}")
            self._worker.start()

    def _tidy_up(self) -> None:
        left, self._left = self._left, []
        try:
            for path in left:
                self.mend(path)
            for path in self._rotated():
                if path.endswith(_UNFINISHED):  # left by a process that was killed
                    os.unlink(path)
                elif self._compress and not path.endswith(".gz"):
                    _compress(path)
            for path in self._rotated()[: -self._keep] if self._keep else []:
                os.unlink(path)
        except OSError as error:
            _log.warning("%s: rotating: %s", self.name, error)


def _compress(path: str) -> None:
    unfinished = f"{path}.gz{_UNFINISHED}"
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(path, "rb") as source, open(fd, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    os.rename(unfinished, f"{path}.gz")
    os.unlink(path)
