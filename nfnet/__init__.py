"""Decide and log packets from Python: Linux NFQUEUE and NFLOG over a raw netlink socket.

import nfnet

with nfnet.Queue(1) as queue:
    for packet in queue:
        packet.drop() if packet.mark == 7 else packet.accept()

Packets to decide (NFQUEUE)
    Queue, AsyncQueue       a queue, in a plain program or in one with asyncio
    Packet                  one packet: what it is, and the verdict on it
    Workers, run_workers    several queues, a process each
    Verdict, CopyMode       what becomes of a packet; how much of it is copied
    Hook, Family, SkbInfo   where a packet was queued, and what the kernel says of its checksum
    Conntrack, CtInfo       its connection, and how it relates to that
    Process, process_of     the program on this machine that sends or receives it; the same for a five-tuple
    Vlan                    its VLAN tag, in the bridge family
    inject, INJECTED_MARK   send a packet of one's own; the mark of what is sent
    QueueOptions            the options of Queue, for functions that hand them on
    AcceptOptions           the same for Packet.accept

Packets that rules log (NFLOG)
    Log, AsyncLog           a log group, in a plain program or in one with asyncio
    LogMessage              one logged packet
    ArpHook, NetdevHook     where it was logged, in the families ARP and NETDEV
    LogOptions              the options of Log, for functions that hand them on

Recordings
    record, Recorder        to a file, what passes between the kernel and this program
    replay, Replay          a file in place of the kernel
    GivenVerdict            a verdict in it

Counters
    QueueCounters, QueueStatus, QueueStats      what a queue counts, what the kernel says of it, and both
    LogCounters, LogStatus, LogStats            the same for a log group
    SocketStatus                                how full the receive buffer is

Errors: all are NfnetError, and those of the kernel KernelError
    ArgumentError, ArgumentTypeError, NoElementError
                                                what cannot be right; nothing was sent
    AlreadyDecidedError, ClosedError, BusyReadingError
                                                a second verdict, a closed queue, a second loop
    NotPermittedError, BusyError, NotSupportedError, AckTimeoutError
                                                the kernel refuses, or does not answer
    OverrunError, DecodeError, CaptureError     packets were lost; a message or a file is damaged

Below
    Transport, NetlinkSocket                    the way to the kernel, or to what stands in for it

Modules: rules (what the firewall queues and logs), inet (headers, and how to change them), stats (all queues and logs
of the machine), collect (what rules log, to files and databases), testing, metrics, netns, doctor, compat
(NetfilterQueue and nflogr), protocol.
"""

import sys

# "python -m nfnet" puts the current directory first, so that the package is found. What the package itself imports is
# nobody's who can write there. (argv[0] is "-m" while the module is looked for, and the word before the arguments is
# its name, "-mnfnet" if they are one.)
if sys.argv[:1] == ["-m"] and not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
    _word = sys.orig_argv[-len(sys.argv)]
    if (_word.partition("m")[2] if _word.startswith("-") else _word) in ("nfnet", "nfnet.compat"):
        sys.path.pop(0)

__version__ = "0.1.0"

# The public modules, and what each of them has that is in this package, too. All are imported when somebody asks for
# them: construct, from which the protocol is made, takes longer than everything else, and a program that imports nfnet
# may not need it (or does not need asyncio, sqlite3, ...).
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

TYPE_CHECKING = False  # as type checkers have it; the module typing takes ten times as long to import as this one
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
else:  # a type checker would take every name for one of the module's

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in _PUBLIC_MODULES:
            return import_module(f"{__name__}.{name}")  # which makes it an attribute of this one
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
        value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value  # found there from now on, at no cost
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
