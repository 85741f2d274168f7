"""Reading and rewriting random packets, compared with scapy."""

from __future__ import annotations

import random
from typing import Any

import pytest

from nfnet import SkbInfo, inet, testing
from nfnet.errors import ArgumentError
from nfnet.inet import _scapy as scapys

from .test_inet import plain_sum

scapy = pytest.importorskip("scapy.all")
COUNT = 1000
random_bytes = random.Random(7)


def choice(options: Any) -> Any:
    return random_bytes.choice(options)


def data(most: int = 60) -> bytes:
    return random_bytes.randbytes(random_bytes.randrange(most))


def transport(version: int) -> Any:
    ports = {"sport": random_bytes.randrange(0x10000), "dport": random_bytes.randrange(0x10000)}
    kind = choice(("tcp", "udp", "icmp"))
    if kind == "tcp":
        options = choice(([], [("MSS", 1460)], [("NOP", None), ("Timestamp", (1, 2))]))
        flags = random_bytes.randrange(0x100)
        return scapy.TCP(**ports, seq=random_bytes.randrange(1 << 32), flags=flags, options=options)
    if kind == "udp":
        return scapy.UDP(**ports)
    if version == 4:
        return scapy.ICMP(type=8, id=random_bytes.randrange(0x10000), seq=5)
    return scapy.ICMPv6EchoRequest(id=random_bytes.randrange(0x10000), seq=5)


def address(version: int) -> str:
    if version == 4:
        return ".".join(str(random_bytes.randrange(256)) for _ in range(4))
    return f"fd00::{random_bytes.randrange(1, 0x10000):x}"


def generate() -> tuple[Any, bytes]:
    """A packet as scapy has it, and as bytes."""
    version = choice((4, 6))
    ends = {"src": address(version), "dst": address(version)}
    if version == 4:
        options = choice(([], [], [scapy.IPOption(b"\x94\x04\x00\x00")], [scapy.IPOption_NOP()] * 4))
        head = scapy.IP(**ends, ttl=random_bytes.randrange(1, 256), tos=random_bytes.randrange(256), options=options)
    else:
        head = scapy.IPv6(**ends, hlim=random_bytes.randrange(1, 256), tc=random_bytes.randrange(256), fl=77)
        for extension in choice(((), (scapy.IPv6ExtHdrHopByHop,), (scapy.IPv6ExtHdrHopByHop, scapy.IPv6ExtHdrDestOpt))):
            head = head / extension()
    packet = head / transport(version) / scapy.Raw(data())
    raw = bytes(packet)
    return packet.__class__(raw), raw


def checksums_are_right(raw: bytes) -> bool:
    """Return whether scapy computes the same lengths and checksums."""
    return from_scapy(raw) == raw


def from_scapy(raw: bytes) -> bytes:
    packet = (scapy.IP if raw[0] >> 4 == 4 else scapy.IPv6)(raw)
    for layer in (scapy.IP, scapy.IPv6, scapy.TCP, scapy.UDP, scapy.ICMP, scapy.ICMPv6EchoRequest):
        if layer in packet:
            for field in ("len", "plen", "chksum", "cksum"):
                if field in packet[layer].fields:
                    del packet[layer].fields[field]
    return bytes(packet)


def test_reading() -> None:
    for _ in range(COUNT):
        packet, raw = generate()
        ip, flow = inet.ip(raw), inet.flow(raw)
        assert ip is not None
        assert flow is not None
        if packet.version == 4:
            assert (ip.version, ip.ttl, ip.tos, ip.length) == (4, packet.ttl, packet.tos, packet.len)
        else:
            assert (ip.version, ip.ttl, ip.tos, ip.length) == (6, packet.hlim, packet.tc, packet.plen + 40)
        assert (ip.source, ip.destination, ip.fragment) == (packet.src, packet.dst, False)
        assert (flow.protocol, flow.source, flow.destination) == (ip.protocol, packet.src, packet.dst)
        tcp, udp, icmp = inet.tcp(raw), inet.udp(raw), inet.icmp(raw)
        assert [tcp, udp, icmp].count(None) == 2
        if tcp is not None:
            theirs = packet[scapy.TCP]
            assert ip.protocol == 6
            assert (tcp.seq, tcp.flags, tcp.window) == (theirs.seq, int(theirs.flags) & 0xFF, theirs.window)
            assert (tcp.source_port, tcp.destination_port) == (flow.source_port, flow.destination_port)
            assert (tcp.source_port, tcp.destination_port) == (theirs.sport, theirs.dport)
            assert tcp.data == bytes(theirs.payload)
        elif udp is not None:
            theirs = packet[scapy.UDP]
            assert udp == (theirs.sport, theirs.dport, bytes(theirs.payload))
            assert (flow.source_port, flow.destination_port) == udp[:2]
        elif icmp is not None:
            assert (icmp.type, icmp.code) in ((8, 0), (128, 0))
            assert (flow.source_port, flow.destination_port) == (None, None)
            assert icmp.rest[2:] == b"\0\5"


