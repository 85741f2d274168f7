"""Control groups (version 2) of systemd units, containers and other programs, by the names that rules use."""

from __future__ import annotations

import os
from typing import NamedTuple

from .._arguments import wrong_type
from ..errors import ArgumentError

_WHAT = "a systemd unit ('sshd.service') or the path of a control group ('docker/0123abcd')"


class Group(NamedTuple):
    """A control group."""

    path: str
    """The path below the root of the hierarchy, without a slash at either end."""
    root: str

    @property
    def level(self) -> int:
        """The depth of the group below the root, from 1 on."""
        return self.path.count("/") + 1

    def below(self, root: str) -> str | None:
        """Return the path relative to a directory; None if the group is not below it."""
        path = f"{self.root}/{self.path}"
        return path.removeprefix(f"{root}/") if path.startswith(f"{root}/") else None

    def number(self) -> int:
        """Return the kernel's id of the group. Raises ArgumentError if the group no longer exists."""
        try:
            return os.stat(f"{self.root}/{self.path}").st_ino
        except OSError as error:
            raise ArgumentError(f"there is no control group {self.path!r} any more: {error.strerror}") from None


def find(name: str, value: str) -> Group:
    """Find a control group by its path, or by the last part of its path if that is unique. Raises ArgumentError."""
    if not isinstance(value, str):
        raise wrong_type(name, value, f"{_WHAT}, or a list of such")
    root = _root()
    if root is None:
        raise ArgumentError(f"{name} needs the control groups of version 2, which are mounted nowhere here")
    path = os.path.normpath(value.removeprefix(f"{root}/").strip("/") or ".")
    if "\0" in value or path == "." or path.split("/")[0] == "..":
        raise ArgumentError(f"{name} is {value!r} and must be {_WHAT}")
    if os.path.isdir(f"{root}/{path}"):
        return Group(path, root)
    if "/" in path:
        raise ArgumentError(f"{name} is {value!r}, and there is no such control group in {root}")
    found = [os.path.relpath(f"{place}/{path}", root) for place, names, _ in os.walk(root) if path in names]
    if len(found) != 1:
        several = f"there are several: {', '.join(sorted(found))}" if found else f"there is none of that name in {root}"
        raise ArgumentError(f"{name} is {value!r}, and must be {_WHAT} that runs; {several}")
    return Group(found[0], root)


def _root() -> str | None:
    """Return the directory at which the hierarchy is mounted; None if it is not mounted."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.readlines()
    except OSError:
        return None
    for line in lines:
        words = line.split()
        if "-" in words and words[words.index("-") + 1] == "cgroup2":
            return words[4].replace("\\040", " ").replace("\\134", "\\")
    return None
