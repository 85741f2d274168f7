"""Captures: write and read pcap and pcapng files, record what a queue or log receives, and replay it.

`record` and `replay` are also there as ``nfnet.record`` and ``nfnet.replay``.
"""

from ._pcap import LinkType, Record, Writer, is_capture, read, scan
from ._recorder import Recorder, record
from ._replay import GivenVerdict, Replay, replay

__all__ = [
    "GivenVerdict",
    "LinkType",
    "Record",
    "Recorder",
    "Replay",
    "Writer",
    "is_capture",
    "read",
    "record",
    "replay",
    "scan",
]
