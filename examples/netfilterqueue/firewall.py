"""A firewall with a file of rules; the first that fits decides, and what none fits is accepted.

    iptables -I FORWARD -j NFQUEUE --queue-num 1
    python firewall.py firewall.rules

A line is "accept" or "drop", and then any of: proto tcp, from 192.0.2.0/24, to 198.51.100.7, port 80.
"""

import ipaddress
import struct
import sys

from netfilterqueue import PROTOCOLS, NetfilterQueue


def parse(line):
    verdict, *words = line.split()
    if verdict not in ("accept", "drop") or len(words) % 2:
        raise ValueError(line)
    conditions = dict(zip(words[::2], words[1::2]))
    if conditions.keys() - {"proto", "from", "to", "port"}:
        raise ValueError(line)
    for key in ("from", "to"):
        if key in conditions:
            conditions[key] = ipaddress.ip_network(conditions[key])
    return verdict, conditions


def fits(conditions, proto, source, destination, port):
    return (
        conditions.get("proto", proto) == proto
        and source in conditions.get("from", [source])
        and destination in conditions.get("to", [destination])
        and str(port) == conditions.get("port", str(port))
    )


def decide(packet):
    data = packet.get_payload()
    header = (data[0] & 15) * 4
    proto = PROTOCOLS.get(data[9], "").lower()
    source, destination = ipaddress.ip_address(data[12:16]), ipaddress.ip_address(data[16:20])
    port = struct.unpack_from("!H", data, header + 2)[0] if proto in ("tcp", "udp") else None
    for verdict, conditions in rules:
        if fits(conditions, proto, source, destination, port):
            print(verdict, proto, source, destination, port, flush=True)
            packet.accept() if verdict == "accept" else packet.drop()
            return
    packet.accept()


with open(sys.argv[1]) as file:
    lines = (line.partition("#")[0].strip() for line in file)
    rules = [parse(line) for line in lines if line]

queue = NetfilterQueue()
queue.bind(1, decide)
try:
    queue.run()
except KeyboardInterrupt:
    pass
finally:
    queue.unbind()
