"""Connections: what the kernel says of them with a packet, and what a verdict changes. Not every kernel has that."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import nfnet
from nfnet import CtInfo, NetlinkSocket, Packet, Queue, nftables, rules
from nfnet.match import be32
from nfnet.protocol.conntrack import Status
from nfnet.protocol.layout import build_attribute

from .conftest import ADDRESS, Net, collect

V4 = socket.AF_INET
PORT = 7000
LABELS = bytes([0x05]) + bytes(15)


@contextmanager
def tracked(net: Net) -> Iterator[Queue]:
    """A queue on the router, where connections are tracked because a rule asks for their state."""
    here = net.hosts["router"]
    rule = rules.queue(1, hook="forward", protocol="udp", state=["new", "established"], netns=here)
    with rule, contextlib.ExitStack() as stack:
        try:
            queue = stack.enter_context(Queue(1, conntrack=True, netns=here))
        except nfnet.NotSupportedError:
            pytest.skip("this kernel has no glue between queues and connection tracking")
        yield queue


class Pair:
    """A client and a server that talk."""

    def __init__(self, net: Net) -> None:
        self.server = net.receiver("server", V4, PORT)
        self.client = net.open_socket("client")
        self.client.bind(("10.81.1.1", 5000))
        self.client.connect((ADDRESS["server", V4], PORT))

    def ask(self, queue: Queue) -> Packet:
        self.client.send(b"question")
        (packet,) = collect(queue, 1)
        return packet

    def answer(self, queue: Queue) -> Packet:
        _, address = self.server.recvfrom(100)
        self.server.sendto(b"answer", address)
        (packet,) = collect(queue, 1)
        return packet


def test_connections_are_described(net: Net) -> None:
    pair = Pair(net)
    with tracked(net) as queue:
        packet = pair.ask(queue)
        connection = packet.conntrack
        assert connection is not None
        assert packet.ctinfo == CtInfo.NEW
        assert connection.original == ("10.81.1.1", "10.81.2.2", 17, 5000, PORT)
        assert connection.reply == ("10.81.2.2", "10.81.1.1", 17, PORT, 5000)
        assert not connection.status & Status.CONFIRMED
        assert (connection.mark, connection.zone, connection.helper) == (0, 0, None)
        packet.accept()
        packet = pair.answer(queue)
        assert packet.ctinfo == CtInfo.ESTABLISHED_REPLY
        assert packet.conntrack is not None
        assert packet.conntrack.status & Status.CONFIRMED
        assert packet.conntrack.id == connection.id
        assert packet.conntrack.timeout is not None
        packet.accept()


def test_a_verdict_marks_the_connection(net: Net) -> None:
    pair = Pair(net)
    with tracked(net) as queue:
        pair.ask(queue).accept(ct_mark=0x1234)
        packet = pair.answer(queue)
        assert packet.conntrack is not None
        assert packet.conntrack.mark == 0x1234
        assert packet.mark == 0, "the packet's own mark is another thing"
        packet.accept(ct_mark=0, mark=7)
        packet = pair.ask(queue)
        assert packet.conntrack is not None
        assert packet.conntrack.mark == 0
        packet.accept()
        assert queue.counters.refused == {}


def test_a_verdict_labels_the_connection(net: Net) -> None:
    pair = Pair(net)
    # Only if some rule sets labels does the kernel give connections room for any: this one sets none of them.
    zeros = ("immediate", {1: be32(1), 2: build_attribute(1, bytes(16))})
    setting = ("ct", {2: be32(13), 4: be32(1)})  # NFT_CT_LABELS
    hook = {"attrs": [("NFTA_HOOK_HOOKNUM", 0), ("NFTA_HOOK_PRIORITY", 0)]}
    place: list[Any] = [("NFTA_CHAIN_TABLE", "labels"), ("NFTA_CHAIN_NAME", "c")]
    rule = [("NFTA_RULE_EXPRESSIONS", [nftables.encode(zeros), nftables.encode(setting)])]
    with tracked(net) as queue:
        messages: list[nftables.Message] = [
            (nftables.NEWTABLE, [("NFTA_TABLE_NAME", "labels")]),
            (nftables.NEWCHAIN, [*place, ("NFTA_CHAIN_TYPE", "filter"), ("NFTA_CHAIN_HOOK", hook)]),
            (nftables.NEWRULE, [("NFTA_RULE_TABLE", "labels"), ("NFTA_RULE_CHAIN", "c"), *rule]),
        ]
        sock = net.at("router", NetlinkSocket)
        nftables.commit(sock, 2, messages, "making room for labels")
        sock.close()
        pair.ask(queue).accept(ct_labels=LABELS)
        packet = pair.answer(queue)
        assert packet.conntrack is not None
        assert packet.conntrack.labels == LABELS
        packet.accept()


def test_without_connection(net: Net) -> None:
    here = net.hosts["router"]
    with rules.queue(1, hook="forward", protocol="udp", netns=here), Queue(1, netns=here) as queue:
        packet = Pair(net).ask(queue)
        assert packet.conntrack is None
        for changes in ({"ct_mark": 1}, {"ct_labels": LABELS}):
            with pytest.raises(nfnet.ArgumentError, match="conntrack=True"):
                packet.accept(**changes)
        packet.accept()