def random_changes(raw: bytes) -> dict[str, Any]:
    version = raw[0] >> 4
    changes: dict[str, Any] = {
        "data": data(200),
        "source": address(version),
        "destination": address(version),
        "ttl": random_bytes.randrange(256),
        "tos": random_bytes.randrange(256),
    }
    if inet.icmp(raw) is None:
        changes |= {"source_port": random_bytes.randrange(0x10000), "destination_port": random_bytes.randrange(0x10000)}
    if inet.tcp(raw) is not None:
        changes |= {"seq": random_bytes.randrange(1 << 32), "ack": 7, "flags": inet.TcpFlag.SYN, "window": 1000}
    names = random_bytes.sample(sorted(changes), random_bytes.randrange(1, len(changes) + 1))
    return {name: changes[name] for name in names}


def test_rewriting() -> None:
    for _ in range(COUNT):
        _, raw = generate()
        changes = random_changes(raw)
        new = inet.rewrite(raw, **changes)
        assert checksums_are_right(new), (raw.hex(), changes)
        before, after = inet.ip(raw), inet.ip(new)
        assert before is not None
        assert after is not None
        inner = inet.tcp(new) or inet.udp(new) or inet.icmp(new)
        for name, value in changes.items():
            assert getattr(after if hasattr(after, name) else inner, name) == value, name
        for name in ("source", "destination", "ttl", "tos", "protocol"):
            assert getattr(after, name) == changes.get(name, getattr(before, name))


# --- lengths of 0


def without_length(raw: bytes) -> bytes:
    """The packet as a super-packet of more than 65,535 bytes looks, or one that a network card has yet to cut."""
    if raw[0] >> 4 == 6:
        return raw[:4] + b"\0\0" + raw[6:]
    size = (raw[0] & 15) * 4
    header = raw[:2] + b"\0\0" + raw[4:10] + b"\0\0" + raw[12:size]
    return header[:10] + (plain_sum(header) ^ 0xFFFF).to_bytes(2, "big") + raw[12:]


READERS = (inet.ip, inet.flow, inet.tcp, inet.udp, inet.icmp, inet.transport, inet.get_data, inet.protocol)


def test_a_length_of_zero_means_as_long_as_the_packet_is() -> None:
    for _ in range(COUNT):
        packet, raw = generate()
        zero = without_length(raw)
        if packet.version == 4:  # in IPv6 scapy knows of jumbograms alone
            theirs = scapy.IP(zero)
            assert theirs.len == 0
            assert bytes(theirs.lastlayer()) == bytes(packet.lastlayer())
        for read in READERS:
            assert read(zero) == read(raw), read
        changes = random_changes(raw)
        assert inet.rewrite(zero, **changes) == inet.rewrite(raw, **changes)


def test_of_a_packet_without_length_only_the_beginning_is_here() -> None:
    for whole in (testing.tcp(bytes(1000)), testing.tcp(bytes(1000), source="fd00::1", destination="fd00::2")):
        cut = without_length(whole)[:500]
        assert inet.ip(cut, 100_000) == inet.ip(whole)._replace(length=100_000)  # type: ignore[union-attr]
        assert inet.ip(whole[:500], 100_000) == inet.ip(whole)  # the header's word counts, where it gives it
        assert len(inet.tcp(cut).data) == 500 - (len(whole) - 1000)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_jumbograms(kind: str) -> None:
    for size in (70_000, 65_600, 200_000):
        content = random_bytes.randbytes(size)
        transport = scapy.TCP(sport=1, dport=2) if kind == "tcp" else scapy.UDP(sport=1, dport=2, len=0)
        body = bytes(transport) + content
        options = scapy.IPv6ExtHdrHopByHop(nh=6 if kind == "tcp" else 17)
        options.options = [scapy.Jumbo(jumboplen=len(body) + 8)]
        raw = bytes(scapy.IPv6(src="fd00::1", dst="fd00::2", plen=0, nh=0) / options) + body
        padded = raw + b"padding"
        theirs = scapy.IPv6(raw)
        assert bytes(theirs[scapy.TCP if kind == "tcp" else scapy.UDP].payload) == content
        for packet in (raw, padded):
            assert inet.ip(packet).length == len(raw)  # type: ignore[union-attr]
            assert inet.flow(packet) == ({"tcp": 6, "udp": 17}[kind], "fd00::1", 1, "fd00::2", 2)
            found = inet.tcp(packet) if kind == "tcp" else inet.udp(packet)
            assert found is not None
            assert found.data == inet.get_data(packet) == content
        assert inet.ip(raw[:60000]).length == len(raw)  # type: ignore[union-attr]
        assert inet.get_data(raw[:60000]) == content[: 60000 - (len(raw) - size)]
        for packet in (raw, raw[:60000]):
            with pytest.raises(ArgumentError, match="jumbogram|not a whole"):
                inet.rewrite(packet, ttl=1)


