"""Opens a port for 30 s to senders that knock at others in order: python port_knocking.py 22 7000 9000 8000"""

import sys

import nfnet
from nfnet import rules

port, *knocks = map(int, sys.argv[1:])

# Senders that have knocked at the first port, at the first two, and so on. Those in the last set
# can connect. At most ten seconds between knocks.
heard = [rules.Set("address", timeout=10) for _ in knocks]
opened = heard[-1] = rules.Set("address", timeout=30)

new = {"hook": "input", "protocol": "tcp", "tcp_flags": "syn,!ack"}
closed = rules.drop(**new, destination_port=port, not_source=opened)
listen = rules.log(5, **new, destination_port=knocks, limit="100/second burst 100")


def handle(message):
    source, step = message.ip.source, knocks.index(message.tcp.destination_port)
    if step == 0 or source in heard[step - 1]:
        heard[step].add(source)
        if heard[step] is opened:
            print(f"port {port} is open to {source}", flush=True)


with rules.install(closed, listen), nfnet.Log(5, threshold=1) as log:
    log.run(handle)
