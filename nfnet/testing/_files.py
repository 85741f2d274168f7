"""Captures in tests: open one as a queue or log, or read the packets in it."""

from __future__ import annotations

import os
from typing import Protocol, overload

from .._typing import Unpack
from ..captures._replay import Replay, ReplayOptions
from ..errors import CaptureError
from ..log import Log, LogMessage
from ..packet import Packet
from ..queue import Queue
from ._messages import described, packet_message


class OpenReplay(Protocol):
    """The signature of `open_replay` and of the value of the fixture `nfnet_replay`."""

    @overload
    def __call__(self, path: str | os.PathLike[str], *, num: int, **options: Unpack[ReplayOptions]) -> Queue: ...

    @overload
    def __call__(self, path: str | os.PathLike[str], *, group: int, **options: Unpack[ReplayOptions]) -> Log: ...

    @overload
    def __call__(self, path: str | os.PathLike[str], **options: Unpack[ReplayOptions]) -> Queue | Log: ...


@overload
def open_replay(path: str | os.PathLike[str], *, num: int, **options: Unpack[ReplayOptions]) -> Queue: ...


@overload
def open_replay(path: str | os.PathLike[str], *, group: int, **options: Unpack[ReplayOptions]) -> Log: ...


@overload
def open_replay(path: str | os.PathLike[str], **options: Unpack[ReplayOptions]) -> Queue | Log: ...


def open_replay(
    path: str | os.PathLike[str],
    *,
    num: int | None = None,
    group: int | None = None,
    **options: Unpack[ReplayOptions],
) -> Queue | Log:
    """Open queue ``num`` or log group ``group`` of a capture, and return it (default: the first one in the file).

    Its transport is a `Replay`, whose ``options`` are ``hook``, ``local`` and ``family``. The packets of a file without
    messages of the kernel, an Ethernet capture for instance, form queue 0.

    Raises CaptureError if the file contains no such queue or group, or a damaged record before it.
    """
    replay = Replay(path, **options)
    try:
        if num is None and group is None:
            num, group = replay.first()
        if num is None and group is None:
            raise _nothing_in(replay)
        reader: Queue | Log = Log(group, transport=replay) if group is not None else Queue(num or 0, transport=replay)
        reader.open()
    except BaseException:
        replay.close()
        raise
    return reader


def from_pcap(path: str | os.PathLike[str], **options: Unpack[ReplayOptions]) -> list[Packet]:
    """Return the packets in a capture, which a test can examine and feed:

        for packet in from_pcap("web.pcap", local="192.0.2.0/24"):
            nfnet_queue.feed(packet)

    path: any file that `nfnet.replay` accepts. From a recording of several queues or logs the first one is read. Log
        messages become packets with the same attributes, except those that packets of a queue do not have.
    options: ``hook``, ``local`` and ``family``, as for `nfnet.replay`.

    The whole file is read at once; for a large file use `nfnet.replay`, or its fixture. These packets cannot be
    decided. Raises OSError, and CaptureError if the file contains no packets, or anything in it is damaged.
    """
    replay = Replay(path, keep_verdicts=False, **options)
    found: list[Packet] = []

    def keep(packet: Packet) -> None:
        found.append(Packet.from_bytes(packet.raw))
        packet.accept()

    def convert(message: LogMessage) -> None:
        found.append(Packet.from_bytes(packet_message(len(found) + 1, message.payload, **described(message))))

    try:
        num, group = replay.first()
        if num is None and group is None:
            raise _nothing_in(replay)
        if group is not None:
            with Log(group, transport=replay) as log:
                log.run(convert)
        else:
            with Queue(num or 0, transport=replay) as queue:
                queue.run(keep)
    finally:
        replay.close()
    return found


def _nothing_in(replay: Replay) -> CaptureError:
    left_out = replay.left_out()
    return CaptureError("no packets of a queue and no messages of a log in it" + (left_out and f": {left_out}"), 0)
