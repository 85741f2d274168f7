"""The log collector: stores the packets that rules log in files and databases, without losing any that it received.

    from nfnet import collect

    collector = collect.Collector([5], [collect.output("log.jsonl"), collect.output("sqlite:firewall.db")])
    collector.run()

Each output is a class: in a file of this package and in `OUTPUTS`, or in another package, which declares it as an entry
point of the group ``nfnet.outputs``.
"""

from ._batch import Batch, Session
from ._collector import Collector, Group, SourceState, State
from ._counts import Series
from ._delivery import DeliveryState
from ._forwarder import Forwarder
from ._nats_source import NatsSource
from ._output import Output, OutputError
from ._outputs import OUTPUTS, known, output, source
from ._units import Rate
from .capture import Capture
from .journal import Journal
from .json_lines import JsonLines
from .nats import Nats
from .postgresql import Postgresql
from .sqlite import Sqlite
from .syslog import Syslog, SyslogTcp, SyslogTls, SyslogUdp
from .text import Text

__all__ = [
    "OUTPUTS",
    "Batch",
    "Capture",
    "Collector",
    "DeliveryState",
    "Forwarder",
    "Group",
    "Journal",
    "JsonLines",
    "Nats",
    "NatsSource",
    "Output",
    "OutputError",
    "Postgresql",
    "Rate",
    "Series",
    "Session",
    "SourceState",
    "Sqlite",
    "State",
    "Syslog",
    "SyslogTcp",
    "SyslogTls",
    "SyslogUdp",
    "Text",
    "known",
    "output",
    "source",
]
