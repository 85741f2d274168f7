"""Replace a word in web pages that are not encrypted by another of the same length. Needs scapy.

iptables -I FORWARD -p tcp --sport 80 -j NFQUEUE --queue-num 1
python replace_text.py cat dog
"""

import sys

from netfilterqueue import NetfilterQueue
from scapy.layers.inet import IP, TCP
from scapy.packet import Raw

old, new = (word.encode() for word in sys.argv[1:3])
if len(old) != len(new):
    sys.exit("both words must have the same length, or sender and receiver disagree about what was sent")


def replace(packet):
    ip = IP(packet.get_payload())
    if ip.haslayer(Raw) and old in ip[Raw].load:
        ip[Raw].load = ip[Raw].load.replace(old, new)
        del ip.chksum, ip[TCP].chksum
        packet.set_payload(bytes(ip))
    packet.accept()


queue = NetfilterQueue()
queue.bind(1, replace)
try:
    queue.run()
except KeyboardInterrupt:
    pass
finally:
    queue.unbind()
