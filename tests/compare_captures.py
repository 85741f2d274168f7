"""Compare what nfnet and tshark read in capture files: python -m tests.compare_captures DIRECTORY...

Both read each capture in the directories: addresses, lengths, protocols, ports, TCP flags, sizes of TCP data,
link-layer addresses, times, and if the file contains them directions and names of interfaces. The program prints each
difference, with the number of the frame, and at the end how many files have no difference. With ``--record NAME`` it
stores how many there were in docs/captures, from where docs/link_types.py writes them to docs/captures.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import nfnet
from nfnet.captures import LinkType, Record, is_capture, scan
from nfnet.captures._frames import Found, Frames, interface_name
from nfnet.captures._link_layer import LINK_LAYERS
from nfnet.captures._records import link_type_name
from nfnet.protocol.nfnetlink import Hook, Subsystem

FIELDS = (
    "frame.number",
    "frame.time_epoch",
    "frame.protocols",
    "frame.interface_name",
    "frame.packet_flags_direction",
    "frame.p2p_dir",
    "pktap.flags",
    "sll.pkttype",
    "eth.src",
    "ip.src",
    "ip.dst",
    "ip.len",
    "ip.proto",
    "ip.ttl",
    "ipv6.src",
    "ipv6.dst",
    "ipv6.plen",
    "ipv6.hlim",
    "tcp.srcport",
    "tcp.dstport",
    "tcp.flags",
    "tcp.len",
    "udp.srcport",
    "udp.dstport",
    "udp.length",
)
# tshark dissects each packet by itself, also wrong headers, and shows ports as numbers.
SETTINGS = (
    "ip.defragment:FALSE",
    "ipv6.defragment:FALSE",
    "tcp.desegment_tcp_streams:FALSE",
    "ip.check_checksum:FALSE",
    "ip.tso_support:TRUE",
)
COOKED = {"0": Hook.INPUT, "1": Hook.INPUT, "2": Hook.INPUT, "3": Hook.FORWARD, "4": Hook.OUTPUT}
RESULTS = Path(__file__).parents[1] / "docs" / "captures"
POINT_TO_POINT = {"0": Hook.OUTPUT, "1": Hook.INPUT}


class Outcome(NamedTuple):
    """The result for a file.

    frames: how many are equal.
    packets: how many of these contain an IP packet, by link type.
    differences: the kind, the frame's number, tshark's value, nfnet's value.
    differ: how many frames have differences, by link type.
    refused: the error of tshark or nfnet at a damaged record.
    """

    path: Path
    frames: int
    packets: Counter[int]
    differences: list[tuple[str, int, Any, Any]]
    differ: Counter[int]
    refused: str | None = None


def tshark_frames(path: Path) -> tuple[dict[int, dict[str, str]], str]:
    """Return the fields of each frame, by its number, and tshark's error messages."""
    command = ["tshark", "-n", "-r", str(path), "-T", "fields", "-E", "occurrence=f", "-E", "separator=/t"]
    command += [word for setting in SETTINGS for word in ("-o", setting)]
    command += [word for field in FIELDS for word in ("-e", field)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    frames: dict[int, dict[str, str]] = {}
    for line in done.stdout.splitlines():
        values = dict(zip(FIELDS, line.split("\t")))
        if values["frame.protocols"] == "data" and not values["frame.time_epoch"]:
            continue  # a custom block, which it counts
        if values["frame.number"].isdecimal():
            frames[len(frames) + 1] = values
    said = [line for line in done.stderr.splitlines() if line.startswith("tshark:")]
    return frames, said[0] if said else ""


def our_frames(path: Path) -> Iterator[tuple[Record | nfnet.CaptureError, nfnet.Packet | None]]:
    """Yield each record, and the packet in it."""
    frames = Frames(None, (), "inet")
    with path.open("rb") as file:
        for item in scan(file):
            assert item is not None
            packet = None
            if isinstance(item, Record) and item.link_type in LINK_LAYERS:
                try:
                    found = frames.find(item)
                except nfnet.CaptureError:
                    found = 0
                if isinstance(found, Found):
                    raw = frames.message(Subsystem.QUEUE, 1, item.number, item, found)
                    name = interface_name(item)
                    packet = nfnet.Packet.from_bytes(raw, lambda _, name=name: name)  # type: ignore[misc]
            yield item, packet


def differences(record: Record, packet: nfnet.Packet | None, theirs: dict[str, str]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the differences in a frame: the field, tshark's value, nfnet's value."""
    seconds, nanoseconds = divmod(record.time_ns or 0, 10**9)
    time = f"{seconds}.{nanoseconds:09}"
    if theirs["frame.time_epoch"] not in (time, ""):
        yield "time", theirs["frame.time_epoch"], time
    if record.link_type not in LINK_LAYERS and theirs["frame.protocols"].startswith(("netlink", "nflog")):
        return  # the kernel's messages
    version = 4 if theirs["ip.src"] else 6 if theirs["ipv6.src"] else None
    if theirs["ip.src"] and theirs["ipv6.src"]:  # one in the other
        protocols = theirs["frame.protocols"].split(":")
        version = 4 if protocols.index("ip") < protocols.index("ipv6") else 6
    ip = None if packet is None else packet.ip
    if (ip and ip.version) != version:
        if record.link_type not in LINK_LAYERS:
            yield link_type_name(record.link_type), theirs["frame.protocols"], "none"
            return
        said = "none" if packet is None else "a packet without an IP header" if ip is None else f"IPv{ip.version}"
        yield "IP or not", theirs["frame.protocols"], said
        return
    if packet is None or ip is None:
        return
    names = ("ip.src", "ip.dst", "ip.ttl") if version == 4 else ("ipv6.src", "ipv6.dst", "ipv6.hlim")
    for name, ours in zip(names, (ip.source, ip.destination, str(ip.ttl))):
        if theirs[name] != ours:
            yield name, theirs[name], ours
    if version == 4 and theirs["ip.proto"] != str(ip.protocol):
        yield "ip.proto", theirs["ip.proto"], ip.protocol
    length = int(theirs["ip.len"] or 0) if version == 4 else int(theirs["ipv6.plen"] or 0) + 40
    if length != ip.length and (version == 4 or length != 40):
        yield "length", length, ip.length
    tcp, udp = packet.tcp, packet.udp
    if tcp is not None and theirs["tcp.srcport"]:
        for name, number in (("tcp.srcport", tcp.source_port), ("tcp.dstport", tcp.destination_port)):
            if theirs[name] != str(number):
                yield name, theirs[name], number
        if theirs["tcp.flags"] and int(theirs["tcp.flags"], 16) & 0xFF != tcp.flags:
            yield "tcp.flags", theirs["tcp.flags"], tcp.flags
        if theirs["tcp.len"] not in ("", str(len(tcp.data))) and not packet.truncated:
            yield "tcp.len", theirs["tcp.len"], len(tcp.data)
    elif (tcp is not None) != (ip.protocol == 6 and not ip.fragment and bool(theirs["tcp.srcport"])):
        yield "TCP or not", theirs["frame.protocols"], tcp
    if udp is not None and theirs["udp.srcport"]:
        for name, number in (("udp.srcport", udp.source_port), ("udp.dstport", udp.destination_port)):
            if theirs[name] != str(number):
                yield name, theirs[name], number
    elif udp is not None:
        yield "UDP or not", theirs["frame.protocols"], udp
    if record.link_type == LinkType.ETHERNET and packet.hwaddr and packet.hwaddr.hex(":") != theirs["eth.src"]:
        yield "eth.src", theirs["eth.src"], packet.hwaddr.hex(":")
    hook = COOKED.get(theirs["sll.pkttype"]) or POINT_TO_POINT.get(theirs["frame.p2p_dir"])
    flags = theirs["pktap.flags"] or theirs["frame.packet_flags_direction"]
    if hook is None and flags:
        hook = {1: Hook.INPUT, 2: Hook.OUTPUT}.get(int(flags, 0) & 3)
    if packet.hook != (Hook.PREROUTING if hook is None else hook):
        yield "hook", hook, packet.hook
    ours = packet.outdev_name if packet.hook == Hook.OUTPUT else packet.indev_name
    if theirs["frame.interface_name"] not in ("", "any", "unknown", ours):
        yield "interface", theirs["frame.interface_name"], ours


def compare(path: Path) -> Outcome:
    """Compare what both read in a file."""
    theirs, complaint = tshark_frames(path)
    found: list[tuple[str, int, Any, Any]] = []
    packets: Counter[int] = Counter()
    differ: Counter[int] = Counter()
    frames = 0
    error: str | None = None
    for record, packet in our_frames(path):
        if isinstance(record, nfnet.CaptureError):
            error = str(record)
            continue
        if record.number not in theirs:
            if not complaint:
                found.append(("frame", record.number, "none", "a record"))
            continue
        before = len(found)
        for name, wanted, got in differences(record, packet, theirs.pop(record.number)):
            found.append((name, record.number, wanted, got))
        if len(found) > before:
            differ[record.link_type] += 1
        else:
            frames += 1
            packets[record.link_type] += packet is not None
    if theirs and error is None:
        found.append(("frame", min(theirs), f"{len(theirs)} more", "none"))
    return Outcome(path, frames, packets, found, differ, complaint or error)


def captures(places: list[Path]) -> Iterator[Path]:
    """Yield the files in these directories that begin like a capture."""
    for place in places:
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file() and is_capture(path.open("rb").read(4)):
                yield path


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares what nfnet and tshark read in captures.")
    parser.add_argument("place", nargs="+", type=Path, help="a directory, or a file")
    parser.add_argument("--jobs", type=int, default=2, help="how many run at once [%(default)s]")
    parser.add_argument("--show", type=int, default=3, help="differences shown of a file [%(default)s]")
    parser.add_argument("--record", metavar="NAME", help="store the numbers under this name of a test suite")
    options = parser.parse_args()
    files = agree = frames = refused = 0
    packets: Counter[int] = Counter()
    differ: Counter[int] = Counter()
    kinds: Counter[str] = Counter()
    with ThreadPoolExecutor(options.jobs) as pool:
        for outcome in pool.map(compare, captures(options.place)):
            files += 1
            frames += outcome.frames
            packets += outcome.packets
            differ += outcome.differ
            refused += outcome.refused is not None
            agree += not outcome.differences
            kinds.update(kind for kind, *_ in outcome.differences)
            if outcome.differences:
                print(f"{outcome.path}: {len(outcome.differences)} differences; {outcome.refused or 'read by both'}")
            for kind, number, wanted, got in outcome.differences[: options.show]:
                print(f"    frame {number}: {kind}: tshark {wanted}, nfnet {got!s:.200}", flush=True)
    print(f"{files} files, {agree} agree in all of their frames; {refused} are damaged, or not read by tshark")
    print(f"{frames} frames agree, {packets.total()} of them contain packets of IP")
    for kind, number in kinds.most_common():
        print(f"    {number} differences in {kind}")
    if options.record:
        by_type = {int(kind): (packets[kind], differ[kind]) for kind in sorted(packets | differ)}
        numbers = {"files": files, "agree": agree, "damaged": refused, "frames": frames, "link types": by_type}
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{options.record}.json").write_text(json.dumps(numbers, indent=1) + "\n")
    return agree != files


if __name__ == "__main__":
    sys.exit(main())
