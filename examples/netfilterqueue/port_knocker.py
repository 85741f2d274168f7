"""Let in who knocks: a port is open to those who tried three others before, in the right order.

iptables -I INPUT -p tcp --syn -j NFQUEUE --queue-num 1
python port_knocker.py 2222 7001 7002 7003
"""

import socket
import struct
import sys

from netfilterqueue import NetfilterQueue

door, *knocks = (int(argument) for argument in sys.argv[1:])
heard = {}  # address: how many knocks were right so far


def listen(packet):
    data = packet.get_payload()
    header = (data[0] & 15) * 4
    source = socket.inet_ntoa(data[12:16])
    (port,) = struct.unpack_from("!H", data, header + 2)
    right = heard.get(source, 0)
    if port == door:
        welcome = right == len(knocks)
        print(source, "comes in" if welcome else "is kept out", flush=True)
        packet.accept() if welcome else packet.drop()
    elif port in knocks:
        if right < len(knocks) and port == knocks[right]:
            heard[source] = right + 1
        elif right == 0 or port != knocks[right - 1]:  # the same again: that is TCP, which got no answer
            heard[source] = 0
        print(source, "knocks at", port, flush=True)
        packet.drop()
    else:
        packet.accept()


queue = NetfilterQueue()
queue.bind(1, listen, range=60)
try:
    queue.run()
except KeyboardInterrupt:
    pass
finally:
    queue.unbind()
