"""Loads the user's handler function, which is named on the command line."""

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
    """Check an argument like ``module:function``."""
    module, colon, function = text.partition(":")
    name = module.removesuffix(".py")
    if not colon or not module or not function or name != module:
        example = f"{name or 'my_module'}:{function or 'decide'}"
        raise argparse.ArgumentTypeError(f"{text!r} is not MODULE:FUNCTION, such as {example}")
    return module, function


def _import_ours(options: argparse.Namespace) -> None:
    """Import what would be imported later, before a directory of the user is added to the path."""
    if options.netns is not None:
        import ctypes  # noqa: F401
    if options.metrics is not None:
        import wsgiref.simple_server  # noqa: F401

        with contextlib.suppress(ImportError):  # `metrics.serve` reports what is missing
            import prometheus_client  # noqa: F401


def _import(module: str) -> ModuleType:
    """Import the module; from the current directory only if it is found nowhere else."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if f"{module}.".startswith(f"{error.name}.") and not _safe_path():
            sys.path.append(os.getcwd())
            importlib.invalidate_caches()
            return importlib.import_module(module)
        raise


def _safe_path() -> bool:
    """Return whether Python runs without the current directory in its path (PYTHONSAFEPATH, -P, -I)."""
    if sys.version_info >= (3, 11):
        return sys.flags.safe_path
    return bool(sys.flags.isolated or os.environ.get("PYTHONSAFEPATH"))


def load(options: argparse.Namespace) -> Callable[[Packet], object]:
    """Return the function of --handler. Raises ArgumentError if it cannot be loaded or is no plain function."""
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
