"""Ctrl-C before any bytecode instruction of the package: `Interrupt`.

The interpreter itself raises KeyboardInterrupt, where it looks for signals next; see `nfnet._io.locks`. If the function
that observes the instructions raised, the exception would come between the instructions of one statement, too, where
CPython never raises one.

Until Python 3.11 `sys.settrace` observes them. Since 3.12 tracing disturbs what it observes (an exception may leave a
generator without running its finally clause), and `sys.monitoring` does not.
"""

from __future__ import annotations

import _thread
import dis
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import nfnet

ROOT = str(Path(nfnet.__file__).parent)
KERNEL = str(Path(ROOT) / "testing.py")  # its calls happen or do not, as system calls do


class _Signal:
    """``~signal`` does what Ctrl-C does, and looks for no signals: a call would, and raise in the function that
    observes.
    """

    __invert__ = staticmethod(_thread.interrupt_main)


_signal = _Signal()


def _observed(code: CodeType) -> bool:
    return code.co_filename.startswith(ROOT) and code.co_filename != KERNEL


def _untouched(code: CodeType) -> frozenset[int]:
    """Return the offsets of instructions that must not be observed.

    Since 3.15 there is no look for signals behind the call of ``__enter__``, which is a call right behind the
    instruction LOAD_SPECIAL. An observed instruction is another one.
    """
    if sys.version_info < (3, 15):
        return frozenset()
    key = id(code)  # code objects of modules stay; to hash one takes long
    if key not in _offsets:
        _offsets[key] = frozenset(each.offset for each in dis.get_instructions(code) if each.opname == "LOAD_SPECIAL")
    return _offsets[key]


_offsets: dict[int, frozenset[int]] = {}


class _Interrupt:
    """Makes Ctrl-C arrive before the n-th bytecode instruction that the main thread executes in the package."""

    def __init__(self, moment: int) -> None:
        self.moment = moment
        self.seen = 0

    def __enter__(self) -> _Interrupt:
        self._start()
        return self

    def __exit__(self, *details: Any) -> None:
        self.stop()

    def arrives(self, function: Callable[[], object]) -> bool:
        """Call a function; whether Ctrl-C came out of it, or right behind it."""
        try:
            with self:
                function()
            for _ in range(100):  # a signal that came at the very end is noticed here
                pass
        except KeyboardInterrupt:
            self.stop()
            return True
        return False

    def _start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        """Observe no more. May be called twice."""
        raise NotImplementedError


class _Traced(_Interrupt):
    def _start(self) -> None:
        sys.settrace(self._call)

    def stop(self) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not _observed(frame.f_code):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._instruction

    def _instruction(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            self.seen += 1
            if self.seen == self.moment:
                caller: FrameType | None = frame
                while caller is not None:
                    caller.f_trace, caller.f_trace_opcodes = None, False
                    caller = caller.f_back
                sys.settrace(None)  # first: raised in a tracing function it would end a generator without its finally
                _ = ~_signal  # type: ignore[operator]
                return None
        return self._instruction


class _Monitored(_Interrupt):
    _TOOL = 3  # none of those that debuggers, profilers and coverage use
    _main = _thread.get_ident()  # of the thread that imports

    def _start(self) -> None:
        monitoring = sys.monitoring
        monitoring.use_tool_id(self._TOOL, "nfnet's interrupts")
        monitoring.register_callback(self._TOOL, monitoring.events.INSTRUCTION, self._instruction)
        monitoring.set_events(self._TOOL, monitoring.events.INSTRUCTION)

    def stop(self) -> None:
        monitoring = sys.monitoring
        if monitoring.get_tool(self._TOOL) is not None:
            monitoring.set_events(self._TOOL, 0)
            monitoring.register_callback(self._TOOL, monitoring.events.INSTRUCTION, None)
            monitoring.free_tool_id(self._TOOL)

    def _instruction(self, code: CodeType, offset: int) -> Any:
        if not _observed(code) or offset in _untouched(code):
            return sys.monitoring.DISABLE
        if _thread.get_ident() == self._main:
            self.seen += 1
            if self.seen == self.moment:
                # First: the next call of this function would look for signals where it begins.
                sys.monitoring.register_callback(self._TOOL, sys.monitoring.events.INSTRUCTION, None)
                _ = ~_signal  # type: ignore[operator]
        return None


Interrupt: type[_Interrupt] = _Monitored if sys.version_info >= (3, 12) else _Traced
