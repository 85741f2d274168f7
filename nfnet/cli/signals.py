"""Commands that run until a signal tells them to stop."""

from __future__ import annotations

import contextlib
import select
import signal
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def until_told(
    stop: Callable[[], object],
    reopen: Callable[[], object] | None = None,
    show: Callable[[], object] | None = None,
) -> Iterator[None]:
    """While the block runs, SIGINT and SIGTERM call ``stop``, and SIGHUP ``reopen`` and SIGUSR1 ``show``, if given."""
    wanted = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGHUP: reopen, signal.SIGUSR1: show}
    before = {
        number: signal.signal(number, lambda *_, call=call: call())
        for number, call in wanted.items()
        if call is not None
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_readable(file: Any, timeout: float | None) -> bool:
    """Return whether a queue or log has something to do in time. A signal is noticed within a second, not at once."""
    return bool(select.select([file], [], [], 1.0 if timeout is None else min(timeout, 1.0))[0])
