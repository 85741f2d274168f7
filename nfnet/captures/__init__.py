"""Captures: write and read pcap and pcapng files, record what a queue or log receives, and replay it.

`record` and `replay` are also available as ``nfnet.record`` and ``nfnet.replay``.
"""

from ._format import Direction
from ._link_types import LinkType
from ._reader import Record, is_capture, read, scan
from ._recorder import Recorder, record
from ._replay import GivenVerdict, Replay, ReplayOptions, replay
from ._writer import Writer

__all__ = [
    "Direction",
    "GivenVerdict",
    "LinkType",
    "Record",
    "Recorder",
    "Replay",
    "ReplayOptions",
    "Writer",
    "is_capture",
    "read",
    "record",
    "replay",
    "scan",
]
