"""To scapy and back, where it is installed; loading it takes about a second, so only who asks for it pays."""

from __future__ import annotations

from typing import Any

from .errors import NfnetError

_COMPUTED = ("len", "plen", "ihl", "dataofs", "chksum", "cksum")


def is_scapy(value: object) -> bool:
    """Whether a value is a packet of scapy's, without loading it."""
    if type(value) is bytes:  # what nearly all are
        return False
    return any(kind.__module__ == "scapy.packet" for kind in type(value).__mro__)


def parse(packet: bytes) -> Any:
    """The packet as scapy sees it: ``IP`` or ``IPv6``, or ``Raw`` for what is neither.

    Raises NfnetError if scapy is not installed.
    """
    try:
        from scapy.layers.inet import IP
        from scapy.layers.inet6 import IPv6
        from scapy.packet import Raw
    except ImportError as error:
        raise NfnetError(f"scapy is needed for this: pip install 'nfnet[scapy]' ({error})") from error
    return {4: IP, 6: IPv6}.get(packet[0] >> 4 if packet else 0, Raw)(packet)


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
