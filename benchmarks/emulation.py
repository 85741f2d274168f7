"""Measure the emulated bad line of `nfnet queue` at the receiver: rate, delay and order.

Sender, router (with the command) and receiver are separate processes in separate network namespaces. The sender sends
UDP packets at a constant rate. Each contains the time of sending, and the kernel timestamps it as it arrives.

The machine should be idle, or these processes need a higher priority:

    nice -n -20 make bench ARGS="emulation --seconds 3"
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator

from nfnet import netns
from nfnet._io.netlink_socket import SO_SNDBUFFORCE

PORT = 9
RULE = f"hook=forward protocol=udp destination_port={PORT}"
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 33, 35
_MEMORY = 1 << 28

_SEND = f"""
import socket, struct, sys, time
rate, count, size = map(int, sys.argv[1:])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(socket.SOL_SOCKET, {SO_SNDBUFFORCE}, {_MEMORY})
    sock.connect(("10.81.2.2", {PORT}))
    rest = bytes(size - 28 - 12)
    began = time.perf_counter()
    for number in range(count):
        while time.perf_counter() < began + number / rate:
            time.sleep(0.00005)
        sock.send(struct.pack("=Iq", number, time.time_ns()) + rest)
"""


CLIENT, SERVER = netns.create(), netns.create()


def connect() -> None:
    """Make this process's namespace a router between the two others."""
    from pyroute2 import IPRoute

    netns.unshare(netns.CLONE_NEWNET)
    with open("/proc/sys/net/ipv4/ip_forward", "w") as file:
        file.write("1")
    for number, host in ((1, CLIENT), (2, SERVER)):
        with IPRoute() as ip:
            ip.link("add", ifname=f"v{number}", kind="veth", peer={"ifname": "v", "net_ns_fd": host.fileno()})
            index = ip.link_lookup(ifname=f"v{number}")[0]
            ip.addr("add", index=index, address=f"10.81.{number}.1", prefixlen=24)
            ip.link("set", index=index, state="up")

        def configure(number: int = number) -> None:
            with IPRoute() as ip:
                index = ip.link_lookup(ifname="v")[0]
                ip.addr("add", index=index, address=f"10.81.{number}.2", prefixlen=24)
                ip.link("set", index=index, state="up")
                ip.route("add", dst="default", gateway=f"10.81.{number}.1")

        netns.call_in(host, configure)