# --- checksums that the kernel has begun


def begin(raw: bytes) -> bytes:
    """The packet as the kernel has it before its checksum is finished: the sum of the pseudo-header is in its place."""
    ip = inet.ip(raw)
    assert ip is not None
    body = raw[ip.header :]
    addresses = raw[12:20] if ip.version == 4 else raw[8:40]
    place = ip.header + {6: 16, 17: 6}[ip.protocol]
    begun = plain_sum(addresses + len(body).to_bytes(4, "big") + ip.protocol.to_bytes(4, "big"))
    return raw[:place] + begun.to_bytes(2, "big") + raw[place + 2 :]


def generate_begun(*kinds: Any) -> tuple[bytes, bytes]:
    while True:
        packet, raw = generate()
        if any(kind in packet for kind in kinds):
            return raw, begin(raw)


def test_an_unfinished_checksum_is_finished_whatever_is_changed() -> None:
    for _ in range(COUNT // 3):
        raw, begun = generate_begun(scapy.TCP, scapy.UDP)
        changes = choice(({"ttl": 9}, {"tos": 9}, {}, random_changes(raw)))
        new = inet.rewrite(begun, **changes, skbinfo=SkbInfo.CSUM_NOT_READY)
        assert checksums_are_right(new), (raw.hex(), changes)
        assert new == inet.rewrite(raw, **changes)


def test_tcp_super_packets_get_a_whole_checksum() -> None:
    for _ in range(COUNT // 10):
        _, begun = generate_begun(scapy.TCP)
        for info in (SkbInfo.GSO, SkbInfo.GSO | SkbInfo.CSUM_NOT_READY):
            assert checksums_are_right(inet.rewrite(begun, tos=1, skbinfo=info))
            assert checksums_are_right(inet.rewrite(begun, data=bytes(100), skbinfo=info))


def segments(packet: bytes, size: int) -> list[bytes]:
    """Segment a super-packet whose bytes were replaced (CHECKSUM_NONE) as __udp_gso_segment does."""
    ip = inet.ip(packet)
    assert ip is not None
    start = ip.header + 8
    begun = int.from_bytes(packet[start - 2 : start], "big")
    length = int.from_bytes(packet[start - 4 : start - 2], "big")
    found = []
    for place in range(start, len(packet), size):
        data = packet[place : place + size]
        new = len(data) + 8
        check = plain_sum(b"".join(word.to_bytes(2, "big") for word in (begun, length ^ 0xFFFF, new)))
        header = packet[start - 8 : start - 4] + new.to_bytes(2, "big")
        total = plain_sum(header + check.to_bytes(2, "big") + data)
        upper = header + (total ^ 0xFFFF or 0xFFFF).to_bytes(2, "big") + data
        lengths = packet[: ip.header]
        if ip.version == 4:
            lengths = lengths[:2] + (ip.header + new).to_bytes(2, "big") + lengths[4:10] + b"\0\0" + lengths[12:]
            lengths = lengths[:10] + (plain_sum(lengths) ^ 0xFFFF).to_bytes(2, "big") + lengths[12:]
        else:
            lengths = lengths[:4] + (ip.header - 40 + new).to_bytes(2, "big") + lengths[6:]
        found.append(lengths + upper)
    return found


def test_udp_super_packets_are_cut_into_right_segments() -> None:
    for _ in range(COUNT // 10):
        raw, _ = generate_begun(scapy.UDP)
        raw = inet.rewrite(raw, data=random_bytes.randbytes(random_bytes.randrange(1000, 3000)))
        changes = random_changes(raw)
        if "data" in changes:
            changes["data"] = random_bytes.randbytes(random_bytes.randrange(3000, 4000))
        new = inet.rewrite(begin(raw), **changes, skbinfo=SkbInfo.GSO | SkbInfo.CSUM_NOT_READY)
        parts = segments(new, random_bytes.randrange(100, 900))
        assert all(checksums_are_right(part) for part in parts), changes
        assert b"".join(inet.udp(part).data for part in parts) == inet.udp(new).data  # type: ignore[union-attr]
        assert inet.udp(new).data == changes.get("data", inet.udp(raw).data)  # type: ignore[union-attr]


def test_what_is_unfinished_and_cannot_be_finished_is_refused() -> None:
    unfinished, segmented = SkbInfo.CSUM_NOT_READY, SkbInfo.CSUM_NOT_READY | SkbInfo.GSO
    inner = scapy.Ether() / scapy.IP(dst="198.51.100.1") / scapy.TCP(chksum=0x1234)
    tunnel = bytes(scapy.IP(dst="192.0.2.1") / scapy.UDP(dport=4789, chksum=0) / scapy.VXLAN(vni=5) / inner)
    with pytest.raises(ArgumentError, match="packet of protocol 17 that is not that of TCP"):
        inet.rewrite(tunnel, ttl=9, skbinfo=unfinished)
    new = inet.rewrite(tunnel, ttl=9, skbinfo=segmented)  # the kernel computes the inner one
    assert scapy.IP(new)[scapy.UDP].chksum == 0
    assert new[20:] == tunnel[20:]
    other = bytes(scapy.IP(dst="192.0.2.1", proto=132) / scapy.Raw(bytes(12)))
    with pytest.raises(ArgumentError, match="packet of protocol 132 that is not that of TCP"):
        inet.rewrite(other, ttl=9, skbinfo=unfinished)
    assert inet.rewrite(other, ttl=9)
    fragment = bytes(scapy.IP(dst="192.0.2.1", flags="MF") / scapy.UDP() / scapy.Raw(bytes(8)))
    with pytest.raises(ArgumentError, match="of a fragment cannot be finished"):
        inet.rewrite(fragment, ttl=9, skbinfo=unfinished)
    for raw in (begin(testing.tcp(bytes(100))), begin(testing.udp(bytes(100)))):
        with pytest.raises(ArgumentError, match="cannot become shorter"):
            inet.rewrite(raw, data=bytes(99), skbinfo=segmented)
        assert inet.rewrite(raw, data=bytes(99), skbinfo=unfinished)


def test_a_routed_packet_is_finished_from_what_the_kernel_began() -> None:
    """Its checksum covers the last of its destinations, which is in the routing header."""
    for upper, number in ((scapy.TCP(sport=5), 6), (scapy.UDP(sport=5), 17)):
        routed = scapy.IPv6(src="fd00::1", dst="fd00::9") / scapy.IPv6ExtHdrRouting(addresses=["fd00::2"], segleft=1)
        whole = bytes(routed / upper / scapy.Raw(b"data"))
        assert inet.ip(whole).header == 64  # type: ignore[union-attr]
        end = bytes(scapy.IPv6(src="fd00::1", dst="fd00::2") / upper / scapy.Raw(b"data"))
        begun = whole[:64] + begin(end)[40:]
        new = inet.rewrite(begun, ttl=9, skbinfo=SkbInfo.CSUM_NOT_READY)
        assert new[64:] == end[40:]
        with pytest.raises(ArgumentError, match="source-routed"):
            inet.rewrite(begun, source_port=9, skbinfo=SkbInfo.CSUM_NOT_READY)
        assert number in inet.flow(new)  # type: ignore[operator]
    with pytest.raises(ArgumentError, match="source-routed"):
        inet.rewrite(bytes(routed / scapy.TCP()), ttl=9, skbinfo=SkbInfo.GSO)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_rewriting_fragments(version: int, kind: str) -> None:
    """All fragments get another address, the first one other ports: put together again the packet is right."""
    ends = {"source": address(version), "destination": address(version)}
    for _ in range(100):
        body = random_bytes.randbytes(3000)
        whole = testing.tcp(body, **ends) if kind == "tcp" else testing.udp(body, **ends)
        changes = {"source": address(version), "destination": address(version), "ttl": 9}
        parsed = (scapy.IP if version == 4 else scapy.IPv6)(whole)
        if version == 4:
            fragments = [bytes(fragment) for fragment in scapy.fragment(parsed, 1200)]
        else:
            parts = scapy.IPv6(src=parsed.src, dst=parsed.dst) / scapy.IPv6ExtHdrFragment(id=5) / parsed.payload
            fragments = [bytes(fragment) for fragment in scapy.fragment6(parts, 1280)]
        assert len(fragments) > 2
        new = []
        for number, fragment in enumerate(fragments):
            ip = inet.ip(fragment)
            assert ip is not None
            assert ip.fragment
            flow = inet.flow(fragment)
            assert flow is not None
            assert (flow.source_port is None) == (number > 0)
            ports = {} if number else {"source_port": 1234}
            new.append(inet.rewrite(fragment, **changes, **ports))
            with pytest.raises(ArgumentError, match="fragment|begins with"):
                inet.rewrite(fragment, data=b"x")
            if number:
                with pytest.raises(ArgumentError, match="begins with"):
                    inet.rewrite(fragment, source_port=5)
        if version == 4:
            (together,) = scapy.defragment([scapy.IP(fragment) for fragment in new])
        else:
            together = scapy.defragment6([scapy.IPv6(fragment) for fragment in new])
        assert checksums_are_right(bytes(together))
        assert inet.flow(bytes(together))[1:3] == (changes["source"], 1234)  # type: ignore[index]


def test_packets_go_to_scapy_and_back(nfnet_queue: Any) -> None:
    def handler(packet: Any) -> None:
        theirs = packet.scapy()
        assert bytes(theirs) == packet.payload
        theirs[scapy.UDP].dport = 53
        theirs[scapy.Raw].load = b"longer than before"
        packet.accept(payload=theirs)

    packet_id = nfnet_queue.feed(testing.udp(b"data"))
    nfnet_queue.run(handler)
    new = nfnet_queue.verdicts[packet_id].payload
    assert checksums_are_right(new)
    assert inet.udp(new) == (40000, 53, b"longer than before")


@pytest.mark.parametrize("family", [2, 7])
@pytest.mark.parametrize("address", ["ff:ff:ff:ff:ff:ff", "46:00:00:00:00:01"])  # the latter begins like an IP header
def test_a_link_layer_in_front_is_refused(family: int, address: str) -> None:
    def handler(packet: Any) -> None:
        theirs = scapy.Ether(dst=address, src=address) / packet.scapy()
        with pytest.raises(ArgumentError, match=r"begins with Ethernet, and must begin with the network header"):
            packet.accept(payload=theirs)
        packet.accept(payload=theirs.payload / b"more")

    fed = testing.FedQueue()
    packet_id = fed.feed(testing.udp(b"data"), family=family)
    fed.run(handler)
    assert inet.udp(fed.verdicts[packet_id].payload or b"") == (40000, 9, b"datamore")
    fed.close()


def test_only_ip_may_stand_in_for_ip() -> None:
    def handler(packet: Any) -> None:
        for theirs in (scapy.ARP(), scapy.UDP() / bytes(20), scapy.Dot1Q() / packet.scapy(), scapy.Raw(bytes(40))):
            with pytest.raises(ArgumentError, match="payload begins with"):
                packet.accept(payload=theirs)
        packet.accept(payload=scapy.Raw(testing.udp(b"other")))

    fed = testing.FedQueue()
    packet_id = fed.feed(testing.udp(b"data"))
    fed.run(handler)
    assert inet.udp(fed.verdicts[packet_id].payload or b"") == (40000, 9, b"other")
    fed.close()


def test_what_is_no_ip_is_raw(nfnet_queue: Any) -> None:
    nfnet_queue.feed(b"\0" * 30)
    seen: list[Any] = []
    nfnet_queue.run(lambda packet: (seen.append(packet.scapy()), packet.drop()))
    assert seen == [scapy.Raw(b"\0" * 30)]


def test_truncated_packets_are_not_rewritten(nfnet_queue: Any) -> None:
    def handler(packet: Any) -> None:
        with pytest.raises(ArgumentError, match="only 60 of the packet's 100 bytes were copied"):
            packet.rewrite(ttl=1)
        packet.drop()

    nfnet_queue.kernel.feed(1, payload=testing.udp(bytes(72))[:60], CAP_LEN=100)
    nfnet_queue.run(handler)


def test_what_scapy_cannot_know_is_left_alone() -> None:
    quoted = scapy.IP(src="192.0.2.1", dst="192.0.2.2", len=1500) / scapy.UDP(sport=1, dport=2, len=1480, chksum=0x1234)
    error = bytes(scapy.IP(dst="192.0.2.9") / scapy.ICMP(type=3, code=1) / quoted)
    assert scapys.build(scapys.parse(error, 0x0800)) == error
    whole = scapy.IP(testing.udp(random_bytes.randbytes(3000)))
    for fragment in map(bytes, scapy.fragment(whole, 1200)):
        assert scapys.build(scapys.parse(fragment, 0x0800)) == fragment
