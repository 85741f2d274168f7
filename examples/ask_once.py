"""A firewall that asks once for each program and server, and then leaves connections to the kernel: python ask_once.py

Every new connection that a program of this machine opens waits for an answer: y lets it go, n refuses it. Answers hold
for later connections, too, until the firewall ends; "again" forgets them, and asks anew, also about what is open.
"""

import sys

import nfnet

answers = {}


def is_allowed(packet):
    flow, process = packet.flow, packet.process
    program = process.executable or process.name if process else "an unknown program"
    server = program, flow.protocol, flow.destination, flow.destination_port
    while server not in answers:
        print(f"{program} opens {flow}: y, n or again?", flush=True)
        answer = sys.stdin.readline().strip()
        if answer == "again":
            answers.clear()
            print(f"{queue.forget_all()} connections will be asked about", flush=True)
        elif answer in ("y", "n", ""):  # which is what the end of the input looks like
            answers[server] = answer == "y"
    return answers[server]


def handle(packet):
    if is_allowed(packet):
        packet.accept(connection=True)
    else:
        packet.reject(connection=True)


rule = nfnet.rules.queue(1, hook="output", protocol=["tcp", "udp"], not_out_interface="lo", remember=True)
with rule, nfnet.Queue(1, on_error="drop") as queue:
    print("asking", flush=True)
    queue.run(handle)
