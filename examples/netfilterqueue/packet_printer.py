"""As print_and_accept.py, in the way of version 0.2.

iptables -I INPUT -p udp -j NFQUEUE --queue-num 1
"""

from netfilterqueue import QueueHandler


class PacketPrinter(QueueHandler):
    def handle(self, packet):
        print(packet, flush=True)
        packet.accept()


printer = PacketPrinter()
printer.bind(1)
try:
    printer.run()
except KeyboardInterrupt:
    print()
