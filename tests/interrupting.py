"""Ctrl-C before any bytecode instruction of the package: `Interrupt`.

The interpreter itself raises KeyboardInterrupt, at the next place where it checks for signals; see `nfnet._io.locks`.
If the observing function raised it, the exception would also occur between the instructions of one statement, where
CPython never raises one.

Up to Python 3.11, `sys.settrace` observes the instructions. Since 3.12 tracing changes the traced code's behaviour (an
exception can leave a generator without running its finally clause), so `sys.monitoring` is used.
"""

from __future__ import annotations

import _thread
import dis
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import nfnet

ROOT = str(Path(nfnet.__file__).parent)
KERNEL = str(Path(ROOT) / "testing")  # the model: its calls happen completely or not at all, as system calls do


class _Signal:
    """``~signal`` has the effect of Ctrl-C without a check for signals.

    A call would check for signals, and raise the exception in the observing function.
    """

    __invert__ = staticmethod(_thread.interrupt_main)


_signal = _Signal()


def _observed(code: CodeType) -> bool:
    return code.co_filename.startswith(ROOT) and not code.co_filename.startswith(KERNEL)


def _untouched(code: CodeType) -> frozenset[int]:
    """Return the offsets of instructions that must not be observed.

    Since 3.15 CPython does not check for signals after the call of ``__enter__``, which directly follows the
    instruction LOAD_SPECIAL. Observing replaces that instruction by another one, until it was executed once.
    """
    if sys.version_info < (3, 15):
        return frozenset()
    key = id(code)  # code objects of modules are never freed; hashing one is slow
    if key not in _offsets:
        _offsets[key] = frozenset(each.offset for each in dis.get_instructions(code) if each.opname == "LOAD_SPECIAL")
    return _offsets[key]


_offsets: dict[int, frozenset[int]] = {}
_NEAR = 64  # bytes of bytecode: at least the instructions between two checks for signals


class _Interrupt:
    """Makes Ctrl-C arrive before the n-th bytecode instruction that the main thread executes in the package.

    error: what the signal handler raises.
    """

    def __init__(self, moment: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.moment = moment
        self.seen = 0
        self._error = error

    def __enter__(self) -> _Interrupt:
        self._start()
        return self

    def __exit__(self, *details: Any) -> None:
        self.stop()

    def arrives(self, function: Callable[[], object]) -> bool:
        """Call a function, and return whether the error was raised in it or directly after it."""
        before = signal.signal(signal.SIGINT, self._raise)
        try:
            with self:
                function()
            for _ in range(100):  # a signal that arrived at the very end is noticed here
                pass
        except self._error as error:
            self.stop()
            return type(error) is self._error
        finally:
            signal.signal(signal.SIGINT, before)
        return False

    def _raise(self, number: int, frame: FrameType | None) -> None:
        raise self._error

    def _start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        """Stop observing. Can be called twice."""
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
                sys.settrace(
                    None
                )  # first: an exception in a tracing function ends a generator without its finally clause
                _ = ~_signal  # type: ignore[operator]
                return None
        return self._instruction


class _Monitored(_Interrupt):
    _TOOL = 3  # not one of the ids that debuggers, profilers and coverage use
    _main = _thread.get_ident()  # the importing thread

    def _start(self) -> None:
        self._restored: set[tuple[int, int]] = set()  # untouched instructions that CPython has put back
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
        if not _observed(code):
            return sys.monitoring.DISABLE
        untouched = _untouched(code)
        if offset in untouched:
            self._restored.add((id(code), offset))
            return sys.monitoring.DISABLE
        if _thread.get_ident() == self._main:
            if any(offset < each < offset + _NEAR and (id(code), each) not in self._restored for each in untouched):
                return None  # the next check for signals could be one that CPython does not make
            self.seen += 1
            if self.seen == self.moment:
                # First, because the next call of this function would check for signals at its beginning.
                sys.monitoring.register_callback(self._TOOL, sys.monitoring.events.INSTRUCTION, None)
                _ = ~_signal  # type: ignore[operator]
        return None


Interrupt: type[_Interrupt] = _Monitored if sys.version_info >= (3, 12) else _Traced
