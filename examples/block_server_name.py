"""No TLS connections to servers of these names: python block_server_name.py HOOK NAME...

HOOK is "output" for the programs of this machine, "forward" for what it forwards. A name includes its subdomains. QUIC,
whose hellos are encrypted, is blocked altogether, so that browsers use TCP.
"""

import sys

import nfnet
from nfnet import inet

hook, *names = sys.argv[1:]
blocked = tuple(f".{name.lower()}" for name in names)
beginnings = inet.Beginnings()


def handle(packet):
    name = inet.server_name(beginnings.add(packet.payload))
    if name and f".{name}".endswith(blocked):
        print(f"{packet.flow}: {name}", flush=True)
        packet.drop()
    elif packet.udp:
        packet.drop()
    else:
        packet.accept()


tls = nfnet.rules.queue(1, hook=hook, protocol="tcp", destination_port=443)
quic = nfnet.rules.queue(1, hook=hook, protocol="udp", destination_port=443)
with tls, quic, nfnet.Queue(1) as queue:
    queue.run(handle)
