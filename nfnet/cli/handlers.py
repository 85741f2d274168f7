"""Functions of other people's modules, named on the command line."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from types import ModuleType

from .._arguments import check_handler
from ..errors import ArgumentError, NfnetError
from ..packet import Packet


def handler_name(text: str) -> tuple[str, str]:
    """An argument like ``module:function``."""
    module, colon, function = text.partition(":")
    if not colon or not module or not function:
        raise argparse.ArgumentTypeError(f"{text!r} is not MODULE:FUNCTION")
    return module, function


def _import_ours(options: argparse.Namespace) -> None:
    """What would be imported when it is needed: before a directory of others comes into the path."""
    if options.netns is not None:
        import ctypes  # noqa: F401
    if options.metrics is not None:
        import wsgiref.simple_server  # noqa: F401

        with contextlib.suppress(ImportError):  # `metrics.serve` says what is missing
            import prometheus_client  # noqa: F401


def _import(module: str) -> ModuleType:
    """The module of that name; from the current directory only if there is none elsewhere, as one's own may be."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if f"{module}.".startswith(f"{error.name}.") and not _safe_path():
            sys.path.append(os.getcwd())
            importlib.invalidate_caches()
            return importlib.import_module(module)
        raise


def _safe_path() -> bool:
    """Whether the user told Python to find nothing in the current directory."""
    if sys.version_info >= (3, 11):
        return sys.flags.safe_path
    return bool(sys.flags.isolated or os.environ.get("PYTHONSAFEPATH"))


def load(options: argparse.Namespace) -> Callable[[Packet], object]:
    """The function of --handler. Raises ArgumentError that says what is wrong with it."""
    module, function = options.handler
    _import_ours(options)
    try:
        found = _import(module)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ArgumentError(f"--handler: the module {module!r} cannot be imported: {what}") from error
    handler = getattr(found, function, None)
    if not callable(handler):
        where = getattr(found, "__file__", None) or "built in"
        raise ArgumentError(f"--handler: there is no function {function!r} in {module!r} ({where})")

    try:
        check_handler(handler, "it must be a plain function")
    except ArgumentError as error:
        raise ArgumentError(f"--handler: {module}:{function}: {error}") from None

    def call(packet: Packet) -> object:
        try:
            return handler(packet)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise NfnetError(f"the handler {module}:{function} failed on packet {packet.id}: {what}") from error

    return call
