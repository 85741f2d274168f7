"""The one module that creates files. They contain data of packets, so only their owner can access them.

A file is written only if no other user can have prepared it. "Others" are all users except root and the user of this
process. In a directory to which others can write, their links, FIFOs and files are refused: a link could point
anywhere, and others could keep reading a FIFO or file. A new file can be created in such a directory, because O_EXCL
guarantees that it is new. The kernel can be configured to refuse some of this (fs.protected_symlinks, protected_fifos,
protected_regular and protected_hardlinks), but only in directories with the sticky bit, and often it is not.

A path is followed name by name. Each name is opened relative to the directory before it, so that the entry that was
checked is the one that is used. Systems other than Linux cannot open an entry just to inspect it (O_PATH). There a file
must be new, or a regular file that has one name and belongs to this user: see `_create_elsewhere`.
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
# `os.open` makes descriptors that are not inherited. Flags that a system lacks are 0: O_NOFOLLOW on Windows, O_BINARY
# on all others.
_NO_LINK: int = getattr(os, "O_NOFOLLOW", 0)
_LOOK = _PATH | _NO_LINK
_WRITE = os.O_WRONLY | _NO_LINK | getattr(os, "O_BINARY", 0)
_MOST_LINKS = 40  # as in the kernel

_KINDS = {stat.S_IFLNK: "link", stat.S_IFREG: "file", stat.S_IFIFO: "FIFO"}


def create(path: str | os.PathLike[str]) -> int:
    """Open a file for writing, and return its descriptor. A new file is created with mode 0600.

    The file keeps its contents until `empty` is called.

    Raises OSError; PermissionError with EACCES for a file that others have created, or could have created; see above.
    /dev/stdout and other names of this process's own descriptors are not checked.
    """
    with _naming(path), ExitStack() as stack:
        return _open(_find(path, stack)) if LINUX else _create_elsewhere(path)


def create_database(path: str | os.PathLike[str]) -> str:
    """Create a file for SQLite with mode 0600, if it does not exist, and return the path by which to open it.

    SQLite opens the file by name at any time, and other files beside it: it applies a journal that it finds there to
    the database, and writes contents of the database to a journal, regardless of its owner. So others must not be able
    to write to the directory, nor to replace it. Raises OSError; PermissionError with EACCES if they can.
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
    """Remove the contents of a regular file, and set its mode to 0600. Raises OSError."""
    if stat.S_ISREG(os.fstat(fd).st_mode):
        if not WINDOWS:
            with suppress(PermissionError):  # another user may own it and let this one write to it
                os.fchmod(fd, 0o600)
        os.ftruncate(fd, 0)


def lock(fd: int, path: str | os.PathLike[str]) -> None:
    """Lock a regular file: until `unlock`, another call of `lock`, in any process, raises OSError with EBUSY.

    On Windows nothing is locked: a lock there would exclude readers, too.
    """
    if WINDOWS or not stat.S_ISREG(os.fstat(fd).st_mode):
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(errno.EBUSY, "another recorder is writing to it", os.fspath(path)) from None
    except OSError:  # some file systems have no locks: the file is then written without one
        pass


