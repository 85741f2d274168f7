"""Files that this package makes. They hold what packets said, so they are for their owner alone."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress


def create(path: str | os.PathLike[str], *, truncate: bool = True) -> int:
    """Open a file for writing, made if it is not there, and return its descriptor. Raises OSError.

    What is made has mode 0600; with ``truncate`` what was there is gone, and the mode is 0600 then, too.

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
            if truncate:
                with suppress(PermissionError):  # it may be somebody else's who lets us write to it
                    os.fchmod(fd, 0o600)
                os.ftruncate(fd, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _refuse_others(path: str | os.PathLike[str], owner: int, what: str) -> None:
    directory = os.stat(os.path.dirname(os.fspath(path)) or ".")
    everybodys = directory.st_mode & (stat.S_ISVTX | stat.S_IWOTH) == stat.S_ISVTX | stat.S_IWOTH
    if everybodys and owner not in (os.geteuid(), directory.st_uid):
        raise PermissionError(errno.EACCES, f"somebody else's {what}, in a directory that everybody may write to", path)
