"""Replaces an address in DNS answers to a network namespace: python dns_answers.py NETNS OLD NEW"""

import socket
import sys

import nfnet

netns, old, new = sys.argv[1], *map(socket.inet_aton, sys.argv[2:])


def handle(packet):
    packet.accept(payload=packet.rewrite(data=packet.udp.data.replace(old, new)))


rule = nfnet.rules.queue(1, hook="input", protocol="udp", source_port=53, netns=netns)
with rule, nfnet.Queue(1, netns=netns) as queue:
    queue.run(handle)
