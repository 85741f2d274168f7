"""Blocks TLS connections to servers of these names: python block_server_name.py HOOK NAME...

HOOK is "output" for programs of this machine, "forward" for packets that it forwards. A name
includes its subdomains. QUIC is refused, so that browsers use TCP: its ClientHello is encrypted.
"""

import sys

from nfnet import Queue, inet, rules

hook, *names = sys.argv[1:]
blocked = tuple(f".{name.lower()}" for name in names)
beginnings = inet.Beginnings()


def handle(packet):
    name = inet.server_name(beginnings.add(packet.payload))
    if name is inet.INCOMPLETE:
        packet.accept()
    elif name and f".{name}".endswith(blocked):
        print(packet.flow, name, flush=True)
        packet.reset()
    else:
        packet.accept(connection=True)


quic = rules.reject(hook=hook, protocol="udp", destination_port=443)
tls = rules.queue(1, hook=hook, protocol="tcp", destination_port=443, remember=True)
with rules.install(quic, tls), Queue(1, on_error="drop") as queue:
    queue.run(handle)
