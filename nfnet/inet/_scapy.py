"""Conversion to scapy's packets and back. Loading scapy takes about a second, so it is loaded when first used."""

from __future__ import annotations

from typing import Any, Protocol

from ..errors import NfnetError
from ._headers import IP_VERSIONS

FRAME = 0x6558  # "transparent Ethernet bridging", the EtherType under which tunnels carry whole frames
_COMPUTED = ("len", "plen", "ihl", "dataofs", "chksum", "cksum")


class ScapyPacket(Protocol):
    """The type of scapy's packets for type checkers, also if scapy is not installed."""

    def build(self) -> bytes:
        """Return the packet as bytes."""

    def __bytes__(self) -> bytes:
        """Return the packet as bytes."""


def is_scapy(value: object) -> bool:
    """Return whether a value is a packet of scapy, without loading scapy."""
    if type(value) is bytes:  # the usual case
        return False
    return any(kind.__module__ == "scapy.packet" for kind in type(value).__mro__)


def parse(packet: bytes, ethertype: int) -> Any:
    """Return the bytes after a link-layer header with that EtherType as a packet of scapy.

    Its class is ``IP``, ``IPv6``, ``ARP``, ``Dot1Q`` or ``Dot1AD``; ``Raw`` for other EtherTypes, for bytes that are
    not an IP packet despite the EtherType, and for bytes that scapy cannot read. `FRAME` is the EtherType for a frame
    that begins with its Ethernet header.

    Raises NfnetError if scapy is not installed.
    """
    try:
        from scapy.layers.inet import IP
        from scapy.layers.inet6 import IPv6
        from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
        from scapy.packet import Raw
    except ImportError as error:
        raise NfnetError(f"scapy is needed for this: pip install 'nfnet[scapy]' ({error})") from error
    layers = {0x0800: IP, 0x86DD: IPv6, 0x0806: ARP, 0x8100: Dot1Q, 0x88A8: Dot1AD, FRAME: Ether}
    layer = layers.get(ethertype, Raw)
    if ethertype in IP_VERSIONS and IP_VERSIONS[ethertype] != (packet[0] >> 4 if packet else 0):
        layer = Raw
    try:
        return layer(packet)
    except Exception:  # a truncated header, for instance; scapy itself does the same in the layers after the first
        return Raw(packet)


def may_begin(packet: Any, *, ip: bool) -> bool:
    """Return whether the first layer can take the place of a network header; with ``ip``, that of an IP header."""
    return packet.name in ("IP", "IPv6", "Raw") if ip else packet.name not in ("Ethernet", "802.3")


def build(packet: Any) -> bytes:
    """Return the bytes of a packet of scapy, with lengths and checksums computed anew."""
    copy = packet.copy()
    layer = copy
    # The packet that an ICMP error quotes stays unchanged, and so does the content of a fragment, because its checksum
    # covers all fragments.
    while layer and not layer.name.endswith("in ICMP") and not layer.name.endswith("in ICMPv6"):
        for name in _COMPUTED:
            if layer.fields.get(name) is not None and _is_computed(layer, name):
                layer.delfieldval(name)
        if layer.name == "IPv6 Extension Header - Fragmentation header" or _is_fragment(layer):
            break
        layer = layer.payload
    return bytes(copy)


def _is_fragment(layer: Any) -> bool:
    return layer.name == "IP" and bool(layer.frag or layer.flags & 1)


def _is_computed(layer: Any, name: str) -> bool:
    """Return whether scapy computes the field if it is missing: then its default is None."""
    return bool(layer.default_fields.get(name, 0) is None)
