"""Decide and log packets from Python: Linux NFQUEUE and NFLOG over a raw netlink socket.

import nfnet

with nfnet.Queue(1) as queue:
    for packet in queue:
        packet.drop() if packet.mark == 7 else packet.accept()

Packets to decide (NFQUEUE)
    Queue, AsyncQueue       a queue, in a plain program or in one with asyncio
    Packet                  one packet: what it is, and the verdict on it
    Workers, run_workers    several queues, a process each
    Verdict, CopyMode       the kinds of verdict; how much of a packet is copied
    Hook, Family, SkbInfo   where a packet was queued; the state of its checksum and segmentation
    Conntrack, CtInfo       the packet's connection; the packet's relation to that connection
    Process, process_of     the local program that sends or receives a packet; the same for a five-tuple
    Vlan                    the packet's VLAN tag, in the bridge family
    inject, INJECTED_MARK   send a new packet; the mark of such packets
    QueueOptions            the options of Queue, for functions that pass them on
    AcceptOptions           the same for Packet.accept

Packets that rules log (NFLOG)
    Log, AsyncLog           a log group, in a plain program or in one with asyncio
    LogMessage              one logged packet
    ArpHook, NetdevHook     where a packet was logged, in the families ARP and NETDEV
    LogOptions              the options of Log, for functions that pass them on

Recordings
    record, Recorder        write the messages between the kernel and this program to a file
    replay, Replay          read packets from a file instead of from the kernel
    GivenVerdict            a verdict given during a replay

Counters
    QueueCounters, QueueStatus, QueueStats      the counters of a queue, its status in the kernel, and both
    LogCounters, LogStatus, LogStats            the same for a log group
    SocketStatus                                how full the receive buffer is

Errors: all derive from NfnetError, and those of the kernel from KernelError
    ArgumentError, ArgumentTypeError, NoElementError
                                                an invalid argument; nothing was sent
    AlreadyDecidedError, ClosedError, BusyReadingError
                                                a second verdict, a closed queue, a second reader
    NotPermittedError, BusyError, NotSupportedError, AckTimeoutError
                                                the kernel refuses a request, or does not answer
    OverrunError, DecodeError, CaptureError     packets were lost; a message or file is damaged

Transports
    Transport, NetlinkSocket                    the connection to the kernel, and the interface of its substitutes

Modules: rules (firewall rules that queue and log packets), inet (read and change headers), stats (all queues and logs
of the machine), collect (store logged packets in files and databases), testing, metrics, netns, doctor, compat
(NetfilterQueue and nflogr), protocol.
"""

import sys

# "python -m nfnet" puts the current directory first in sys.path, so that Python finds the package. Modules that the
# package imports must not come from that directory, where other users may be able to write. (While Python looks for the
# module, argv[0] is "-m". The word before the arguments is the module's name, or "-mnfnet" in one word.)
if sys.argv[:1] == ["-m"] and not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
    _word = sys.orig_argv[-len(sys.argv)]
    if (_word.partition("m")[2] if _word.startswith("-") else _word) in ("nfnet", "nfnet.compat"):
        sys.path.pop(0)

__version__ = "0.1.0"

