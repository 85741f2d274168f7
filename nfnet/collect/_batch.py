"""Batches, which the collector passes to its outputs: messages that were read together, and their session."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .._accounts import user_name
from .._annotated import Annotated
from .._printable import printable
from ..log import LogMessage

_NUMBERS = 1 << 32  # how many different sequence numbers the kernel has


class Session(NamedTuple):
    """One time of a group being bound, on one machine: with `LogMessage.seq` it identifies a message anywhere.

    The kernel's sequence numbers have 32 bits: after 2^32 messages they begin at 0 again, and a new session begins.
    """

    host: str
    boot: str
    """The kernel's id of this boot (``/proc/sys/kernel/random/boot_id``)."""
    group: int
    started: int
    """When sequence number 0 was expected, in nanoseconds since 1970: when the group was bound, as a rule."""

    @classmethod
    def begin(cls, group: int) -> Session:
        """Begin the session of a group that is being bound now."""
        try:
            with open("/proc/sys/kernel/random/boot_id") as file:
                boot = file.read().strip()
        except OSError:  # /proc is not mounted
            boot = ""
        return cls(os.fsencode(socket.gethostname()).decode("utf-8", "replace"), boot, group, time.time_ns())

    def next(self) -> Session:
        """Return the session that begins when sequence numbers begin at 0 again; later also if a clock was set back."""
        return self._replace(started=max(time.time_ns(), self.started + 1))

    @property
    def id(self) -> str:
        """The session in one word."""
        return f"{self.host}/{self.boot}/{self.group}/{self.started}"


@dataclass
class Batch:
    """Messages of one session that were read together, in the order in which the kernel sent them."""

    session: Session
    """The session to which the messages belong."""
    messages: Sequence[LogMessage]
    """The messages; at least one."""
    lost: int = 0
    """The number of messages that the kernel lost before the first of them."""
    read_ns: int = field(default_factory=time.time_ns)
    """When they were read, in nanoseconds since 1970; used as the time of messages without one."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """The labels that the collector adds to each record."""

    def __len__(self) -> int:
        return len(self.messages)

    @property
    def size(self) -> int:
        """Bytes of the messages."""
        return sum(len(message.raw) for message in self.messages)


def remarks(batch: Batch, message: LogMessage) -> str:
    """What is known of a message besides what the kernel says, for people: ``user alice process curl[42] site=berlin``.

    The process is that which was found when the message was read; here none is looked for.
    """
    words = []
    if (name := user_name(message.uid, message.raw)) is not None:
        words.append(f"user {name}")
    raw = message.raw
    if isinstance(raw, Annotated) and (process := raw.process) is not None:
        words.append(f"process {process.name}[{process.pid}]")
    words += [f"{name}={value}" for name, value in batch.labels.items()]
    return printable(" ".join(words))


def consecutive(batch: Batch, expected: int) -> tuple[list[Batch], int]:
    """Return the batch as batches of consecutive messages, each with how many the kernel lost before it.

    A new session begins where sequence numbers begin at 0 again.

    expected: the number that the first message should have; 2^32 if that is the 0 of the next session. The second value
        that is returned is the same for the next batch.
    """
    messages = batch.messages
    first, last = messages[0].seq, messages[-1].seq
    if first is None or last is None:
        return [batch], expected
    if first == expected and last - first == len(messages) - 1:  # as a rule
        return [batch], last + 1
    found: list[Batch] = []
    session, start, lost = batch.session, 0, 0
    for place, message in enumerate(messages):
        number = message.seq or 0
        if number != expected:
            if place > start:
                found.append(Batch(session, messages[start:place], lost, batch.read_ns, batch.labels))
            if number < expected:
                expected -= _NUMBERS
                session = session.next()
            start, lost = place, number - expected
        expected = number + 1
    found.append(Batch(session, messages[start:], lost, batch.read_ns, batch.labels))
    return found, expected
