"""Signals for commands that run until they are stopped, and their waiting."""

from __future__ import annotations

import contextlib
import select
import signal
from collections.abc import Callable, Iterator

from .._io.poller import Poller
from .._io.system import WINDOWS

_LONGEST_WAIT = 1.0  # seconds; see `Poller.wait`


@contextlib.contextmanager
def until_told(
    stop: Callable[[], object],
    reopen: Callable[[], object] | None = None,
    show: Callable[[], object] | None = None,
) -> Iterator[None]:
    """While the block runs, SIGINT and SIGTERM call ``stop``, and SIGHUP ``reopen`` and SIGUSR1 ``show``, if given."""
    wanted: dict[signal.Signals, Callable[[], object] | None] = {signal.SIGINT: stop, signal.SIGTERM: stop}
    if not WINDOWS:  # which has neither of these
        wanted |= {signal.SIGHUP: reopen, signal.SIGUSR1: show}
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


def wait_readable(poller: Poller, timeout: float | None) -> bool:
    """Return whether a descriptor of the poller became readable, or the poller was woken, within ``timeout`` seconds.

    `Poller.wait` does the same with a resolution of milliseconds.
    """
    timeout = _LONGEST_WAIT if timeout is None else min(timeout, _LONGEST_WAIT)
    found = bool(select.select([poller], [], [], timeout)[0])
    poller.reset()
    return found
