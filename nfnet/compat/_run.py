"""Runs a script with this package's modules in place of NetfilterQueue and nflogr."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from ..errors import NfnetError

_DROP_IN = Path(__file__).parent / "drop_in"
_ROOT = Path(__file__).parents[2]


def environment(now: Mapping[str, str], path: Sequence[str]) -> dict[str, str]:
    """Return environment variables with which Python finds our modules before installed ones.

    Programs that the script starts inherit them. ``path`` is the module search path of this process.
    """
    places = [str(_DROP_IN)]
    if now.get("PYTHONPATH"):  # an empty item would be the current directory
        places.append(now["PYTHONPATH"])
    if str(_ROOT) not in path:
        places.append(str(_ROOT))
    return {**now, "PYTHONPATH": os.pathsep.join(places)}


def run(arguments: Sequence[str], options: Sequence[str] = ()) -> NoReturn:
    """Replace this process by ``python arguments``: a script, ``-m module`` or ``-c code``, and its arguments.

    The script runs as if Python had been started like this (execve), with its own ``sys.argv``, tracebacks, signals and
    exit status. ``options`` are those of Python.

    Raises NfnetError if Python was started with an option that ignores the environment (``-E``, ``-I``).
    """
    if sys.flags.ignore_environment:
        raise NfnetError("with -E or -I Python ignores PYTHONPATH, by which it finds nfnet: leave the option out")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    command = [sys.executable, *options, *arguments]
    os.execve(sys.executable, command, environment(os.environ, sys.path))
