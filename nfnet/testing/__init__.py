"""Tests of programs that decide or read packets, without the kernel and without privileges.

    import nfnet.testing

    def test_secrets_are_dropped(nfnet_queue):
        packet_id = nfnet_queue.feed(nfnet.testing.udp(b"a secret"))
        nfnet_queue.run(handle)
        assert nfnet_queue.verdicts[packet_id].verdict == nfnet.Verdict.DROP

The package contains a pytest plugin with two fixtures, which imports nothing until a test uses one: `nfnet_queue` is a
`FedQueue`, and `nfnet_replay` opens a recording or another capture, see `open_replay`. `from_pcap` returns the packets
of a capture, which a test can feed.
"""

from ._fed_queue import FedQueue
from ._files import OpenReplay, from_pcap, open_replay
from ._kernel import FakeKernel
from ._messages import error_message, log_message, packet_message, tcp, udp

__all__ = [
    "FakeKernel",
    "FedQueue",
    "OpenReplay",
    "error_message",
    "from_pcap",
    "log_message",
    "open_replay",
    "packet_message",
    "tcp",
    "udp",
]