@contextlib.contextmanager
def line(*options: str) -> Iterator[subprocess.Popen[str]]:
    """The command, when its rule is there."""
    command = [sys.executable, "-m", "nfnet", "queue", "1", "-q", "--install-rule", RULE, *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not _is_bound():
            time.sleep(0.01)
            assert process.poll() is None
        yield process
        with open(f"/proc/{process.pid}/stat") as file:
            ticks = sum(map(int, file.read().rpartition(")")[2].split()[11:13]))
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
        print(f"    {ticks / os.sysconf('SC_CLK_TCK'):.2f} s of processor time; {said.splitlines()[-1]}")


def _is_bound() -> bool:
    with open("/proc/thread-self/net/netfilter/nfnetlink_queue") as file:
        return bool(file.read())


def arrivals(rate: int, count: int, size: int) -> list[tuple[int, int, int]]:
    """Send packets, and return the number and times of sending and receiving (ns) of each that arrives."""
    found = []
    with netns.call_in(SERVER, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _MEMORY)
        receiver.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        receiver.bind(("10.81.2.2", PORT))
        command = [sys.executable, "-S", "-c", _SEND, str(rate), str(count), str(size)]
        with netns.call_in(CLIENT, lambda: subprocess.Popen(command)) as sender:
            while select.select([receiver], [], [], 0.5)[0] or sender.poll() is None:
                if not select.select([receiver], [], [], 0)[0]:
                    continue
                data, ancillary, _, _ = receiver.recvmsg(2000, 100)
                seconds, nanoseconds = struct.unpack("=qq", ancillary[0][2])
                number, sent = struct.unpack("=Iq", data[:12])
                found.append((number, sent, seconds * 10**9 + nanoseconds))
    return found


def report(name: str, wanted: str, got: str, row: dict[str, object]) -> dict[str, object]:
    """Print a line."""
    print(f"{name:<28} asked for {wanted:<16} {got}", flush=True)
    return {"case": name, "asked": wanted, **row}


def order(found: list[tuple[int, int, int]]) -> float:
    """How many of a hundred were overtaken (RFC 4737)."""
    newest, late = -1, 0
    for number, _, _ in found:
        late += number < newest
        newest = max(newest, number)
    return 100 * late / len(found)


def measure_rate(text: str, offered: int, size: int, seconds: float) -> dict[str, object]:
    """Send more than the rate, and measure the rate of arrival between the first packet and the last before the end."""
    with line("--rate", text):
        found = arrivals(offered, int(offered * seconds), size)
    times = [received for _, _, received in found]
    end = times[0] + int(seconds * 1e9)  # packets that still wait leave afterwards, at the same rate
    times = [moment for moment in times if moment <= end]
    packets = (len(times) - 1) / (times[-1] - times[0]) * 1e9
    got = packets if text.endswith("pps") else packets * size * 8
    number, unit = re.fullmatch(r"([\d.]+)(\w+)", text).groups()  # type: ignore[union-attr]
    factor = {"mbit": 1e6, "kbit": 1e3, "kB": 8e3, "MB": 8e6, "pps": 1}[unit]
    ratio = got / (float(number) * factor)
    shown = f"{float(number) * ratio:.4g}{unit} ({100 * (ratio - 1):+.2f} %), {order(found):.2f} % out of order"
    return report(f"rate, {size} bytes", text, shown, {"ratio": ratio, "out of order": order(found)})


def measure_delay(text: str, pace: int, size: int, seconds: float, *options: str) -> dict[str, object]:
    """Return how much longer than requested packets take."""
    with line("--delay", text, *options):
        found = arrivals(pace, int(pace * seconds), size)
    errors = sorted((received - sent) / 1e6 - float(text) for _, sent, received in found)
    at = {
        name: errors[min(int(len(errors) * part), len(errors) - 1)]
        for name, part in (("least", 0), ("median", 0.5), ("90 %", 0.9), ("99 %", 0.99), ("99.9 %", 0.999), ("most", 1))
    }
    within = 100 * sum(abs(error) <= 1 for error in errors) / len(errors)
    shown = ", ".join(f"{name} {value:+.3f}" for name, value in at.items())
    shown = f"error in ms: {shown}; {within:.2f} % within 1 ms, {order(found):.2f} % out of order, {len(found)} came"
    return report(f"delay, {pace:,} a second", f"{text} ms", shown, {"errors": at, "within 1 ms": within})


def measure_chance(option: str, text: str, pace: int, count: int) -> dict[str, object]:
    """How many of a hundred are lost, twice or late."""
    with line(f"--{option}", text, "--seed", "1"):
        found = arrivals(pace, count, 100)
    got = {
        "loss": 100 * (1 - len(found) / count),
        "duplicate": 100 * (len(found) / count - 1),
        "reorder": order(found),
    }[option]
    return report(option, f"{text} %", f"{got:.2f} %", {"got": got})


def main() -> None:
    """Measure everything, or only the named parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--only", choices=("rate", "delay", "chance"))
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    connect()
    print(f"Python {sys.version.split()[0]}, Linux {os.uname().release}\n")
    rows = []
    if options.only in (None, "rate"):
        for text, offered, size in (
            ("1mbit", 300, 1000),
            ("20mbit", 4000, 1000),
            ("500kB", 8000, 100),
            ("200pps", 1000, 100),
            ("5000pps", 8000, 100),
        ):
            rows.append(measure_rate(text, offered, size, options.seconds))
    if options.only in (None, "delay"):
        for text, pace, more in (
            ("50", 100, ()),
            ("50", 1000, ()),
            ("50", 10_000, ()),
            ("200", 10_000, ()),
            ("50", 10_000, ("--rate", "100mbit")),
        ):
            rows.append(measure_delay(text, pace, 100, options.seconds, *more))
    if options.only in (None, "chance"):
        for option, text in (("loss", "3"), ("duplicate", "3"), ("reorder", "3"), ("reorder", "25")):
            rows.append(measure_chance(option, text, 5000, int(5000 * options.seconds)))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
