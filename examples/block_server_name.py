"""Block TLS connections to servers with these names: python block_server_name.py HOOK NAME...

HOOK is "output" for programs of this machine, "forward" for packets that it forwards. A name
includes its subdomains. QUIC, whose hellos are encrypted, is rejected, so that browsers use TCP.
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
