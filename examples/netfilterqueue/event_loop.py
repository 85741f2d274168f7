"""Packets among the other things that an asyncio program does: each waits a tenth of a second.

iptables -I FORWARD -p udp -j NFQUEUE --queue-num 1
"""

import asyncio
import contextlib

from netfilterqueue import NetfilterQueue


async def main():
    loop = asyncio.get_running_loop()

    def delay(packet):
        loop.call_later(0.1, packet.accept)

    queue = NetfilterQueue()
    queue.bind(1, delay)
    loop.add_reader(queue.get_fd(), queue.run, False)
    try:
        await asyncio.Event().wait()
    finally:
        loop.remove_reader(queue.get_fd())
        queue.unbind()


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main())
