"""Files that this package makes. They hold what packets said, so they are for their owner alone."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress


def create(path: str | os.PathLike[str]) -> int:
    """Open a file for writing, made with mode 0600 if it is not there, and return its descriptor. Raises OSError.

    What was in it stays until ``empty``.

    Links are followed, as by tcpdump: /dev/stdout is one. But in a directory in which everybody may make files, /tmp
    say, somebody else's link is refused, which might lead anywhere, and so is somebody else's file, which they could go
    on reading. The kernel can be told to refuse both (fs.protected_symlinks, fs.protected_regular), and often is not.
    """
    flags = os.O_WRONLY | os.O_CLOEXEC
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW)
    except FileNotFoundError:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)  # follows no link that was put there just now
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        _refuse_others(path, os.lstat(path).st_uid, "link")
        fd = os.open(path, flags | os.O_CREAT, 0o600)
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            _refuse_others(path, status.st_uid, "file")
    except BaseException:
        os.close(fd)
        raise
    return fd


def empty(fd: int) -> None:
    """What was in a regular file is gone, and the mode is 0600. Raises OSError."""
    if stat.S_ISREG(os.fstat(fd).st_mode):
        with suppress(PermissionError):  # it may be somebody else's who lets us write to it
            os.fchmod(fd, 0o600)
        os.ftruncate(fd, 0)


def lock(fd: int, path: str | os.PathLike[str]) -> None:
    """Make a regular file be for one writer at a time, in whatever process: the next one gets EBUSY, until `unlock`."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(errno.EBUSY, "it is being recorded to by another", os.fspath(path)) from None
    except OSError:  # some file systems have no locks: then there is nobody to be kept out by one
        pass


def unlock(fd: int) -> None:
    """Let others write, also while a child that is just being started still has the descriptor, and the lock."""
    with suppress(OSError):  # no lock was to be had
        fcntl.flock(fd, fcntl.LOCK_UN)


def _refuse_others(path: str | os.PathLike[str], owner: int, what: str) -> None:
    directory = os.stat(os.path.dirname(os.fspath(path)) or ".")
    everybodys = directory.st_mode & (stat.S_ISVTX | stat.S_IWOTH) == stat.S_ISVTX | stat.S_IWOTH
    if everybodys and owner not in (os.geteuid(), directory.st_uid):
        raise PermissionError(errno.EACCES, f"somebody else's {what}, in a directory that everybody may write to", path)
