"""What an output is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from ..log import LogMessage


class Output(ABC):
    """Stores the messages of a log group.

    target: the argument of the option: a file, say.
    group: number of the log group.
    report: is told, in a line, what the person who runs the collector should know.

    Making one raises NfnetError or OSError if the target cannot be right; nothing in it is touched before `begin`.
    """

    option: ClassVar[str]
    """The option that names the target, such as "--sqlite"."""
    metavar: ClassVar[str] = "FILE"
    help: ClassVar[str]

    broken = False
    """Whether it has failed for good: nothing more is stored."""

    def __init__(self, target: str, group: int, report: Callable[[str], None]) -> None:
        self.target = target
        self.group = group
        self._report = report

    def report(self, text: str) -> None:
        """Say something about the target."""
        self._report(f"{self.option} {self.target}: {text}")

    @abstractmethod
    def begin(self) -> None:
        """Messages will come. Raises NfnetError or OSError if they could not be stored."""

    @abstractmethod
    def take(self, message: LogMessage) -> None:
        """Store a message, or keep it until `flush`. Raises nothing: what goes wrong is reported."""

    @abstractmethod
    def flush(self) -> None:
        """Nothing comes for a while: store what was kept. Raises nothing."""

    @abstractmethod
    def finish(self, is_enough: Callable[[], bool]) -> bool:
        """No more comes: store the rest, and return whether all of it is stored; else report how much is not.

        is_enough: says whether the person does not want to wait any longer.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the target."""
