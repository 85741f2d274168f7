"""Names of users and groups, from this machine's own files.

``pwd`` and ``grp`` use the sources in /etc/nsswitch.conf, which can be servers on the network, and wait for them.
"""

from __future__ import annotations

import os
import time

from ._annotated import Annotated
from .errors import check_system

_LOOK_AGAIN = 1.0  # seconds


class _Names:
    """The names in a file whose lines are ``name:password:number:...``, read again when the file has changed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._look_again = 0.0
        self._version: tuple[int, int] | None = None
        self._names: dict[int, str] = {}

    def __call__(self, number: int | None) -> str | None:
        """Return the name of a number; None if the file has none, or cannot be read."""
        if number is None:
            return None
        now = time.monotonic()
        if now >= self._look_again:
            self._look_again = now + _LOOK_AGAIN
            self._read()
        return self._names.get(number)

    def _read(self) -> None:
        try:
            status = os.stat(self._path)
            version = status.st_mtime_ns, status.st_ino
            if version == self._version:
                return
            with open(self._path, encoding="utf-8", errors="replace") as file:
                lines = file.read().splitlines()
        except OSError as error:  # a container can lack the file
            check_system(error)
            self._names, self._version = {}, None
            return
        found: dict[int, str] = {}
        for line in lines:
            fields = line.split(":")
            if len(fields) > 2 and fields[2].isdecimal():
                found.setdefault(int(fields[2]), fields[0])  # the first one counts, as for other programs
        self._names, self._version = found, version


_users = _Names("/etc/passwd")
_groups = _Names("/etc/group")


def user_name(uid: int | None, raw: bytes = b"") -> str | None:
    """Return the name of a user; ``raw`` is the message with the number, which can be from another machine."""
    return raw.accounts[0] if isinstance(raw, Annotated) and raw.accounts is not None else _users(uid)


def group_name(gid: int | None, raw: bytes = b"") -> str | None:
    """Return the name of a group; see `user_name`."""
    return raw.accounts[1] if isinstance(raw, Annotated) and raw.accounts is not None else _groups(gid)
