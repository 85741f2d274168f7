"""A bad network: packets come late, and some of them never.

iptables -I FORWARD -j NFQUEUE --queue-num 1
python bad_network.py MILLISECONDS PERCENT
"""

import random
import select
import sys
import time
from collections import deque

from netfilterqueue import NetfilterQueue

delay, loss = float(sys.argv[1]) / 1000, float(sys.argv[2]) / 100
waiting = deque()  # when, and which packet


def enqueue(packet):
    if random.random() < loss:
        packet.drop()
    else:
        waiting.append((time.monotonic() + delay, packet))


queue = NetfilterQueue()
queue.bind(1, enqueue, max_len=10000, range=20)
try:
    while True:
        timeout = max(0, waiting[0][0] - time.monotonic()) if waiting else None
        if select.select([queue.get_fd()], [], [], timeout)[0]:
            queue.run(block=False)
        while waiting and waiting[0][0] <= time.monotonic():
            waiting.popleft()[1].accept()
except KeyboardInterrupt:
    pass
finally:
    queue.unbind()
