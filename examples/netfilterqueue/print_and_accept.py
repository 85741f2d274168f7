"""Print a line for each packet, and let it go.

iptables -I INPUT -p udp -j NFQUEUE --queue-num 1
"""

from netfilterqueue import NetfilterQueue


def print_and_accept(packet):
    print(packet, flush=True)
    packet.accept()


queue = NetfilterQueue()
queue.bind(1, print_and_accept)
try:
    queue.run()
except KeyboardInterrupt:
    print()
finally:
    queue.unbind()
