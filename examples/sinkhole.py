"""Answers DNS questions for certain names itself: python sinkhole.py HOOK ADDRESS NAME...

HOOK is "output" for programs of this machine, "forward" for packets that it forwards. ADDRESS is
the IPv4 address that these names get. A name includes its subdomains.
"""

import socket
import struct
import sys

import nfnet

hook, address, *names = sys.argv[1:]
record = socket.inet_aton(address)
blocked = tuple(f".{name.lower()}".encode() for name in names)


def asked(query):
    """Return the name in a DNS query, with a dot before each label; its type; the question."""
    name, place = b"", 12
    try:
        while size := query[place]:
            name += b"." + query[place + 1 : place + 1 + size].lower()
            place += 1 + size
        kind, group = struct.unpack_from("!HH", query, place + 1)
    except (IndexError, struct.error):
        return b"", 0, b""  # an incomplete question
    if query[2] & 0xF8 or query[4:6] != b"\0\1" or group != 1:
        return b"", 0, b""  # not a standard query with one question, of class IN
    return name, kind, query[12 : place + 5]


def handle(packet):
    query = packet.udp.data if packet.udp else b""
    name, kind, question = asked(query)
    if not name.endswith(blocked):
        packet.accept()
        return
    print(packet.flow, ascii(name.decode("latin-1")), flush=True)
    has_record = kind == 1  # A; of other types, AAAA for instance, there are none
    # The id; a response, which needs no other server; one question, the number of records.
    flags = bytes([0x80 | query[2] & 1, 0x80])
    header = query[:2] + flags + struct.pack("!4H", 1, has_record, 0, 0)
    # A pointer to the name of the question, at byte 12; type A, class IN, 60 seconds, 4 bytes.
    answer = struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + record
    packet.answer(header + question + answer * has_record)


rule = nfnet.rules.queue(1, hook=hook, protocol="udp", destination_port=53)
with rule, nfnet.Queue(1, on_error="drop") as queue:
    queue.run(handle)
