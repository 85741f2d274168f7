"""Messages and batches for tests of the log collector, and checks of what it stored or refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from nfnet import LogMessage, cli, collect, testing
from nfnet.collect import Batch, Session

SESSION = Session("host", "boot", 5, 1)
NAMES = {1: "lo", 2: "eth0", 3: "br0"}.get


def message(number: int, payload: bytes | None = None, **attributes: Any) -> LogMessage:
    """Return a log message with this sequence number, which is also its prefix if no other is given."""
    values: dict[str, Any] = {"prefix": str(number), **attributes, "SEQ": number}  # in the kernel's order
    return LogMessage.from_bytes(testing.log_message(payload or testing.udp(bytes(10)), **values), NAMES)


def batch(*numbers: int, lost: int = 0, session: Session = SESSION) -> Batch:
    return Batch(session, [message(number) for number in numbers], lost)


def icmp(kind: int, code: int, size: int = 58) -> bytes:
    """Return the first ``size`` bytes of an ICMP packet over IPv4."""
    packet = testing.udp(bytes(30))
    return (packet[:9] + b"\1" + packet[10:20] + bytes([kind, code]) + packet[22:])[:size]


UDP = testing.udp(b"data")
IPV6 = testing.udp(bytes(24), source="2001:db8::1", destination="2001:db8::2")
MOMENTS = st.integers(0, 253_402_300_799)
PACKETS = st.one_of(
    st.builds(testing.udp, st.binary(max_size=9)),
    st.builds(testing.tcp, st.binary(max_size=9), flags=st.integers(0, 255)),
    st.builds(lambda data, cut: testing.tcp(data)[:cut], st.binary(max_size=9), st.integers(20, 45)),
    st.builds(  # ICMP, and ICMPv6 in a packet of IPv4
        lambda kind, data, protocol: UDP[:9] + bytes([protocol]) + UDP[10:20] + bytes([kind, 3]) + data,
        st.integers(0, 255),
        st.binary(max_size=12),
        st.sampled_from([1, 58]),
    ),
    st.integers(0, 255).map(lambda kind: IPV6[:6] + b"\x3a" + IPV6[7:40] + bytes([kind, 1]) + bytes(30)),
    st.builds(testing.udp, st.just(b"6"), source=st.just("2001:db8::1"), destination=st.just("2001:db8::2")),
    st.integers(0, 0xFFFF).map(lambda field: UDP[:6] + field.to_bytes(2, "big") + UDP[8:]),  # fragments
    st.binary(min_size=1, max_size=80),
    st.binary(min_size=20, max_size=80).map(lambda data: b"\x45\x00\x00" + data),
    st.binary(min_size=40, max_size=80).map(lambda data: b"\x60\x00\x00\x00\x00" + data),
)


@contextmanager
def outputs(target: Path) -> Iterator[Callable[..., collect.Output]]:
    """Yield a function that opens an output with settings. All of these are closed at the end."""
    opened = []

    def make(**settings: Any) -> collect.Output:
        opened.append(collect.output(str(target), settings))
        opened[-1].begin()
        return opened[-1]

    yield make
    for output in opened:
        output.close()


def numbers(*files: Path) -> list[int]:
    found = []
    for file in files:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        assert data.endswith(b"\n") or not data
        found += [json.loads(line)["event"]["sequence"] for line in data.splitlines()]
    return found


def refusal(path: Path, line: int, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what ``nfnet collect --check`` prints: one error, in this line of the configuration file."""
    assert cli.main(["collect", "--config", str(path), "--check"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"nfnet collect: {path}:{line}: ")
    assert errors.count("\n") == 1
    return errors
