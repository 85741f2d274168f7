"""Sends collected verdicts when the handler keeps the loop from doing so.

The loop collects verdicts while many packets wait, and sends them between two calls of the handler, once a millisecond.
A handler that accepts a packet and then sleeps, or waits for an effect of that packet, would delay the verdict. So
while verdicts are collected, a thread checks every 0.8 ms whether one from the last check is still unsent, and then
sends them all: no verdict waits for two milliseconds.

If a handler computes in Python for long, other threads run only after the interpreter's switch interval (default:
5 ms), which is then added to the delay.
"""

from __future__ import annotations

import time
from _thread import start_new_thread
from contextlib import suppress

from .._io.system import block_signals
from ..errors import NfnetError
from .ledger import Ledger

_TICK = 0.0008  # seconds
_LINGER = 250  # ticks without a collected verdict, until the thread ends


class Flusher:
    """The thread that flushes one ledger; it runs only while verdicts are collected, and shortly after."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._running = False

    def watch(self) -> bool:
        """Start watching for collected verdicts. Return False if no thread can be started: then do not collect."""
        if not self._running:
            self._running = True
            try:
                start_new_thread(self._run, ())
            except RuntimeError:
                self._running = False
        return self._running

    def forget(self) -> None:
        """Forget the thread in a forked child, where it does not exist."""
        self._running = False

    def _run(self) -> None:
        # Block all signals here: Python would handle a signal delivered to this thread only some time later. (The
        # kernel delivers a signal to the main thread unless that blocks it.)
        block_signals()
        ledger = self._ledger
        before, idle = None, 0
        while idle < _LINGER and not ledger.closed:
            time.sleep(_TICK)
            first = ledger.oldest_decided()
            if first is None:
                idle += 1
            else:
                idle = 0
                if first is before:
                    with suppress(NfnetError):  # the verdicts stay collected, and the loop gets the same error
                        ledger.flush()
            before = first
            if idle == _LINGER:
                # Before the last check, because `watch` can be called in between.
                self._running = False
                if ledger.oldest_decided() is not None and not self._running:
                    self._running, idle = True, 0
