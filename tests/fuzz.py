"""Any bytes as a netlink datagram, a capture or a packet: `make fuzz`, bounded by the number of examples.

Seeds are the recordings in tests/fixtures, damaged: cut, overwritten, with pieces of others in them.
"""

from __future__ import annotations

import contextlib
import io
import random
import resource
import sys
import time
from pathlib import Path

import nfnet
from nfnet import inet
from nfnet.capture import netfilter_datagram, read
from nfnet.protocol import byteorder, conntrack, netlink, nfqnl, nfulnl
from nfnet.testing import FakeKernel

FIXTURES = Path(__file__).parent / "fixtures"
READERS = (
    lambda data: list(netlink.split_messages(data)),
    netlink.parse_answer,
    nfqnl.layouts.find,
    nfulnl.layouts.find,
    lambda data: nfqnl.normalized(data, 1),
    conntrack.parse,
    inet.get_data,
    inet.protocol,
    inet.ip,
    inet.tcp,
    inet.udp,
    inet.icmp,
    inet.flow,
    lambda data: inet.replace_data(data, b"new"),
    lambda data: inet.rewrite(data, ttl=1, source_port=5, seq=1),
    lambda data: inet.rewrite(data, source="192.0.2.1", destination="192.0.2.2", tos=1),
    lambda data: inet.rewrite(data, source="fd00::1", destination_port=9),
    lambda data: list(read(io.BytesIO(data))),
    lambda data: byteorder.to_host(data, "little"),
    lambda data: byteorder.to_host(data, "big"),
)


def damaged(choose: random.Random, seeds: list[bytes]) -> bytes:
    """One of the seeds, more or less."""
    data = bytearray(choose.choice(seeds))
    for _ in range(choose.randint(0, 4)):
        place = choose.randint(0, len(data))
        kind = choose.randrange(4)
        if kind == 0:
            del data[place:]
        elif kind == 1:
            noise = choose.randbytes(choose.randint(1, 8))
            data[place : place + len(noise)] = noise
        elif kind == 2:
            other = choose.choice(seeds)
            start = choose.randint(0, len(other))
            data[place:place] = other[start : start + choose.randint(0, 64)]
        else:
            data[place : place + 4] = choose.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\4\0\1"))
    return bytes(data)


def properties(kind: type) -> list[str]:
    return [name for name in dir(kind) if isinstance(getattr(kind, name), property)]


PACKET, MESSAGE = properties(nfnet.Packet), properties(nfnet.LogMessage)


def touch(item: object, names: list[str]) -> None:
    for name in names:
        with contextlib.suppress(nfnet.NfnetError):
            getattr(item, name)


def try_readers(data: bytes) -> None:
    for reader in READERS:
        with contextlib.suppress(nfnet.NfnetError):
            reader(data)


def try_loops(data: bytes) -> None:
    kernel = FakeKernel(ends=True)
    kernel.trusted = False
    with nfnet.Queue(1, transport=kernel) as queue:
        kernel.deliver(data)
        for _ in range(2):
            with contextlib.suppress(nfnet.NfnetError):
                queue.run(lambda packet: (touch(packet, PACKET), packet.accept()))
    kernel = FakeKernel(ends=True)
    kernel.trusted = False
    log = nfnet.Log(5, transport=_NoRequests(kernel), sequence=True)
    log.open()
    kernel.deliver(data)
    for _ in range(2):
        with contextlib.suppress(nfnet.NfnetError):
            log.run(lambda message: touch(message, MESSAGE))
    log.close()


class _NoRequests:
    """A transport that only receives."""

    trusted = False

    def __init__(self, kernel: FakeKernel) -> None:
        self.receive, self.fileno = kernel.receive, kernel.fileno
        self.interface_name, self.close = kernel.interface_name, kernel.close

    def send(self, datagram: bytes) -> None: ...

    def request(self, build: object, operation: str) -> None: ...


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 30)
    files = [path.read_bytes() for path in FIXTURES.glob("*.pcapng") if path.stat().st_size < 5000]
    datagrams = [netfilter_datagram(record) or b"" for file in files for record in read(io.BytesIO(file))]
    packets = [b for d in datagrams if nfqnl.is_packet(d) and (b := d[nfqnl.layouts.find(d).payload])]
    choose = random.Random(seed)
    began, slowest = time.monotonic(), 0.0
    for number in range(count):
        data = damaged(choose, choose.choice((files, datagrams, datagrams, packets)))
        start = time.perf_counter()
        try:
            try_readers(data)
            if number % 10 == 0:
                try_loops(data)
        except Exception:
            print(f"seed {seed}, input {number}: {data.hex()}", file=sys.stderr)
            raise
        slowest = max(slowest, time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    took = time.monotonic() - began
    print(f"{count:,} inputs in {took:.0f} s, seed {seed}; slowest {slowest * 1e3:.1f} ms, peak memory {peak:,} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
