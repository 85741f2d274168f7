"""As print_and_accept.py, with a socket of the script's own, which may have a timeout.

iptables -I INPUT -p udp -j NFQUEUE --queue-num 1
"""

import socket

from netfilterqueue import NetfilterQueue


def print_and_accept(packet):
    print(packet, flush=True)
    packet.accept()


queue = NetfilterQueue()
queue.bind(1, print_and_accept)
sock = socket.fromfd(queue.get_fd(), socket.AF_UNIX, socket.SOCK_STREAM)
sock.settimeout(1)
try:
    while True:
        try:
            queue.run_socket(sock)
        except TimeoutError:
            print("nothing for a second", flush=True)
except KeyboardInterrupt:
    print()
finally:
    sock.close()
    queue.unbind()
