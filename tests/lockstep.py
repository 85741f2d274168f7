"""Two threads decide the same packet at the same moment: one verdict counts, and the other thread gets an error.

    python -m tests.lockstep 30000       count the packets, of 30,000, that did not get exactly one verdict

In a free-threaded build of CPython both verdicts can be accepted unless a lock prevents it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

from nfnet import AlreadyDecidedError, Packet, Queue, Verdict

from .kernel import FakeKernel

VERDICTS: list[tuple[Verdict, Callable[[Packet], None]]] = [
    (Verdict.ACCEPT, Packet.accept),
    (Verdict.DROP, Packet.drop),
    (Verdict.REPEAT, lambda packet: packet.repeat(mark=1)),
]


class Step:
    """Lets two threads continue at the same moment. They spin, since waking a thread takes longer than a verdict."""

    def __init__(self) -> None:
        self._arrived = [0, 0]
        self.over = False

    def wait(self, thread: int) -> None:
        self._arrived[thread] += 1
        mine = self._arrived[thread]
        while self._arrived[not thread] < mine:
            if self.over:
                raise RuntimeError("the other thread has ended")
            os.sched_yield()  # there can be a single processor


def run(count: int, together: int = 50) -> list[str]:
    """Let two threads decide ``count`` packets, and return a line for each error."""
    kernel = FakeKernel()
    packets: list[Packet] = []
    stood: list[dict[int, Verdict]] = [{}, {}]
    wrong: list[str] = []
    step = Step()

    def decide(thread: int) -> None:
        try:
            for number, packet in enumerate(packets):
                verdict, give = VERDICTS[(number + thread) % len(VERDICTS)]
                step.wait(thread)
                try:
                    give(packet)
                except AlreadyDecidedError:
                    continue
                stood[thread][packet.id] = verdict
        except BaseException as error:
            step.over = True
            wrong.append(repr(error))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # where one thread runs at a time, switch between them in the middle of a verdict
    with Queue(1, transport=kernel) as queue:
        for done in range(0, count, together):
            packets.clear()
            kernel.feed(min(together, count - done))
            queue.process(packets.append)
            other = threading.Thread(target=decide, args=(1,))
            other.start()
            decide(0)
            other.join()
        sys.setswitchinterval(before)
        queue.flush()
        counters = queue.counters
        pending = len(queue.pending)
    wrong += [
        f"packet {number}: both threads were told that their verdict stands" for number in stood[0].keys() & stood[1]
    ]
    told = stood[0] | stood[1]
    judged = [(packet_id, word & 0xFF) for packet_id, word, _ in kernel.judged]
    if len(told) != count:
        wrong.append(f"{count - len(told)} packets of which no thread was told that its verdict stands")
    wrong += [
        f"packet {number}: {told.get(number)!r} stands, and the kernel got {word}"
        for number, word in judged
        if told.get(number) != word
    ]
    if len(judged) != count:
        wrong.append(f"the kernel got {len(judged)} verdicts on {count} packets")
    if (counters.received, pending, counters.lost, counters.refused) != (count, 0, 0, {}):
        wrong.append(f"the books: {counters}")
    return wrong


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 30_000
    wrong = run(count)
    print(*wrong[:10], sep="\n")
    print(f"{len(wrong)} of {count} wrong ({sys.version})")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
