"""A firewall that asks once for each user and server, and then leaves connections to the kernel: python ask_once.py

Every new connection that a program of this machine opens waits for an answer: y lets it go, n refuses it. Answers hold
for later connections, too, until the program ends; "again" forgets them, and asks anew, also about what is open.
"""

import pwd
import sys

import nfnet

answers = {}


def user_of(packet):
    try:
        return pwd.getpwuid(packet.uid).pw_name
    except (KeyError, TypeError):
        return f"user {packet.uid}"


def ask(packet, queue):
    flow = packet.flow
    server = user_of(packet), flow.protocol, flow.destination, flow.destination_port
    while server not in answers:
        print(f"{server[0]} opens {flow}: y, n or again?", flush=True)
        answer = sys.stdin.readline().strip()
        if answer == "again":
            answers.clear()
            print(f"{queue.forget_all()} connections will be asked about", flush=True)
        elif answer in ("y", "n", ""):  # the end of the input is a no
            answers[server] = answer == "y"
    return answers[server]


def handle(packet):
    if ask(packet, queue):
        packet.accept(connection=True)
    else:
        packet.reject(connection=True)


rule = nfnet.rules.queue(1, hook="output", protocol=["tcp", "udp"], not_out_interface="lo", remember=True)
with rule, nfnet.Queue(1, uid_gid=True, on_error="drop") as queue:
    print("asking", flush=True)
    queue.run(handle)
