"""A batch as bytes, for the spool, and for outputs and sources that transfer it between machines."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .._accounts import group_name, user_name
from .._annotated import Annotated
from .._processes import Process
from ..errors import DecodeError
from ..log import LogMessage
from ..protocol import byteorder, netlink
from ._batch import Batch, Session

VERSION = 1
_MOST_UNPACKED = 4 << 20  # bytes; a few compressed ones can expand to gigabytes
_MOST = 256 << 10  # bytes of all messages; a single one can have a little more than 64 KiB


class NewerError(DecodeError):
    """The bytes have a version that this nfnet does not know."""


def pieces(batch: Batch) -> Iterator[Batch]:
    """Yield the batch in pieces of at most 256 KiB: always the same pieces, since each has its own id."""
    start, size, lost = 0, 0, batch.lost
    for place, message in enumerate(batch.messages):
        if place > start and size + len(message.raw) > _MOST:
            yield Batch(batch.session, batch.messages[start:place], lost, batch.read_ns, batch.labels)
            start, size, lost = place, 0, 0
        size += len(message.raw)
    yield Batch(batch.session, batch.messages[start:], lost, batch.read_ns, batch.labels)


def joined(messages: Sequence[LogMessage]) -> bytes:
    """Return the messages as the kernel sent them, joined."""
    return b"".join(message.raw + bytes(-len(message.raw) % 4) for message in messages)


def names(messages: Sequence[LogMessage]) -> dict[int, str]:
    """Return the names of the interfaces in messages."""
    found = {}
    for message in messages:
        for index, name in (
            (message.indev, message.indev_name),
            (message.outdev, message.outdev_name),
            (message.physindev, message.physindev_name),
            (message.physoutdev, message.physoutdev_name),
        ):
            if index is not None and name is not None:
                found[index] = name
    return found


def notes(messages: Sequence[LogMessage], *, accounts: bool = False) -> dict[int, Any]:
    """Return what the collector added to messages (process, suppressed), by their positions.

    accounts: also the names of users and groups, for a machine with other accounts.
    """
    found = {}
    for place, message in enumerate(messages):
        raw, uid, gid = message.raw, message.uid, message.gid
        known = (user_name(uid, raw), group_name(gid, raw)) if accounts and (uid, gid) != (None, None) else None
        process, suppressed = (raw.process, raw.suppressed) if isinstance(raw, Annotated) else (None, 0)
        if process is not None or suppressed or known is not None:
            found[place] = process, suppressed, known
    return found


def split(data: bytes, names: Mapping[str, str], notes: Mapping[str, Any] | None) -> list[LogMessage]:
    """Return the messages from which `joined`, `names` and `notes` were made; these have been JSON in between."""
    known = {int(index): str(name) for index, name in names.items()}
    found = [raw for _, raw in netlink.split_messages(data)]
    for place, (values, suppressed, *accounts) in (notes or {}).items():
        process = None if values is None else Process(*values)
        if process is not None and process.command_line is not None:
            process = process._replace(command_line=tuple(process.command_line))  # JSON has no tuples
        pair = tuple(accounts[0]) if accounts and accounts[0] is not None else None
        raw = found[int(place)]
        found[int(place)] = Annotated(raw, process=process, accounts=pair, suppressed=int(suppressed))
    return [LogMessage.from_bytes(raw, known.get) for raw in found]


def pack(batch: Batch, *, compress: bool = False) -> bytes:
    """Return the batch as a line of JSON, followed by the messages as the kernel sent them."""
    data = joined(batch.messages)
    head = {
        "version": VERSION,
        "order": sys.byteorder,
        "compressed": compress,
        "session": batch.session,
        "read_ns": batch.read_ns,
        "lost": batch.lost,
        "labels": dict(batch.labels),
        "names": names(batch.messages),
        "notes": notes(batch.messages, accounts=True),
    }
    return json.dumps(head).encode() + b"\n" + (zlib.compress(data, 1) if compress else data)


def unpack(data: bytes) -> Batch:
    """Return the batch. Raises DecodeError if the bytes are not one, NewerError if a newer version wrote it."""
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
        labels = {str(name): str(value) for name, value in head["labels"].items()}
        if head["compressed"]:
            rest = zlib.decompressobj().decompress(rest, _MOST_UNPACKED)
        rest = byteorder.to_host(rest, head["order"])
        messages = split(rest, head["names"], head["notes"])
        if not messages:
            raise DecodeError("a batch without messages", len(line))
        for message in messages:
            message.hook  # noqa: B018  # what cannot be read is said here, where it came from is known
        return Batch(session, messages, int(head["lost"]), int(head["read_ns"]), labels)
    except (ValueError, TypeError, LookupError, AttributeError, zlib.error) as error:
        raise DecodeError(f"a damaged batch: {type(error).__name__}: {error}", 0) from None
