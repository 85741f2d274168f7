"""Count who sent how many of so many logged packets, with a callback.

iptables -I INPUT -j NFLOG --nflog-group 5 --nflog-size 40
python count_senders.py 5 100
"""

import collections
import socket
import sys

import nflogr

senders = collections.Counter()


def count(data):
    if data.proto == nflogr.PROTO_IP:
        senders[socket.inet_ntop(socket.AF_INET, data.payload[12:16])] += 1
    elif data.proto == nflogr.PROTO_IPV6:
        senders[socket.inet_ntop(socket.AF_INET6, data.payload[8:24])] += 1


log = nflogr.open(int(sys.argv[1]), qthresh=10, timeout=0.1, enobufs=nflogr.ENOBUFS_HANDLE)
log.loop(count, int(sys.argv[2]))
for address, packets in senders.most_common():
    print(packets, address)
if log.drops:
    print("and some were lost")
log.close()
