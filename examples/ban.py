"""Ban for ten minutes who fails to log in five times in a minute: python ban.py 21 "530 "

A failure is a TCP segment that the server sends from the port and that begins with the text: "530 " is what FTP servers
say, "HTTP/1.1 401" those of HTTP.
"""

import sys
import time

import nfnet
from nfnet import rules

port, text = int(sys.argv[1]), sys.argv[2].encode()

banned = rules.Set("address", timeout=600)
failures = {}  # when each client failed, by its address

ban = rules.drop(hook="input", protocol="tcp", destination_port=port, source=banned)
watch = rules.log(5, hook="output", protocol="tcp", source_port=port)


def handle(message):
    if not message.tcp or not message.tcp.data.startswith(text):
        return
    client, now = message.ip.destination, time.monotonic()
    recent = [when for when in failures.pop(client, ()) if when > now - 60] + [now]
    if len(recent) < 5:
        failures[client] = recent  # behind the others
    else:
        banned.add(client)
        print(f"{client} is banned for ten minutes", flush=True)
    if len(failures) > 10_000:
        del failures[next(iter(failures))]


with rules.install(ban, watch), nfnet.Log(5, threshold=1) as log:
    log.run(handle)