def unlock(fd: int) -> None:
    """Release the lock, even if a child process that is being started has a copy of the descriptor."""
    if WINDOWS:
        return
    with suppress(OSError):  # the file could not be locked
        fcntl.flock(fd, fcntl.LOCK_UN)


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make errors contain the given path, not the part of it that was being followed."""
    try:
        yield
    except OSError as error:
        error.filename = os.fspath(path)
        raise


# --- following a path


class _Found(NamedTuple):
    """A directory, a name in it, and the entry of that name. Directory and entry are O_PATH descriptors."""

    directory: int
    name: str
    entry: int | None
    given: bool  # the entry is an open file of a process, named by /proc


def _find(path: str | os.PathLike[str], stack: ExitStack) -> _Found:
    """Follow a path, except links that others could have created; the stack closes the descriptors."""

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
            # The target of a link in /proc can be no path ("pipe:[1234]"); only the kernel can follow it.
            entry, given = look(name, _PATH, directory), True
        if not rest:
            return _Found(directory, name, entry, given)
        directory = entry
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))  # "" is not a path


def _names(path: str) -> list[str]:
    """Return the names in a path, the last one first."""
    return [name for name in path.split("/") if name][::-1]


def _is_in_proc(status: os.stat_result) -> bool:
    try:
        return status.st_dev == os.stat("/proc/self").st_dev
    except FileNotFoundError:  # /proc is not mounted
        return False


def _open(found: _Found) -> int:
    """Open the found file for writing, or create it."""
    directory = os.fstat(found.directory)
    if found.entry is None:
        return os.open(found.name, _WRITE | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=found.directory)
    if found.given:
        return os.open(found.name, _WRITE & ~_NO_LINK, dir_fd=found.directory)
    # Check once before opening, which would wait for the reader of a FIFO, and once after, because the file could have
    # been replaced in between.
    _refuse_others(directory, found.name, os.fstat(found.entry))
    fd = os.open(found.name, _WRITE, dir_fd=found.directory)
    try:
        _refuse_others(directory, found.name, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _create_elsewhere(path: str | os.PathLike[str]) -> int:
    """Open for writing a regular file that others cannot have prepared, or create it. For systems other than Linux."""
    try:
        return os.open(path, _WRITE | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        why = f"is a {_KINDS.get(stat.S_IFMT(found.st_mode), 'directory, device or socket')} and no regular file"
    elif found.st_nlink > 1:
        why = "is one of several names of a file, and others may have made it"
    elif not WINDOWS and _is_others(found.st_uid):
        why = "is another user's file"
    else:
        fd = os.open(path, _WRITE)
        if os.path.samestat(os.fstat(fd), found):  # otherwise it was replaced since the check
            return fd
        os.close(fd)
        why = "was replaced while it was opened"
    raise PermissionError(errno.EACCES, f"{printable(os.path.basename(path))} {why}")


# --- permissions of others


def _is_others(owner: int) -> bool:
    # If root of the machine has no id in this user namespace, the owner of "/" is the id that stands for it.
    return owner not in (0, os.geteuid(), os.stat("/").st_uid)


def _others_may_write(directory: os.stat_result) -> bool:
    # Users usually have their own group, with the same number, and directories to which it can write.
    members = directory.st_mode & stat.S_IWGRP and directory.st_gid != directory.st_uid
    return bool(members or directory.st_mode & stat.S_IWOTH or _is_others(directory.st_uid))


def _others_may_rename(directory: os.stat_result) -> bool:
    """Return whether others can rename entries that they do not own in a directory, which the sticky bit prevents."""
    sticky = directory.st_mode & stat.S_ISVTX and not _is_others(directory.st_uid)
    return _others_may_write(directory) and not sticky


def _refuse_others(directory: os.stat_result, name: str, entry: os.stat_result) -> None:
    """Raise PermissionError if others have created, or could have created, an entry of a directory."""
    if stat.S_ISDIR(entry.st_mode) or not _others_may_write(directory):
        return
    kind = _KINDS.get(stat.S_IFMT(entry.st_mode), "device or socket")
    if _is_others(entry.st_uid):
        why = f"is another user's {kind}"
    elif entry.st_nlink > 1:
        why = f"is one of several names of a {kind}, and others may have made it"
    elif kind == "link" and _others_may_rename(directory):
        why = "is a link, and others may have given it this name"
    else:
        return
    raise PermissionError(errno.EACCES, f"{printable(name)} {why}, in a directory that others may write to")


def _refuse_unsafe(directory: int) -> None:
    """Raise PermissionError if others can create files in a directory, or replace the directory."""
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
            directory = parent  # a loop within ``with`` must not end with a condition: see `locks`


def _create_database_elsewhere(path: str | os.PathLike[str]) -> str:
    """Do what `create_database` does, on systems other than Linux."""
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
        "others may write to the directory, and SQLite would use files that they put beside the database; choose"
        " a directory that belongs to this user or root, and to which no other user may write",
    )


def _unsafe_parent(parent: str) -> PermissionError:
    text = f"others may replace the directory in {printable(parent)} by another one"
    return PermissionError(errno.EACCES, f"{text}, and SQLite would use that")
