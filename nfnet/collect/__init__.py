"""The log collector: brings what rules log to files and databases, and loses nothing that the kernel gave it.

    from nfnet import collect

    collector = collect.Collector([5], [collect.output("log.jsonl"), collect.output("sqlite:firewall.db")])
    collector.run()

An output is a file in this package and a line in `OUTPUTS`, or a class in another package, which announces it as an
entry point of the group ``nfnet.outputs``.
"""

from ._batch import Batch, Session
from ._collector import Collector, Group, State
from ._counts import Series
from ._delivery import DeliveryState
from ._output import Output, OutputError
from ._outputs import OUTPUTS, known, output
from ._units import Rate
from .capture import Capture
from .json_lines import JsonLines
from .sqlite import Sqlite
from .text import Text

__all__ = [
    "OUTPUTS",
    "Batch",
    "Capture",
    "Collector",
    "DeliveryState",
    "Group",
    "JsonLines",
    "Output",
    "OutputError",
    "Rate",
    "Series",
    "Session",
    "Sqlite",
    "State",
    "Text",
    "known",
    "output",
]
