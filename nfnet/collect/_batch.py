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


class Session(NamedTuple):
    """One time of a group being bound, on one machine: with `LogMessage.seq` it identifies a message anywhere."""

    host: str
    boot: str
    """The kernel's id of this boot (``/proc/sys/kernel/random/boot_id``)."""
    group: int
    started: int
    """When it was bound, in nanoseconds since 1970: sequence numbers begin at 0 with each binding."""

    @classmethod
    def begin(cls, group: int) -> Session:
        """Begin the session of a group that is being bound now."""
        try:
            with open("/proc/sys/kernel/random/boot_id") as file:
                boot = file.read().strip()
        except OSError:  # /proc is not mounted
            boot = ""
        return cls(os.fsencode(socket.gethostname()).decode("utf-8", "replace"), boot, group, time.time_ns())

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


def split_at_losses(batch: Batch, expected: int | None) -> tuple[list[Batch], int | None]:
    """The batch in pieces without a gap, each with how many the kernel lost before it; and the next number expected.

    expected: the number that the first message should have; None if any is right.
    """
    found: list[Batch] = []
    messages = batch.messages
    start, count = 0, len(messages)
    first, last = (messages[0].seq, messages[-1].seq) if count else (None, None)
    if first is None or last is None:
        return [batch], expected
    if expected is None:
        expected = first
    if first == expected and (last - first) & 0xFFFFFFFF == count - 1:  # as a rule
        return [batch], (last + 1) & 0xFFFFFFFF
    lost = 0
    for place, message in enumerate(messages):
        missing = ((message.seq or 0) - expected) & 0xFFFFFFFF
        if missing:
            if place > start:
                found.append(Batch(batch.session, messages[start:place], lost, batch.read_ns, batch.labels))
            start, lost = place, missing
        expected = ((message.seq or 0) + 1) & 0xFFFFFFFF
    found.append(Batch(batch.session, messages[start:], lost, batch.read_ns, batch.labels))
    return found, expected
