"""A firewall that asks once for each program and server: python ask_once.py

A connection that a program of this machine opens waits for your answer: y accepts it, anything
else refuses it. Answers hold until the firewall ends. Connections that were open before, that
others open, or that stay on this machine (lo), pass without a question.
"""

import sys

from nfnet import Queue, rules

answers = {}


def is_allowed(packet):
    flow, process = packet.flow, packet.process
    program = process.executable or process.name if process else "an unknown program"
    server = program, flow.protocol, flow.destination, flow.destination_port
    if server not in answers:
        print(f"{program!r} opens {flow}: y or n?", flush=True)
        answers[server] = sys.stdin.readline().strip() == "y"  # "" at the end of the input
    return answers[server]


def handle(packet):
    if is_allowed(packet):
        packet.accept(connection=True)
    else:
        packet.reject(connection=True)


where = {"hook": "output", "not_out_interface": "lo", "remember": True}
tcp = rules.queue(1, protocol="tcp", tcp_flags="syn,!ack", **where)
udp = rules.queue(1, protocol="udp", state="new", **where)
with rules.install(tcp, udp), Queue(1, on_error="drop") as queue:
    queue.forget_all()  # decisions of an earlier run of this program
    print("asking", flush=True)
    queue.run(handle)
