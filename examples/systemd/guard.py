"""A service that decides packets. It reports to systemd when it is ready, and ends on SIGTERM or Ctrl-C.

python guard.py [QUEUE [HOOK]]

HOOK is "input" (default) for packets to this machine or container, "forward" for packets that it forwards.
"""

import os
import signal
import socket
import sys

import nfnet


def notify(state):
    """Send the state to systemd (sd_notify), if systemd has started this program."""
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
# Fail open: packets pass if the handler raises an exception, if the queue is full, and when the queue is closed.
queue = nfnet.Queue(number, on_error="accept", fail_open=True, undecided="accept")
try:
    with rule, queue:
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, lambda *_: queue.stop())
        notify("READY=1\nSTATUS=deciding packets")
        queue.run(handle)
        notify("STOPPING=1")
except nfnet.NfnetError as error:  # another program has the queue, for instance
    sys.exit(f"{error}")  # one line in the journal, and exit status 1
