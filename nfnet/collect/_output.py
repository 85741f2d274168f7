"""What an output is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
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
    help: ClassVar[str]
    overwrites: ClassVar[bool] = False
    """Whether `begin` removes what was in the target: it is called when all others have begun."""
    settings: ClassVar[Mapping[str, Callable[[Any], Any]]] = {}
    """Names of settings, and what makes their values of what the user wrote, or raises ValueError."""

    def __init__(self, target: str, **settings: Any) -> None:
        self.target = target

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return f"{self.scheme}:{self.target}"

    @abstractmethod
    def begin(self) -> None:
        """Batches will come. Raises NfnetError or OSError if none could be stored."""

    @abstractmethod
    def write(self, batch: Batch) -> None:
        """Store a batch: when this returns, killing the process loses nothing of it. Raises OutputError."""

    def idle(self) -> None:  # noqa: B027  # most have nothing to do
        """Called about once a second, also while nothing comes: for what is due by the clock. Raises OutputError."""

    def reopen(self) -> None:  # noqa: B027
        """The user sent SIGHUP: open files anew. Raises OutputError."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the target. Raises nothing."""
