"""Turn packets of captures into messages like those that the kernel sends to a queue or log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .._arguments import check_choice, network_error, wrong_type
from ..errors import ArgumentError, DecodeError
from ..protocol import netlink, nfqnl, nfulnl
from ..protocol.layout import build_attribute, compile_struct
from ..protocol.nfnetlink import Family, Hook, Subsystem, build_message
from ..protocol.nfqnl import NFQA, NFQA_VLAN
from ..protocol.nfulnl import NFULA
from ._format import Direction
from ._link_layer import ETHERNET_HEADER, IPV4, IPV6, Frame, read_frame
from ._link_types import LinkType
from ._reader import Record

FAMILIES = ("inet", "bridge")
_COOKED = (LinkType.LINUX_SLL, LinkType.LINUX_SLL2)
_TAG_SIZE = 4
_LEAST_ETHERTYPE = 0x0600
_ETH_P_802_2 = 4  # the kernel's substitute for the EtherType, for a frame with a length
_HOOKS = {Direction.INCOMING: Hook.INPUT, Direction.OUTGOING: Hook.OUTPUT, Direction.FOREIGN: Hook.FORWARD}
_SENT = (Hook.OUTPUT, Hook.POSTROUTING)
_VERSIONS = {IPV4: 4, IPV6: 6}
_HEADERS = {IPV4: 20, IPV6: 40}
_IP_FAMILIES = {IPV4: Family.IPV4, IPV6: Family.IPV6}

_pack_queue_header = compile_struct(nfqnl.packet_hdr).pack
_pack_log_header = compile_struct(nfulnl.packet_hdr).pack
_pack_hwaddr = compile_struct(nfqnl.hwaddr).pack


class Found(NamedTuple):
    """A packet in a record: where its network layer begins, its EtherType, and its link-layer header."""

    frame: Frame
    start: int
    protocol: int
    header: bytes = b""


class Frames:
    """Makes messages from the packets in a capture's records.

    hook: the hook of all packets, a Hook or its name; None to derive it from ``local`` and from the records.
    local: the addresses and networks on this side. Packets from them get the hook output, other packets to them input,
        and all others forward.
    family: "inet" for the IP packets in the frames, "bridge" for all Ethernet frames, as a bridge processes them.

    Raises ArgumentError if one of them is invalid.
    """

    def __init__(self, hook: Hook | str | None, local: str | Iterable[str], family: str) -> None:
        self._hook = None if hook is None else _parse_hook(hook)
        self._local = _parse_networks(local)
        check_choice("family", family, FAMILIES)
        self._bridge = family == "bridge"

    def find(self, record: Record) -> Found | int:
        """Return the packet in a record; or its EtherType if it is not for a queue or log, 0 if that is unknown.

        Raises CaptureError if the link-layer header is incomplete.
        """
        data = record.data
        try:
            frame = read_frame(record.link_type, data, record.byteorder)
        except DecodeError as error:
            raise record.error(error.what, error.offset) from None
        if self._bridge:
            return self._find_frame(data, frame)
        start, protocol = frame.start, frame.protocol
        if start < len(data) and data[start] >> 4 == _VERSIONS.get(protocol):
            return Found(frame, start, protocol)
        return protocol

    def _find_frame(self, data: bytes, frame: Frame) -> Found | int:
        """Return an Ethernet frame as a bridge sees it: without the outermost tag, which the kernel stores apart."""
        if not frame.header:
            return frame.protocol
        start = frame.header + (_TAG_SIZE if frame.tags else 0)
        ethertype = data[start - 2 : start]
        protocol = int.from_bytes(ethertype, "big")
        if protocol < _LEAST_ETHERTYPE:
            protocol = _ETH_P_802_2
        return Found(frame, start, protocol, data[frame.header - ETHERNET_HEADER : frame.header - 2] + ethertype)

    def message(self, subsystem: int, number: int, packet_id: int, record: Record, found: Found) -> bytes:
        """Return the message about a packet: of queue ``number`` with that id, or of log group ``number``."""
        frame, start, protocol, _ = found
        size = record.size - start
        if protocol in _VERSIONS:  # bytes after the packet are padding, or the frame's checksum
            size = _ip_length(record.data, start, protocol, size)
        payload = record.data[start : start + min(size, nfqnl.MAX_PAYLOAD)]
        hook = self._hook
        if hook is None:
            hook = self._find_hook(payload, protocol, frame.direction or record.direction)
        family = Family.BRIDGE if self._bridge else _IP_FAMILIES[protocol]
        if subsystem == Subsystem.LOG:
            attributes = build_attribute(NFULA.PACKET_HDR, _pack_log_header(protocol, hook))
            attributes += build_attribute(NFULA.PREFIX, b"\0")
            attributes += self._describe(_OF_LOG, found, hook, _interface(record, frame))
            attributes += build_attribute(NFULA.PAYLOAD, payload)
            return build_message(nfulnl.MSG_PACKET, number, attributes, family=family)
        attributes = build_attribute(NFQA.PACKET_HDR, _pack_queue_header(packet_id, protocol, hook))
        attributes += self._describe(_OF_QUEUE, found, hook, _interface(record, frame))
        if size > len(payload):
            attributes += build_attribute(NFQA.CAP_LEN, size.to_bytes(4, "big"))
        # The kernel does not pad the last one.
        attributes += build_attribute(NFQA.PAYLOAD, payload)[: netlink.ATTRIBUTE_HEADER_SIZE + len(payload)]
        return build_message(nfqnl.MSG_PACKET, number, attributes, family=family)

    def _describe(self, numbers: _Numbers, found: Found, hook: Hook, interface: int | None) -> bytes:
        """Return the attributes with which the kernel describes the interface and the link-layer header."""
        attributes = b""
        sent = hook in _SENT
        if interface is not None:
            if self._bridge:
                number = numbers.physoutdev if sent else numbers.physindev
            else:
                number = numbers.outdev if sent else numbers.indev
            attributes += build_attribute(number, interface.to_bytes(4, "big"))
        source = found.frame.source
        if source and not sent:  # packets that this machine sends have no such header yet
            attributes += build_attribute(numbers.hwaddr, _pack_hwaddr(len(source), source.ljust(8, b"\0")))
        if self._bridge:
            if found.frame.tags:
                protocol, tci = found.frame.tags[0]
                tag = build_attribute(NFQA_VLAN.PROTO, protocol.to_bytes(2, "big"))
                tag += build_attribute(NFQA_VLAN.TCI, tci.to_bytes(2, "big"))
                attributes += build_attribute(numbers.vlan | netlink.NESTED, tag)
            attributes += build_attribute(numbers.l2hdr, found.header)
        return attributes

    def _find_hook(self, packet: bytes, protocol: int, direction: Direction | None) -> Hook:
        if self._local and protocol in _VERSIONS and len(packet) >= _HEADERS[protocol]:
            if protocol == IPV4:
                source, destination = packet[12:16], packet[16:20]
            else:
                source, destination = packet[8:24], packet[24:40]
            if self._is_local(source):
                return Hook.OUTPUT
            return Hook.INPUT if self._is_local(destination) else Hook.FORWARD
        return Hook.PREROUTING if direction is None else _HOOKS[direction]

    def _is_local(self, address: bytes) -> bool:
        number = int.from_bytes(address, "big")
        return any(size == len(address) and number & mask == network for size, mask, network in self._local)


class _Numbers(NamedTuple):
    """The numbers of the attributes that both queues and logs have."""

    indev: int
    outdev: int
    physindev: int
    physoutdev: int
    hwaddr: int
    vlan: int
    l2hdr: int


_OF_QUEUE = _Numbers(
    NFQA.IFINDEX_INDEV,
    NFQA.IFINDEX_OUTDEV,
    NFQA.IFINDEX_PHYSINDEV,
    NFQA.IFINDEX_PHYSOUTDEV,
    NFQA.HWADDR,
    NFQA.VLAN,
    NFQA.L2HDR,
)
_OF_LOG = _Numbers(
    NFULA.IFINDEX_INDEV,
    NFULA.IFINDEX_OUTDEV,
    NFULA.IFINDEX_PHYSINDEV,
    NFULA.IFINDEX_PHYSOUTDEV,
    NFULA.HWADDR,
    NFULA.VLAN,
    NFULA.L2HDR,
)


def interface_name(record: Record) -> str | None:
    """Return the name of the interface of a record's packet, if the file contains it."""
    return None if _is_any(record) else record.interface_name