# The public modules, and the names that this package takes from each of them. A module is imported when a program first
# uses one of its names: construct, from which the protocol is built, takes longer to import than everything else, and
# many programs do not need it (or asyncio, sqlite3, ...).
_MODULES = {
    "_core.message": ("Vlan",),
    "_injection": ("inject",),
    "_io.netlink_socket": ("NetlinkSocket",),
    "_io.raw_socket": ("INJECTED_MARK",),
    "_io.transport": ("SocketStatus", "Transport"),
    "_processes": ("Process", "process_of"),
    "aio": ("AsyncLog", "AsyncQueue"),
    "captures": ("GivenVerdict", "Recorder", "Replay", "record", "replay"),
    "collect": (),
    "compat": (),
    "doctor": (),
    "errors": (
        "AckTimeoutError",
        "AlreadyDecidedError",
        "ArgumentError",
        "ArgumentTypeError",
        "BusyError",
        "BusyReadingError",
        "CaptureError",
        "ClosedError",
        "DecodeError",
        "KernelError",
        "NfnetError",
        "NoElementError",
        "NotPermittedError",
        "NotSupportedError",
        "OverrunError",
    ),
    "inet": (),
    "log": ("Log", "LogMessage", "LogOptions"),
    "metrics": (),
    "netns": (),
    "packet": ("AcceptOptions", "Packet"),
    "protocol": (),
    "protocol.conntrack": ("Conntrack", "CtInfo"),
    "protocol.nfnetlink": ("ArpHook", "Family", "Hook", "NetdevHook"),
    "protocol.nfqnl": ("CopyMode", "SkbInfo", "Verdict"),
    "queue": ("Queue", "QueueOptions"),
    "rules": (),
    "stats": ("LogCounters", "LogStats", "LogStatus", "QueueCounters", "QueueStats", "QueueStatus"),
    "testing": (),
    "workers": ("Workers", "run_workers"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
_PUBLIC_MODULES = [name for name in _MODULES if "." not in name and not name.startswith("_")]

TYPE_CHECKING = False  # type checkers know this name; importing typing takes ten times as long as this module
if TYPE_CHECKING:
    from . import aio as aio
    from . import captures as captures
    from . import collect as collect
    from . import compat as compat
    from . import doctor as doctor
    from . import errors as errors
    from . import inet as inet
    from . import log as log
    from . import metrics as metrics
    from . import netns as netns
    from . import packet as packet
    from . import protocol as protocol
    from . import queue as queue
    from . import rules as rules
    from . import stats as stats
    from . import testing as testing
    from . import workers as workers
    from ._core.message import Vlan
    from ._injection import inject
    from ._io.netlink_socket import NetlinkSocket
    from ._io.raw_socket import INJECTED_MARK
    from ._io.transport import SocketStatus, Transport
    from ._processes import Process, process_of
    from .aio import AsyncLog, AsyncQueue
    from .captures import GivenVerdict, Recorder, Replay, record, replay
    from .errors import (
        AckTimeoutError,
        AlreadyDecidedError,
        ArgumentError,
        ArgumentTypeError,
        BusyError,
        BusyReadingError,
        CaptureError,
        ClosedError,
        DecodeError,
        KernelError,
        NfnetError,
        NoElementError,
        NotPermittedError,
        NotSupportedError,
        OverrunError,
    )
    from .log import Log, LogMessage, LogOptions
    from .packet import AcceptOptions, Packet
    from .protocol.conntrack import Conntrack, CtInfo
    from .protocol.nfnetlink import ArpHook, Family, Hook, NetdevHook
    from .protocol.nfqnl import CopyMode, SkbInfo, Verdict
    from .queue import Queue, QueueOptions
    from .stats import LogCounters, LogStats, LogStatus, QueueCounters, QueueStats, QueueStatus
    from .workers import Workers, run_workers
else:  # a type checker would accept every name as an attribute of the module

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in _PUBLIC_MODULES:
            return import_module(f"{__name__}.{name}")  # this also makes it an attribute of this package
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
        value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value  # from now on Python finds it there without calling this function
        return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_PUBLIC_MODULES, "__doc__", "__version__"})


__all__ = [
    "INJECTED_MARK",
    "AcceptOptions",
    "AckTimeoutError",
    "AlreadyDecidedError",
    "ArgumentError",
    "ArgumentTypeError",
    "ArpHook",
    "AsyncLog",
    "AsyncQueue",
    "BusyError",
    "BusyReadingError",
    "CaptureError",
    "ClosedError",
    "Conntrack",
    "CopyMode",
    "CtInfo",
    "DecodeError",
    "Family",
    "GivenVerdict",
    "Hook",
    "KernelError",
    "Log",
    "LogCounters",
    "LogMessage",
    "LogOptions",
    "LogStats",
    "LogStatus",
    "NetdevHook",
    "NetlinkSocket",
    "NfnetError",
    "NoElementError",
    "NotPermittedError",
    "NotSupportedError",
    "OverrunError",
    "Packet",
    "Process",
    "Queue",
    "QueueCounters",
    "QueueOptions",
    "QueueStats",
    "QueueStatus",
    "Recorder",
    "Replay",
    "SkbInfo",
    "SocketStatus",
    "Transport",
    "Verdict",
    "Vlan",
    "Workers",
    "inet",
    "inject",
    "process_of",
    "record",
    "replay",
    "rules",
    "run_workers",
    "stats",
]
