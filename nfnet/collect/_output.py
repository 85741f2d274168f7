"""What an output is."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from ..errors import NfnetError
from ._batch import Batch


class OutputError(NfnetError):
    """An output could not store a batch, and has stored nothing of it.

    message: why not.
    lasting: whether it will never store any more.
    usual: whether this is nothing unusual and soon over: a lock of somebody else, say.
    """

    def __init__(self, message: str, *, lasting: bool = False, usual: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting
        self.usual = usual


class AwayError(NfnetError):
    """Nobody answers where an output, or a source, should be; that may change."""


def without_password(text: str) -> str:
    """The text without what URLs in it have before the ``@``, and without the values of ``password=``.

    What comes before the last ``@`` of a line goes, for a password may have one, too.
    """
    text = re.sub(r"//.*@", "//***@", text)
    return re.sub(r"(password=)[^&\s'\"]*", r"\1***", text)


class Output(ABC):
    """Stores log messages, a batch at a time.

    target: where to: the name of a file, say.
    settings: by name, as `settings` of the class reads them.

    Making one raises NfnetError or OSError if the target cannot be right; nothing in it is touched before `begin`.
    Methods are called by one thread at a time, not always the same one.
    """

    scheme: ClassVar[str]
    """What stands before the target: "sqlite" in ``sqlite:firewall.db``."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Ends of file names that need no scheme: ".db"."""
    usual_target: ClassVar[str] = ""
    """The target if nothing stands behind the scheme and its colon; an error if there is none."""
    help: ClassVar[str]
    overwrites: ClassVar[bool] = False
    """Whether `begin` renames or removes what was in the target: it is called when all others have begun."""
    settings: ClassVar[Mapping[str, Callable[[Any], Any]]] = {}
    """Names of settings, and what makes their values of what the user wrote, or raises ValueError."""

    def __init__(self, target: str, **settings: Any) -> None:
        self.target = target

    @classmethod  # noqa: B027  # most take any
    def check(cls, target: str) -> None:
        """Raise ArgumentError if this is no target, as far as that can be said without touching it."""

    @property
    def name(self) -> str:
        """What it is called in reports, without a password."""
        return without_password(f"{self.scheme}:{self.target}")

    def create(self) -> None:  # noqa: B027  # most do so when they are made
        """Make what is missing in the target: tables, say. Raises NfnetError or OSError."""

    @abstractmethod
    def begin(self) -> None:
        """Batches will come. Raises NfnetError or OSError if none could be stored."""

    @abstractmethod
    def write(self, batch: Batch) -> None:
        """Store a batch: when this returns, killing the process loses nothing of it. Raises OutputError."""

    def write_many(self, batches: Sequence[Batch]) -> None:
        """Store several, which is quicker for some. Raises OutputError; then some may have been stored."""
        for batch in batches:
            self.write(batch)

    def idle(self) -> None:  # noqa: B027  # most have nothing to do
        """Called about once a second, also while nothing comes: for what is due by the clock. Raises OutputError."""

    def reopen(self) -> None:  # noqa: B027
        """The user sent SIGHUP: open files anew. Raises OutputError."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the target. Raises nothing."""
