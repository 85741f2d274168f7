"""Print all values that nfnet reads from recordings, and messages that it builds: `python values.py ORDER DIRECTORY`.

ORDER is the value of `sys.byteorder` while the package is imported. Values in the byte order of the host are printed as
on a little-endian machine, so the output must not depend on ORDER, except for ``text``.
"""

# ruff: noqa: E402 - sys.byteorder is set before the imports that read it

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.byteorder = sys.argv[1]  # type: ignore[misc,assignment]
sys.path.insert(0, str(Path(__file__).parents[1]))

import nfnet
from nfnet import CopyMode, Log, Queue, rules, testing
from nfnet.captures import LinkType, Writer, read
from nfnet.captures._records import netfilter_datagram
from nfnet.cli.decode_command import describe
from nfnet.protocol import layout, netlink, nfqnl, nfulnl
from nfnet.protocol.nfqnl import NFQA, Command, QueueFlag
from nfnet.protocol.nfulnl import LogFlag
from tests.fixtures.make import handler
from tests.swap import turn


def little(datagram: bytes) -> str:
    return (datagram if sys.byteorder == "little" else turn(datagram, ">")).hex()


def item(message: Any, layouts: layout.Layouts) -> dict[str, Any]:
    spans = layouts.find(message.raw).spans
    by_schema = {row.type & 0x3FFF: row.data for row in netlink.attributes.parse(message.raw[20:])}
    assert by_schema == {number: message.raw[span] for number, span in spans.items()}
    names = [name for name in dir(type(message)) if isinstance(getattr(type(message), name), property)]
    names = [name for name in names if name != "metadata"]  # bytes as they are on that machine
    found = {name: repr(getattr(message, name)) for name in names}
    return {**found, "spans": {number: str(span) for number, span in spans.items()}, "raw": little(message.raw)}


def recording(path: Path) -> dict[str, Any]:
    datagrams = [datagram for record in read(path) if (datagram := netfilter_datagram(record)) is not None]
    found: dict[str, Any] = {"datagrams": [little(datagram) for datagram in datagrams]}
    found["answers"] = [netlink.parse_answer(d) for d in datagrams if netlink.is_answer(d)]
    found["text"] = [list(describe(datagram)) for datagram in datagrams]
    kernel = testing.FakeKernel(ends=True)
    kernel.trusted = True
    replay = nfnet.replay(path)
    with Queue(1, transport=replay) as queue:
        packets = list(queue)
        assert all(packet.raw[nfqnl.SUBSYSTEM_BYTE] == 3 for packet in packets)  # otherwise all take the slow path
        found["packets"] = [item(packet, nfqnl.layouts) for packet in packets]
        found["counters"] = repr(queue.counters)
        for packet in queue.pending:
            handler(packet)
    found["verdicts"], found["recorded"] = repr(replay.verdicts), repr(replay.recorded)
    with Queue(1, transport=kernel) as queue:
        for packet in packets:  # one by one, because the number sent together depends on time
            kernel.queued[packet.id] = None
            kernel.deliver(packet.raw)
            queue.run(handler)
    found["sent"], found["judged"] = [little(d) for d in kernel.sent], repr(kernel.judged)
    with Log(5, transport=nfnet.replay(path), sequence=True) as log:
        found["messages"] = [item(message, nfulnl.layouts) for message in log]
        found["log counters"] = repr(log.counters)
    return found


def built() -> dict[str, Any]:
    queue = nfqnl.config(7, command=Command.BIND, copy_range=99, max_len=5, flags=QueueFlag.GSO, seq=258, ack=True)
    log = nfulnl.config(
        7, command=Command.BIND, copy_range=9, copy_mode=CopyMode.META, timeout=5, flags=LogFlag.SEQ, seq=3
    )
    refused = testing.error_message(22, queue)
    assert netlink.parse_answer(refused).errno == 22
    rule = rules.queue(range(258, 260), hook="output", balance="cpu", mark=0x01020304)
    return {
        "requests": [little(queue), little(log), little(refused)],
        "verdict": little(nfqnl.verdict(258, 3, 1, [(NFQA.MARK, 1), (NFQA.VLAN, {1: 2}), (NFQA.PAYLOAD, b"odd")])),
        "rule": str(rule),
    }


def written(directory: Path) -> dict[str, Any]:
    """Written files can be read back, and contain their byte order."""
    path = directory / f"written-{sys.argv[1]}.pcap"
    writer = Writer(path, LinkType.NFLOG)
    writer.write(0, testing.log_message(testing.udp(b"logged"), group=5, VLAN={1: 0x8100, 2: 5})[16:])
    writer.close()
    (record,) = read(path)
    assert record.byteorder == sys.byteorder
    with Log(5, transport=nfnet.replay(path)) as log:
        return {"messages": [item(message, nfulnl.layouts) for message in log]}


def main() -> None:
    directory = Path(sys.argv[2])
    found = {path.stem: recording(path) for path in sorted(directory.glob("*.pcapng"))}
    json.dump({**found, "built": built(), "written": written(directory)}, sys.stdout)


if __name__ == "__main__":
    main()
