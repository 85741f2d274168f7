"""To scapy and back, where it is installed; loading it takes about a second, so only who asks for it pays."""

from __future__ import annotations

from typing import Any, Protocol

from ..errors import NfnetError
from ._headers import IP_VERSIONS

FRAME = 0x6558  # "transparent Ethernet bridging", the EtherType under which tunnels carry whole frames
_COMPUTED = ("len", "plen", "ihl", "dataofs", "chksum", "cksum")


class ScapyPacket(Protocol):
    """What type checkers know of a packet of scapy's, whether or not scapy is installed."""

    def build(self) -> bytes:
        """The packet as bytes."""

    def __bytes__(self) -> bytes:
        """The packet as bytes."""


def is_scapy(value: object) -> bool:
    """Whether a value is a packet of scapy's, without loading it."""
    if type(value) is bytes:  # what nearly all are
        return False
    return any(kind.__module__ == "scapy.packet" for kind in type(value).__mro__)


def parse(packet: bytes, ethertype: int) -> Any:
    """What is behind a link-layer header with that EtherType, as scapy sees it.

    ``IP``, ``IPv6``, ``ARP``, ``Dot1Q`` or ``Dot1AD``; ``Raw`` for anything else, for what is no IP packet although it
    is said to be one, and for what scapy cannot read. `FRAME` stands for a frame that begins with its Ethernet header.

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
    except Exception:  # a cut header, for instance; scapy itself does the same in the layers behind the first
        return Raw(packet)


def may_begin(packet: Any, *, ip: bool) -> bool:
    """Whether its first layer may stand where a network header does; with ``ip``, where an IP header does."""
    return packet.name in ("IP", "IPv6", "Raw") if ip else packet.name not in ("Ethernet", "802.3")


def build(packet: Any) -> bytes:
    """The bytes of a packet of scapy's, with lengths and checksums computed anew, whatever they were."""
    copy = packet.copy()
    layer = copy
    # What an error of ICMP quotes is not ours to mend, nor what is in a fragment: its checksum covers all of them.
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
    """Whether scapy fills the field in where it is missing: its default is None."""
    return bool(layer.default_fields.get(name, 0) is None)
