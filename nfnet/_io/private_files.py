"""The one place that makes files. They hold what packets said, so they are for their owner alone.

A file is written only where nobody else can have prepared it. "Others" are all users but root and the one as whom this
process runs. In a directory into which others may write, their links, FIFOs and files are refused: a link might lead
anywhere, and a FIFO or a file they could go on reading. A new file may be made in such a directory, since O_EXCL makes
sure that it is new. The kernel can be told to refuse some of this (fs.protected_symlinks, protected_fifos,
protected_regular and protected_hardlinks), only in directories with the sticky bit, and often is not.

A path is followed name by name, each opened relative to the directory before it, so what is checked is what is used.
Other systems than Linux cannot open a name just to look at it. There a file is new, or a regular file that has one name
and belongs to this user: see `_create_elsewhere`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import PurePath
from typing import NamedTuple

from .._printable import printable
from .system import LINUX, WINDOWS, fcntl

_PATH = getattr(os, "O_PATH", 0o10000000)  # PyPy has no name for it; the number is that of the machines it runs on
# `os.open` itself makes descriptors that are not inherited. What Windows lacks is 0, and what others lack, O_BINARY.
_NO_LINK: int = getattr(os, "O_NOFOLLOW", 0)
_LOOK = _PATH | _NO_LINK
_WRITE = os.O_WRONLY | _NO_LINK | getattr(os, "O_BINARY", 0)
_MOST_LINKS = 40  # as in the kernel

_KINDS = {stat.S_IFLNK: "link", stat.S_IFREG: "file", stat.S_IFIFO: "FIFO"}


def create(path: str | os.PathLike[str]) -> int:
    """Open a file for writing, made with mode 0600 if it is not there, and return its descriptor.

    What was in it stays until ``empty``.

    Raises OSError, PermissionError with EACCES for what others have, or may have, put there; see above. /dev/stdout and
    other names of this process' own descriptors are what they are, without a check.
    """
    with _naming(path), ExitStack() as stack:
        return _open(_find(path, stack)) if LINUX else _create_elsewhere(path)


def create_database(path: str | os.PathLike[str]) -> str:
    """Make a file for SQLite, with mode 0600, if it is not there, and return the path by which to open it.

    SQLite opens names, at any time, and those of other files beside it: it applies a journal that it finds there to the
    database, and writes what was in the database to a journal of anybody's. So the directory must be one to which no
    others may write, and in whose place they cannot put another. Raises OSError, PermissionError with EACCES for that.
    """
    if not LINUX:
        with _naming(path):
            return _create_database_elsewhere(path)
    with _naming(path), ExitStack() as stack:
        found = _find(path, stack)
        name = os.path.join(os.readlink(f"/proc/self/fd/{found.directory}"), found.name)
        _refuse_unsafe(found.directory)
        if found.entry is None:
            os.close(_open(found))
        return name


def empty(fd: int) -> None:
    """What was in a regular file is gone, and the mode is 0600. Raises OSError."""
    if stat.S_ISREG(os.fstat(fd).st_mode):
        if not WINDOWS:
            with suppress(PermissionError):  # it may be somebody else's who lets us write to it
                os.fchmod(fd, 0o600)
        os.ftruncate(fd, 0)


def lock(fd: int, path: str | os.PathLike[str]) -> None:
    """Make a regular file be for one writer at a time, in whatever process: the next one gets EBUSY, until `unlock`.

    On Windows nothing is locked: a lock there would keep readers out, too.
    """
    if WINDOWS or not stat.S_ISREG(os.fstat(fd).st_mode):
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(errno.EBUSY, "it is being recorded to by another", os.fspath(path)) from None
    except OSError:  # some file systems have no locks: then there is nobody to be kept out by one
        pass


def unlock(fd: int) -> None:
    """Let others write, also while a child that is just being started still has the descriptor, and the lock."""
    if WINDOWS:
        return
    with suppress(OSError):  # no lock was to be had
        fcntl.flock(fd, fcntl.LOCK_UN)


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors are about the path that was asked for, not about the name in it that was being followed."""
    try:
        yield
    except OSError as error:
        error.filename = os.fspath(path)
        raise


# --- from a path to what is there


class _Found(NamedTuple):
    """A name in a directory, and what is there: both as descriptors that are good for looking only (O_PATH)."""

    directory: int
    name: str
    entry: int | None
    given: bool  # what is there is an open file of some process, which /proc names


def _find(path: str | os.PathLike[str], stack: ExitStack) -> _Found:
    """Follow a path, but no link that others may have put there; the stack closes the descriptors."""

    def look(name: str, flags: int = _LOOK, directory: int | None = None) -> int:
        fd = os.open(name, flags, dir_fd=directory)
        stack.callback(os.close, fd)
        return fd

    text = os.fsdecode(path)
    if text.endswith("/"):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    rest = _names(text)
    directory = look("/" if text.startswith("/") else ".")
    links = 0
    while rest:
        name = rest.pop()
        try:
            entry = look(name, directory=directory)
        except FileNotFoundError:
            if rest:
                raise
            return _Found(directory, name, None, given=False)
        status, given = os.fstat(entry), False
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            _refuse_others(os.fstat(directory), name, status)
            if not _is_in_proc(status):
                target = os.readlink("", dir_fd=entry)
                rest += _names(target)
                if target.startswith("/"):
                    directory = look("/")
                continue
            # What it says is no path: "pipe:[1234]". The kernel knows what it means.
            entry, given = look(name, _PATH, directory), True
        if not rest:
            return _Found(directory, name, entry, given)
        directory = entry
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))  # "" is no path


