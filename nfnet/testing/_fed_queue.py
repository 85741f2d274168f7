"""`FedQueue`: a queue that a test feeds with packets."""

from __future__ import annotations

from typing import Any

from .._injection import divert, restore
from .._typing import Unpack
from ..captures._replay import GivenVerdict
from ..log import LogMessage
from ..packet import Packet
from ..queue import Handler, Queue, WorkerOptions
from ._kernel import FakeKernel
from ._messages import NAMES, described

_INTERFACES = {attribute for name, attribute in NAMES.items() if name.endswith("dev")}


class FedQueue:
    """A queue that a test feeds with packets. It is open until `close`.

    num: the number of the queue.
    options: those of `nfnet.Queue`.
    """

    def __init__(self, num: int = 1, **options: Unpack[WorkerOptions]) -> None:
        self.kernel = FakeKernel(num=num, ends=True)
        self.queue = Queue(num, transport=self.kernel, **options)
        self.queue.open()
        divert(self.kernel)

    def feed(self, payload: bytes | Packet | LogMessage = b"E" + bytes(19), **attributes: Any) -> int:
        """Queue a packet, and return its id.

        payload: its bytes, from the network header on; or a packet or log message, from `from_pcap` for instance,
            which is queued with all its attributes.

        Keywords are ``mark``, ``indev``, ``outdev``, ``physindev``, ``physoutdev`` (interface indexes, or names, which
        get an index), ``uid``, ``gid``, ``priority``, ``hook``, ``family``, ``process`` (an `nfnet.Process`, the value
        of `Packet.process`), ``time_ns``; or names of NFQA members. They override the attributes of the packet.
        """
        values: dict[str, Any] = {}
        if isinstance(payload, (Packet, LogMessage)):
            values, payload = described(payload), payload.payload
        values.update((NAMES.get(name, name), value) for name, value in attributes.items())
        values = {name: self._index(value) if name in _INTERFACES else value for name, value in values.items()}
        return self.kernel.feed(1, payload=payload, **values)[0]

    def _index(self, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        known = {name: index for index, name in self.kernel.interfaces.items()}
        index = known.get(value, len(known) + 1)
        self.kernel.interfaces[index] = value
        return index

    def run(self, handler: Handler) -> None:
        """Call the handler for every packet that was fed."""
        self.queue.run(handler)

    @property
    def verdicts(self) -> dict[int, GivenVerdict]:
        """The verdicts, by packet id."""
        self.queue.flush()
        bits = self.kernel.bits
        return {
            packet_id: GivenVerdict.from_word(word, changes, bits) for packet_id, word, changes in self.kernel.judged
        }

    @property
    def injected(self) -> list[bytes]:
        """The packets of `Packet.answer`, `Packet.reset`, `Packet.reject` and `nfnet.inject`, from the IP header on.

        None is sent: while the queue is open, all packets that this process injects are added to this list.
        """
        return self.kernel.injected

    def close(self) -> None:
        """Close the queue."""
        restore(self.kernel)
        self.queue.close()
