"""The base class of outputs."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from ..errors import NfnetError
from ._batch import Batch


class OutputError(NfnetError):
    """An output could not store a batch, and has stored nothing of it.

    message: the reason.
    lasting: whether the output can never store anything again.
    usual: whether such an error is usual and soon over, as another process's lock.
    """

    def __init__(self, message: str, *, lasting: bool = False, usual: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting
        self.usual = usual


class AwayError(NfnetError):
    """The server of an output or a source does not answer; it can become available later."""


def without_password(text: str) -> str:
    """Return the text without users and passwords of URLs, and without the values of ``password=``.

    In each line everything in a URL before the last ``@`` is removed, since a password can contain an ``@``.
    """
    text = re.sub(r"//.*@", "//***@", text)
    return re.sub(r"(password=)[^&\s'\"]*", r"\1***", text)


class Output(ABC):
    """Stores log messages, a batch at a time.

    target: the destination, a file name for instance.
    settings: by name, parsed by `settings` of the class.

    The constructor raises NfnetError or OSError if the target is wrong; it changes nothing in the target before
    `begin`. Methods are called by one thread at a time, not always by the same one.
    """

    scheme: ClassVar[str]
    """The word before the target: "sqlite" in ``sqlite:firewall.db``."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """File name extensions that need no scheme: ".db"."""
    usual_target: ClassVar[str] = ""
    """The target if nothing follows the scheme and its colon; None: a target is required."""
    help: ClassVar[str]
    overwrites: ClassVar[bool] = False
    """Whether `begin` renames or removes data in the target; then it is called after those of all other outputs."""
    settings: ClassVar[Mapping[str, Callable[[Any], Any]]] = {}
    """Names of settings, each with a function that parses its value, or raises ValueError."""

    def __init__(self, target: str, **settings: Any) -> None:
        self.target = target

    @classmethod  # noqa: B027  # most take any
    def check(cls, target: str) -> None:
        """Raise ArgumentError if the target is wrong, as far as that is known without opening it."""

    @property
    def name(self) -> str:
        """Its name in reports, without a password."""
        return without_password(f"{self.scheme}:{self.target}")

    def create(self) -> None:  # noqa: B027  # most do so when they are made
        """Create what is missing in the target, such as tables. Raises NfnetError or OSError."""

    @abstractmethod
    def begin(self) -> None:
        """Prepare for batches. Raises NfnetError or OSError if none could be stored."""

    @abstractmethod
    def write(self, batch: Batch) -> None:
        """Store a batch. When this returns, killing the process loses nothing of it. Raises OutputError."""

    def write_many(self, batches: Sequence[Batch]) -> None:
        """Store several batches, which is faster for some outputs. Raises OutputError; some can be stored then."""
        for batch in batches:
            self.write(batch)

    def idle(self) -> None:  # noqa: B027  # most have nothing to do
        """Do what is due by the clock; called about once a second, also without batches. Raises OutputError."""

    def reopen(self) -> None:  # noqa: B027
        """Reopen files, after the user sent SIGHUP. Raises OutputError."""

    @abstractmethod
    def close(self) -> None:
        """Close the target. Raises no exception."""