def _interface(record: Record, frame: Frame) -> int | None:
    if frame.interface is not None:
        return frame.interface
    return None if _is_any(record) else record.interface


def _is_any(record: Record) -> bool:
    """Return whether the record's interface is Linux's "any", which stands for all interfaces."""
    return record.link_type in _COOKED and record.interface_name == "any"


def _ip_length(data: bytes, start: int, protocol: int, size: int) -> int:
    """Return the length of the IP packet at the beginning of ``size`` bytes of a frame."""
    if protocol == IPV4:
        said = int.from_bytes(data[start + 2 : start + 4], "big")
    else:
        said = int.from_bytes(data[start + 4 : start + 6], "big")
        said += _HEADERS[IPV6] if said else 0
    # 0, or less than the header: a super-packet captured before its length was filled in; or a damaged packet.
    return said if _HEADERS[protocol] <= said <= size else size


def _parse_hook(hook: Hook | str) -> Hook:
    if isinstance(hook, Hook):
        return hook
    names = tuple(member.name.lower() for member in Hook)
    check_choice("hook", hook, names)
    return Hook[hook.upper()]


def _parse_networks(local: str | Iterable[str]) -> Sequence[tuple[int, int, int]]:
    """Return the size of the addresses, the mask and the network number of each."""
    networks: list[tuple[int, int, int]] = []
    if local == ():
        return networks
    from ipaddress import ip_network  # the import takes milliseconds, and most replays do not need it

    try:
        texts = [local] if isinstance(local, str) else list(local)
    except TypeError:
        raise wrong_type("local", local, "a network or several: '192.0.2.0/24'") from None
    for text in texts:
        try:
            network = ip_network(text)
        except ValueError as error:
            raise ArgumentError(f"local: {network_error(text, error)}") from None
        networks.append((network.max_prefixlen // 8, int(network.netmask), int(network.network_address)))
    return networks
