"""A batch as bytes, for outputs and sources that hand it from one machine to another."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Iterator
from typing import Any

from ..errors import DecodeError
from ..log import LogMessage
from ..protocol import byteorder, netlink
from ._batch import Batch, Session

VERSION = 1
_MOST_UNPACKED = 4 << 20  # bytes; a few could say that they were gigabytes
_MOST = 256 << 10  # bytes of messages together; one alone may have a little more than 64 KiB


class NewerError(DecodeError):
    """The bytes are of a version that is not known here."""


def pieces(batch: Batch) -> Iterator[Batch]:
    """The batch in pieces of at most 256 KiB: always the same ones, for each has an id of its own."""
    start, size, lost = 0, 0, batch.lost
    for place, message in enumerate(batch.messages):
        if place > start and size + len(message.raw) > _MOST:
            yield Batch(batch.session, batch.messages[start:place], lost, batch.read_ns, batch.labels)
            start, size, lost = place, 0, 0
        size += len(message.raw)
    yield Batch(batch.session, batch.messages[start:], lost, batch.read_ns, batch.labels)


def pack(batch: Batch, *, compress: bool = False) -> bytes:
    """A line of JSON, and the messages as the kernel sent them."""
    names = {}
    for message in batch.messages:
        for index, name in (
            (message.indev, message.indev_name),
            (message.outdev, message.outdev_name),
            (message.physindev, message.physindev_name),
            (message.physoutdev, message.physoutdev_name),
        ):
            if index is not None and name is not None:
                names[index] = name
    data = b"".join(message.raw + bytes(-len(message.raw) % 4) for message in batch.messages)
    head = {
        "version": VERSION,
        "order": sys.byteorder,
        "compressed": compress,
        "session": batch.session,
        "read_ns": batch.read_ns,
        "lost": batch.lost,
        "labels": dict(batch.labels),
        "names": names,
    }
    return json.dumps(head).encode() + b"\n" + (zlib.compress(data, 1) if compress else data)


def unpack(data: bytes) -> Batch:
    """The batch. Raises DecodeError if it is none, NewerError if a newer version wrote it."""
    line, _, rest = data.partition(b"\n")
    try:
        head: dict[str, Any] = json.loads(line)
        version = int(head["version"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise DecodeError("this is no batch of log messages", 0) from None
    if version > VERSION:
        raise NewerError(f"a batch of version {version}; known is {VERSION}", 0)
    try:
        host, boot, group, started = head["session"]
        session = Session(str(host), str(boot), int(group), int(started))
        names = {int(index): str(name) for index, name in head["names"].items()}
        labels = {str(name): str(value) for name, value in head["labels"].items()}
        if head["compressed"]:
            rest = zlib.decompressobj().decompress(rest, _MOST_UNPACKED)
        rest = byteorder.to_host(rest, head["order"])
        messages = [LogMessage.from_bytes(raw, names.get) for _, raw in netlink.split_messages(rest)]
        if not messages:
            raise DecodeError("a batch without messages", len(line))
        for message in messages:
            message.hook  # noqa: B018  # what cannot be read is said here, where it came from is known
        return Batch(session, messages, int(head["lost"]), int(head["read_ns"]), labels)
    except (ValueError, TypeError, KeyError, AttributeError, zlib.error) as error:
        raise DecodeError(f"a damaged batch: {type(error).__name__}: {error}", 0) from None
