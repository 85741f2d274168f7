"""Measure storing records in PostgreSQL, sending them to NATS, and moving them from NATS to PostgreSQL.

It uses running servers: --postgresql URL and --nats URL. It creates tables and a stream named nfnet-bench, and adds its
records to those in the tables.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count

from nfnet import LogMessage, collect, testing
from nfnet.collect import Batch, Session

RECORDS = 50_000
_started = count(time.time_ns())


def batches(size: int, records: int) -> list[Batch]:
    """Records of as many packets, all of them different."""
    chance = random.Random(1)
    found = []
    for _ in range(records // size):
        session = Session("bench", "", 5, next(_started))
        messages = []
        for number in range(size):
            source = ".".join(str(chance.randrange(256)) for _ in range(4))
            packet = testing.tcp(b"", source=source, destination_port=chance.randrange(65536))
            raw = testing.log_message(packet, prefix="drop: ", SEQ=number, IFINDEX_INDEV=2)
            messages.append(LogMessage.from_bytes(raw, {2: "eth0"}.get))
        found.append(Batch(session, messages))
    return found


def measure(what: str, records: int, work: Callable[[], object]) -> None:
    began, used = time.monotonic(), time.process_time()
    work()
    took, used = time.monotonic() - began, time.process_time() - used
    print(f"{what:<44} {records / took:9,.0f} records/s   cpu here {used / records * 1e6:5.2f} µs a record", flush=True)


def measure_output(name: str, output: collect.Output, together: tuple[int, ...] = (1,)) -> None:
    output.create()
    output.begin()
    for size in (100, 1000):
        for many in together:
            work = batches(size, RECORDS)
            portions = [work[place : place + many] for place in range(0, len(work), many)]
            what = f"{name}, {f'{many} batches' if many > 1 else 'a batch'} of {size}"
            measure(what, RECORDS, partial(deque, map(output.write_many, portions), maxlen=0))
    output.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--postgresql", metavar="URL")
    parser.add_argument("--nats", metavar="URL")
    options = parser.parse_args()
    if options.postgresql:
        measure_output("PostgreSQL", collect.output(options.postgresql), (1, 64))
    if options.nats:
        for compress in ("no", "yes"):
            settings = {"stream": "nfnet-bench", "compress": compress, "max_size": "2G"}
            measure_output(f"NATS, compress={compress}", collect.output(options.nats, settings))
    if options.postgresql and options.nats:
        source, total = collect.source(options.nats, {"stream": "nfnet-bench"}), 4 * RECORDS
        worker = collect.Forwarder(source, [collect.output(options.postgresql)], count=total)
        measure("a worker, from NATS to PostgreSQL", total, worker.run)
    if not (options.postgresql or options.nats):
        print("nothing to measure without --postgresql URL, --nats URL, or both")
    return 0


if __name__ == "__main__":
    sys.exit(main())
