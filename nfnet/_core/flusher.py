"""Sends collected verdicts when the handler keeps the loop from doing so.

The loop collects verdicts while many packets wait, and sends them between two calls of the handler, once a millisecond.
A handler that accepts a packet and then sleeps, or waits for what that very packet causes, would keep the verdict back.
So while verdicts are collected a thread looks every 0.8 ms whether one that was there the last time is still there, and
sends them all: no verdict waits for two milliseconds.

A handler that computes in Python for long lets another thread run only after the interpreter's switch interval, 5 ms
unless the program says otherwise; so much longer may it take.
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
    """The thread that looks after one ledger; it runs only while verdicts are collected, and shortly after."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._running = False

    def watch(self) -> bool:
        """Look after what will be collected. False if no thread is to be had: then nothing should be."""
        if not self._running:
            self._running = True
            try:
                start_new_thread(self._run, ())
            except RuntimeError:
                self._running = False
        return self._running

    def forget(self) -> None:
        """In a forked child, where the thread is not."""
        self._running = False

    def _run(self) -> None:
        # Signals are for the threads of the program: Python would notice one that came here only some time later. (The
        # kernel gives a signal to the main thread unless that blocks it.)
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
                    with suppress(NfnetError):  # the verdicts stay, and the loop meets the same error
                        ledger.flush()
            before = first
            if idle == _LINGER:
                # Before the last look: `watch` may be called in between.
                self._running = False
                if ledger.oldest_decided() is not None and not self._running:
                    self._running, idle = True, 0
