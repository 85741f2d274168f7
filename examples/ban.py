"""Bans an address for ten minutes after five failed log-ins: python ban.py 21 "530 "

The failures must be within a minute. A failure is a TCP segment from the server that begins
with the text: "530 " for FTP, "HTTP/1.1 401" for HTTP.
"""

import collections
import functools
import sys
import time

import nfnet
from nfnet import rules

port, text = int(sys.argv[1]), sys.argv[2].encode()

banned = rules.Set("address", timeout=600)
ban = rules.drop(hook="input", protocol="tcp", destination_port=port, source=banned)
watch = rules.log(5, hook="output", protocol="tcp", source_port=port)


@functools.lru_cache(10_000)
def failures(client):
    """Times of a client's last five failures; kept for the 10,000 clients that failed last."""
    return collections.deque(maxlen=5)


def handle(message):
    if message.tcp and message.tcp.data.startswith(text):
        client, now = message.ip.destination, time.monotonic()
        times = failures(client)
        times.append(now)
        if len(times) == 5 and times[0] > now - 60:
            times.clear()
            banned.add(client)
            print(f"{client} is banned for ten minutes", flush=True)


with rules.install(ban, watch), nfnet.Log(5, threshold=1) as log:
    log.run(handle)
