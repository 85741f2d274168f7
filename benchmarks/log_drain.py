"""Let many logged packets wait, read them, and print the cost of a message: nfnet and nflogr."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from typing import Any

from common import BUFFER, PORT, Drain, Draining, Handler, Program, options, run_case, write

import nfnet
from nfnet import rules
from nfnet._io.netlink_socket import SO_RCVBUFFORCE

GROUP = 5
THRESHOLD = 64
BUFFER_SIZE = 16384  # 64 messages fit; nflogr loses larger datagrams


def read(message: Any) -> None:
    message.payload  # noqa: B018
    message.prefix  # noqa: B018


def run_nfnet(handler: Handler, count: int, fill: Callable[[], None]) -> tuple[Drain, Callable[[], Any]]:
    transport = Draining(rcvbuf=BUFFER)
    log = nfnet.Log(GROUP, threshold=THRESHOLD, buffer_size=BUFFER_SIZE, timeout=0.1, transport=transport)
    log.open()
    fill()

    def finish() -> None:
        assert log.counters.received > count - THRESHOLD, log.counters
        log.close()

    return lambda: log.run(handler), finish


def run_nflogr(handler: Handler, count: int, fill: Callable[[], None]) -> tuple[Drain, Callable[[], Any]]:
    import nflogr

    log = nflogr.open(GROUP, qthresh=THRESHOLD, nlbuf=BUFFER_SIZE, timeout=0.1)
    with socket.socket(fileno=os.dup(log.getfd())) as same:  # its own rcvbuf stays below net.core.rmem_max
        same.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER // 2)
    fill()
    whole = count - count % THRESHOLD
    return lambda: log.loop(handler, whole), log.close


def run_compat(handler: Handler, count: int, fill: Callable[[], None]) -> tuple[Drain, Callable[[], Any]]:
    from nfnet.compat import nflogr

    log = nflogr.open(GROUP, qthresh=THRESHOLD, nlbuf=BUFFER_SIZE, timeout=0.1, rcvbuf=BUFFER // 2)
    fill()
    whole = count - count % THRESHOLD
    return lambda: log.loop(handler, whole), log.close


def main() -> int:
    found = options(__doc__, [50_000])
    programs: dict[str, tuple[Program, Handler]] = {"nfnet": (run_nfnet, read)}
    try:
        import nflogr  # noqa: F401

        programs["nflogr"] = (run_nflogr, read)
    except ImportError:
        print("nflogr is not there to compare with; see benchmarks/README.md\n")
    figures: list[dict[str, Any]] = []
    # Incoming packets: nflogr crashes on those without a timestamp, which is all that go out.
    with rules.log(GROUP, prefix="bench: ", hook="input", protocol="udp", destination_port=PORT):
        for count in found.packets:
            figures += run_case("read payload and prefix", programs, count, found.rounds, {"nflogr": 0.6})
            if "nflogr" in programs:  # the same script under both
                same: dict[str, tuple[Program, Handler]] = {"nfnet.compat": (run_compat, read), **programs}
                del same["nfnet"]
                figures += run_case("read payload and prefix", same, count, found.rounds, {"nflogr": 1.0})
    write(found.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
