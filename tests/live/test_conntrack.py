"""Connection tracking: entries sent with packets, and their changes by verdicts. Some kernels lack both."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import nfnet
from nfnet import CtInfo, Log, NetlinkSocket, Packet, Queue, rules
from nfnet.protocol.conntrack import Status
from nfnet.protocol.layout import build_attribute
from nfnet.rules import _nftables as nftables
from nfnet.rules._expressions import be32

from .conftest import ADDRESS, GLUE, Net, collect, kernel_lacks, lacking

V4 = socket.AF_INET
PORT = 7000
LABELS = bytes([0x05]) + bytes(15)


@contextmanager
def tracked(net: Net) -> Iterator[Queue]:
    """A queue on the router, where connections are tracked because a rule tests their state."""
    here = net.hosts["router"]
    rule = rules.queue(1, hook="forward", protocol="udp", state=["new", "established"], netns=here)
    queue = Queue(1, conntrack=True, netns=here)
    if error := lacking(queue):
        assert str(error).endswith("This kernel has no support for conntrack")
        kernel_lacks(**GLUE)
    with rule, queue:
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


@pytest.mark.feature("conntrack")
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


@pytest.mark.feature("ct_mark")
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


@pytest.mark.feature("ct_labels")
def test_a_verdict_labels_the_connection(net: Net) -> None:
    pair = Pair(net)
    # Only if some rule sets labels does the kernel give connections room for any: this one sets none of them.
    zeros = ("immediate", {1: be32(1), 2: build_attribute(1, bytes(16))})
    setting = ("ct", {2: be32(13), 4: be32(1)})  # NFT_CT_LABELS
    hook = [(nftables.HOOK_NUMBER, be32(0)), (nftables.HOOK_PRIORITY, be32(0))]
    chain = [(nftables.CHAIN_TABLE, b"labels\0"), (nftables.CHAIN_NAME, b"c\0"), (nftables.CHAIN_TYPE, b"filter\0")]
    with tracked(net) as queue:
        messages = [
            nftables.Message(nftables.NEWTABLE, V4, [(nftables.TABLE_NAME, b"labels\0")]),
            nftables.Message(nftables.NEWCHAIN, V4, [*chain, (nftables.CHAIN_HOOK, hook)]),
            *nftables.rule(V4, "labels", "c", [zeros, setting], b"", itertools.count(1)),
        ]
        sock = net.at("router", NetlinkSocket)
        nftables.commit(sock, messages, "making room for labels")
        sock.close()
        pair.ask(queue).accept(ct_labels=LABELS)
        packet = pair.answer(queue)
        assert packet.conntrack is not None
        assert packet.conntrack.labels == LABELS
        packet.accept()


@pytest.mark.feature("log: conntrack")
def test_connections_of_logged_packets(net: Net) -> None:
    here = net.hosts["router"]
    pair = Pair(net)
    rule = rules.log(5, hook="forward", protocol="udp", state=["new", "established"], netns=here)
    log = Log(5, conntrack=True, threshold=1, netns=here)
    if error := lacking(log):
        assert str(error).endswith("This kernel has no support for conntrack")
        kernel_lacks(**GLUE)
    with rule, log:
        pair.client.send(b"question")
        (question,) = collect(log, 1)
        _, address = pair.server.recvfrom(100)
        pair.server.sendto(b"answer", address)
        (answer,) = collect(log, 1)
    assert (question.ctinfo, answer.ctinfo) == (CtInfo.NEW, CtInfo.ESTABLISHED_REPLY)
    assert question.conntrack is not None
    assert question.conntrack.original == ("10.81.1.1", "10.81.2.2", 17, 5000, PORT)
    assert answer.conntrack is not None
    assert answer.conntrack.id == question.conntrack.id


def test_without_connection(net: Net) -> None:
    here = net.hosts["router"]
    with rules.queue(1, hook="forward", protocol="udp", netns=here), Queue(1, netns=here) as queue:
        packet = Pair(net).ask(queue)
        assert packet.conntrack is None
        for changes in ({"ct_mark": 1}, {"ct_labels": LABELS}):
            with pytest.raises(nfnet.ArgumentError, match="conntrack=True"):
                packet.accept(**changes)
        packet.accept()