def _names(path: str) -> list[str]:
    """The names in a path, the last one first."""
    return [name for name in path.split("/") if name][::-1]


def _is_in_proc(status: os.stat_result) -> bool:
    try:
        return status.st_dev == os.stat("/proc/self").st_dev
    except FileNotFoundError:  # it is not mounted
        return False


def _open(found: _Found) -> int:
    """Open for writing what was found, or make it."""
    directory = os.fstat(found.directory)
    if found.entry is None:
        return os.open(found.name, _WRITE | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=found.directory)
    if found.given:
        return os.open(found.name, _WRITE & ~_NO_LINK, dir_fd=found.directory)
    # Once before it is opened, which would wait for the reader of a FIFO, and once what was opened, for it might have
    # been another one by then.
    _refuse_others(directory, found.name, os.fstat(found.entry))
    fd = os.open(found.name, _WRITE, dir_fd=found.directory)
    try:
        _refuse_others(directory, found.name, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _create_elsewhere(path: str | os.PathLike[str]) -> int:
    """Open for writing what is a regular file, and not the work of others, or make it: not on Linux."""
    try:
        return os.open(path, _WRITE | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        why = f"is a {_KINDS.get(stat.S_IFMT(found.st_mode), 'directory, device or socket')} and no regular file"
    elif found.st_nlink > 1:
        why = "is one of several names of a file, and others may have made it"
    elif not WINDOWS and _is_others(found.st_uid):
        why = "is somebody else's file"
    else:
        fd = os.open(path, _WRITE)
        if os.path.samestat(os.fstat(fd), found):  # else it was replaced since it was looked at
            return fd
        os.close(fd)
        why = "has just been replaced by somebody"
    raise PermissionError(errno.EACCES, f"{printable(os.path.basename(path))} {why}")


# --- what others may do


def _is_others(owner: int) -> bool:
    # In a user namespace in which root of the machine has no number, "/" shows by which one its files are seen.
    return owner not in (0, os.geteuid(), os.stat("/").st_uid)


def _others_may_write(directory: os.stat_result) -> bool:
    # Users have, as a rule, a group of their own that has their number, and directories that it may write to.
    members = directory.st_mode & stat.S_IWGRP and directory.st_gid != directory.st_uid
    return bool(members or directory.st_mode & stat.S_IWOTH or _is_others(directory.st_uid))


def _others_may_rename(directory: os.stat_result) -> bool:
    """Whether others may rename what is not theirs in a directory: not if it has the sticky bit and is not theirs."""
    sticky = directory.st_mode & stat.S_ISVTX and not _is_others(directory.st_uid)
    return _others_may_write(directory) and not sticky


def _refuse_others(directory: os.stat_result, name: str, entry: os.stat_result) -> None:
    """Raises PermissionError if what a directory has under a name is, or may be, the work of others."""
    if stat.S_ISDIR(entry.st_mode) or not _others_may_write(directory):
        return
    kind = _KINDS.get(stat.S_IFMT(entry.st_mode), "device or socket")
    if _is_others(entry.st_uid):
        why = f"is somebody else's {kind}"
    elif entry.st_nlink > 1:
        why = f"is one of several names of a {kind}, and others may have made it"
    elif kind == "link" and _others_may_rename(directory):
        why = "is a link, and others may have given it this name"
    else:
        return
    raise PermissionError(errno.EACCES, f"{printable(name)} {why}, in a directory that others may write to")


def _refuse_unsafe(directory: int) -> None:
    """Raises PermissionError if others may make files in a directory, or put another one in its place."""
    status = os.fstat(directory)
    if _others_may_write(status):
        raise _unsafe_directory()
    with ExitStack() as stack:
        while True:
            parent = os.open("..", _LOOK, dir_fd=directory)
            stack.callback(os.close, parent)
            child, status = status, os.fstat(parent)
            if os.path.samestat(child, status):  # "/"
                return
            if _others_may_rename(status):
                raise _unsafe_parent(os.readlink(f"/proc/self/fd/{parent}"))
            directory = parent  # no condition at the end of a loop: see `locks`


def _create_database_elsewhere(path: str | os.PathLike[str]) -> str:
    """As `create_database`, not on Linux."""
    directory = os.path.realpath(os.path.dirname(os.path.abspath(path)))
    if not WINDOWS:
        if _others_may_write(os.stat(directory)):
            raise _unsafe_directory()
        for parent in PurePath(directory).parents:
            if _others_may_rename(os.stat(parent)):
                raise _unsafe_parent(str(parent))
    found = os.path.join(directory, os.path.basename(path))
    os.close(_create_elsewhere(found))
    return found


def _unsafe_directory() -> PermissionError:
    return PermissionError(
        errno.EACCES,
        "others may write to the directory, and SQLite would obey files that they put beside the database; choose"
        " one that belongs to this user or root, and that nobody else may write to",
    )


def _unsafe_parent(parent: str) -> PermissionError:
    text = f"others may put another directory in the place of the one in {printable(parent)}"
    return PermissionError(errno.EACCES, f"{text}, and SQLite would use that")
