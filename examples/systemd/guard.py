"""A service that decides packets: tells systemd when it is ready, and ends when it is told to.

python guard.py [QUEUE [HOOK]]

HOOK is "input" for packets to this machine or container (if not given), "forward" for those that it forwards.
"""

import os
import signal
import socket
import sys

import nfnet


def notify(state):
    """Tell systemd (sd_notify); nobody listens where it does not run this."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)


def handle(packet):
    if packet.udp and b"secret" in packet.udp.data:
        packet.drop()
    else:
        packet.accept()


number = int(sys.argv[1]) if len(sys.argv) > 1 else 1
hook = sys.argv[2] if len(sys.argv) > 2 else "input"
rule = nfnet.rules.queue(number, hook=hook, protocol="udp")
# If a handler fails, let the packet pass and go on; if all are slow, let packets pass, too.
queue = nfnet.Queue(number, on_error="accept", fail_open=True, undecided="accept")
try:
    with rule, queue:
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, lambda *_: queue.stop())
        notify("READY=1\nSTATUS=deciding packets")
        queue.run(handle)
        notify("STOPPING=1")
except nfnet.NfnetError as error:  # another program has the queue, say: one line for the journal, and status 1
    sys.exit(f"{error}")
