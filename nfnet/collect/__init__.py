"""Where ``nfnet log`` stores messages: a file for each kind of output, and a line in `OUTPUTS`."""

from ._output import Output
from .capture import Capture
from .sqlite import Sqlite

OUTPUTS: tuple[type[Output], ...] = (Capture, Sqlite)
"""The command has an option for each of them."""

__all__ = ["OUTPUTS", "Capture", "Output", "Sqlite"]
