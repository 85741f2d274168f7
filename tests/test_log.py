"""`Log` with recorded and built datagrams."""

from __future__ import annotations

import contextlib
import copy
import errno
import itertools
import logging
import pickle
import threading
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import nfnet
from nfnet import Log, LogMessage
from nfnet.protocol import layout, netlink, nfnetlink, nfulnl
from nfnet.protocol.nfqnl import Command
from nfnet.protocol.nfulnl import NFULA, LogFlag
from nfnet.testing import FakeKernel, error_message, log_message, udp

from .test_queue import NOT_RUN

FIXED = {number: row for number, row in nfulnl.NFULA_TABLE.items() if layout.fixed_size(row.schema)}


DONE = netlink.build_message(netlink.NLMSG_DONE, 0, 0, b"\0\0\0\x05")


class LogKernel(FakeKernel):
    """A transport for a log: it delivers datagrams, and stores requests."""

    def send(self, datagram: bytes) -> None:
        for _, message in netlink.split_messages(datagram):
            assert netlink.header.parse(message).type == nfulnl.MSG_CONFIG
            self.config.append(nfnetlink.parse_attributes(message[20:], nfulnl.NFULA_CFG_TABLE))


def read(*datagrams: bytes, **options: Any) -> list[LogMessage]:
    kernel = LogKernel(ends=True)
    kernel.interfaces[2] = "eth0"
    with Log(5, transport=kernel, **options) as log:
        for datagram in datagrams:
            kernel.deliver(datagram)
        return list(log)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_messages_can_be_copied(duplicate: Any) -> None:
    (message,) = read(log_message(udp(b"data"), prefix="in: ", IFINDEX_INDEV=2))
    again = duplicate(message)
    assert (again.prefix, again.indev_name, again.payload) == ("in: ", "eth0", udp(b"data"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_messages_can_be_pickled(protocol: int) -> None:
    """For another process, where the names of the interfaces would be others'."""
    (message,) = read(log_message(udp(b"data"), prefix="in: ", IFINDEX_INDEV=2, IFINDEX_OUTDEV=3))
    again = pickle.loads(pickle.dumps(message, protocol))
    assert type(again) is LogMessage
    assert (again.raw, again.prefix) == (message.raw, "in: ")
    assert (again.indev, again.indev_name, again.outdev, again.outdev_name) == (2, "eth0", 3, None)
    assert pickle.loads(pickle.dumps(again, protocol)).indev_name == "eth0"


@pytest.mark.parametrize("kind", NOT_RUN)
def test_a_handler_that_a_call_does_not_run_is_refused_before_anything_is_taken(kind: str) -> None:
    handler, words = NOT_RUN[kind]
    kernel = LogKernel()
    with Log(5, transport=kernel) as log:
        kernel.deliver(log_message())
        for use in (log.run, log.process):
            with pytest.raises(TypeError, match=words) as caught:
                use(handler)
            assert "AsyncLog" in str(caught.value) or "yield" in words
        assert log.counters.received == 0


def test_a_handler_that_returns_a_coroutine_stops_the_loop() -> None:
    async def handle(message: LogMessage) -> None:
        raise AssertionError("nobody awaits this")

    kernel = LogKernel()
    with Log(5, transport=kernel) as log:
        kernel.deliver(log_message() * 3)
        with pytest.raises(TypeError, match="the handler returned a coroutine, which nobody awaits: use AsyncLog"):
            log.run(lambda message: handle(message))
        assert log.process(lambda message: None) == 2


# --- the schemas


def test_requests_are_those_that_the_kernel_took(datagrams: dict[str, bytes]) -> None:
    assert nfulnl.config(5, command=Command.BIND, seq=1, ack=True) == datagrams["TX nflog BIND group 5"]
    ours = nfulnl.config(
        5,
        copy_range=0xFFFF,
        timeout=20,
        threshold=100,
        buffer_size=16384,
        flags=LogFlag.SEQ | LogFlag.SEQ_GLOBAL,
        seq=2,
        ack=True,
    )
    assert ours.hex() == datagrams["TX nflog MODE/TIMEOUT/QTHRESH/NLBUFSIZ/FLAGS group 5"].hex()


def test_fast_structs_read_what_their_schemas_read() -> None:
    assert len(FIXED) >= 13
    for row in FIXED.values():
        reader = layout.compile_struct(row.schema)
        data = bytes(range(1, 1 + reader.size))
        value = row.schema.parse(data)
        values = [v for k, v in value.items() if k != "_io"] if isinstance(value, dict) else [value]
        assert list(reader.unpack(data)) == values, row.name


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    kinds = st.sampled_from([*nfulnl.NFULA_TABLE, 22, 500])
    items = draw(st.lists(st.tuples(kinds, st.binary(max_size=24)), max_size=8))
    data = b""
    for kind, value in items:
        size = layout.fixed_size(FIXED[kind].schema) if kind in FIXED else 0
        data += layout.build_attribute(kind, value.ljust(size, b"\x07"))
    return nfnetlink.build_message(nfulnl.MSG_PACKET, 5, data, family=2)


@given(messages(), messages())
def test_layouts_find_what_the_schema_finds(first: bytes, second: bytes) -> None:
    for message in (first, second, first):
        expected = {item.type & 0x3FFF: item.data for item in netlink.attributes.parse(message[20:])}
        found = nfulnl.layouts.find(message)
        assert {number: message[span] for number, span in found.spans.items()} == expected
        assert message[found.payload] == expected.get(NFULA.PAYLOAD, b"")


# --- messages


def test_a_recorded_message(datagrams: dict[str, bytes]) -> None:
    (message,) = read(datagrams["RX NFLOG single (no DONE)"])
    expected = {
        "prefix": "nfnet in: ",
        "hook": nfnet.Hook.INPUT,
        "family": nfnet.Family.IPV4,
        "hw_protocol": 0x0800,
        "indev": 2,
        "indev_name": "eth0",
        "outdev": None,
        "mark": 0,
        "hwaddr": bytes.fromhex("020000000002"),
        "hwtype": 1,
        "hwheader": bytes.fromhex("0200000000010200000000020800"),
        "timestamp": 1795287298.866180,
        "timestamp_ns": 1795287298866180000,
        "uid": None,
        "gid": None,
        "seq": 0,
        "seq_global": 1,
        "vlan": None,
        "l2header": None,
        "conntrack": None,
        "ctinfo": None,
    }
    assert {name: getattr(message, name) for name in expected} == expected
    assert message.payload.endswith(b"one")
    assert repr(message) == f"<LogMessage INPUT: {message}>"
    assert str(message).endswith(" nfnet in: eth0 > - UDP 10.8.0.2.40001 > 10.8.0.1.9 31 bytes")


def test_repr_takes_all_that_can_come() -> None:
    whole = log_message(udp(b"x"), prefix="in: ", MARK=7)
    assert repr(LogMessage.from_bytes(whole)) == (
        "<LogMessage INPUT: --:--:-- in: - > - UDP 192.0.2.1.40000 > 192.0.2.2.9 29 bytes mark 0x7>"
    )
    for length in range(20, len(whole)):
        assert repr(LogMessage.from_bytes(whole[:length])).startswith("<LogMessage ")
    assert repr(LogMessage()).startswith("<LogMessage unreadable: ")


def test_a_recorded_datagram_with_several(datagrams: dict[str, bytes]) -> None:
    first, second = read(datagrams["RX NFLOG multi: 2 packets + DONE"])
    assert (first.seq, second.seq) == (1, 2)
    assert (first.payload[-3:], second.payload[-5:]) == (b"one", b"two22")
    assert [message.attributes[NFULA.SEQ_GLOBAL] for message in (first, second)] == [2, 3]


def test_a_recorded_ipv6_message(datagrams: dict[str, bytes]) -> None:
    (message,) = read(datagrams["RX NFLOG IPv6 single"])
    assert (message.family, message.hw_protocol, message.prefix, message.seq) == (10, 0x86DD, "v6", None)


def test_what_this_kernel_did_not_send() -> None:
    (message,) = read(
        log_message(
            family=7,
            VLAN={1: 0x8100, 2: 0x6005},
            L2HDR=b"\x01" * 14,
            HWHEADER=b"",
            CT={8: 77},
            CT_INFO=2,
            IFINDEX_PHYSINDEV=2,
            UID=65534,
        )
    )
    assert message.vlan == nfnet.Vlan(0x8100, 0x6005)
    assert message.l2header == b"\x01" * 14
    assert message.hwheader == b""
    assert message.conntrack is not None
    assert message.conntrack.mark == 77
    assert message.ctinfo == nfnet.CtInfo.NEW
    assert (message.physindev_name, message.uid) == ("eth0", 65534)


def test_other_families_have_hooks_of_their_own() -> None:
    arp, netdev = read(log_message(family=3), log_message(family=5))
    assert (arp.hook, netdev.hook) == (nfnet.ArpHook.OUT, nfnet.NetdevHook.EGRESS)
    assert (type(arp.hook), type(netdev.hook)) == (nfnet.ArpHook, nfnet.NetdevHook)
    assert (arp.family, netdev.family) == (nfnet.Family.ARP, nfnet.Family.NETDEV)


@pytest.mark.parametrize(
    ("raw", "text"), [(b"\0", ""), ("grün: ".encode() + b"\0", "grün: "), (b"\xff\xfe!\0", "\udcff\udcfe!")]
)
def test_prefixes(raw: bytes, text: str) -> None:
    (message,) = read(log_message(prefix=raw.rstrip(b"\0").decode("utf-8", "surrogateescape")))
    assert message.prefix == text
    assert message.prefix.encode("utf-8", "surrogateescape") == raw.rstrip(b"\0")


def test_without_payload() -> None:
    (message,) = read(log_message(None))
    assert message.payload == b""


# --- configuration


def test_binding_asks_for_everything_in_one_request() -> None:
    kernel = LogKernel(ends=True)
    with Log(
        5,
        transport=kernel,
        copy_range=64,
        timeout=0.25,
        threshold=10,
        buffer_size=65536,
        sequence=True,
        global_sequence=True,
    ):
        pass
    bind, unbind = kernel.config
    assert bind == {1: 1, 2: {"copy_range": 64, "copy_mode": 2}, 3: 65536, 4: 25, 5: 10, 6: 3}
    assert unbind == {1: 2}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"group": -1}, "log group is -1 and must be in 0..65535"),
        ({"group": 65536}, "log group"),
        ({"group": 1, "timeout": -0.01}, "timeout is -0.01 and must be in 0..42949.67 seconds"),
        ({"group": 1, "timeout": 42950}, "timeout"),
        ({"group": 1, "timeout": float("nan")}, "timeout is nan"),
        ({"group": 1, "threshold": 0}, "threshold is 0 and must be in 1.."),
        ({"group": 1, "buffer_size": 4000}, "buffer_size is 4000 and must be in 4096..131072"),
        ({"group": 1, "buffer_size": 131073}, "buffer_size"),
        ({"group": 1, "copy_range": 0}, "copy_range"),
        ({"group": 1, "copy_mode": 9}, "copy_mode"),
        ({"group": 1, "rcvbuf": -1}, "rcvbuf"),
        ({"group": 1, "on_overrun": "cry"}, "on_overrun"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        Log(**arguments)
    assert isinstance(caught.value, nfnet.NfnetError)


def test_refusals_name_the_group() -> None:
    kernel = LogKernel()
    kernel.refuse_config = errno.EOPNOTSUPP
    with pytest.raises(nfnet.NotSupportedError, match="binding log group 5: .*no support for conntrack"):
        Log(5, transport=kernel, conntrack=True).open()
    with pytest.raises(nfnet.ClosedError, match="log group 5 is not open"):
        Log(5).run(print)


# --- the loop


def test_messages_come_in_order_until_stop() -> None:
    kernel = LogKernel()
    with Log(5, transport=kernel) as log:
        kernel.deliver(b"".join(log_message(MARK=number) for number in range(1, 6)) + DONE)
        kernel.deliver(log_message(MARK=6))
        seen = []
        for message in log:
            seen.append(message.mark)
            if message.mark == 4:
                log.stop()
        assert seen == [1, 2, 3, 4]
        assert log.process(lambda message: seen.append(message.mark)) == 2
        assert seen == [1, 2, 3, 4, 5, 6]
        assert log.counters.received == 6


def test_fetch_keeps_messages() -> None:
    kernel = LogKernel()
    with Log(5, transport=kernel) as log:
        assert log.fetch() == 0
        kernel.deliver(log_message(MARK=1) + log_message(MARK=2) + DONE)
        assert log.fetch() == 2
        assert repr(log) == "<Log 5: open, 2 waiting>"
        kernel.deliver(log_message(MARK=3))
        assert log.fetch() == 3
        assert [message.mark for message in itertools.islice(log, 3)] == [1, 2, 3]


def test_an_exception_comes_out_and_the_next_run_goes_on() -> None:
    kernel = LogKernel(ends=True)
    seen: list[int] = []

    def handler(message: LogMessage) -> None:
        seen.append(message.mark)
        if message.mark == 2:
            raise KeyError

    with Log(5, transport=kernel) as log:
        for number in range(1, 5):
            kernel.deliver(log_message(MARK=number))
        with pytest.raises(KeyError):
            log.run(handler)
        log.run(handler)
    assert seen == [1, 2, 3, 4]


def test_stop_ends_a_waiting_run() -> None:
    with Log(5, transport=LogKernel()) as log:
        thread = threading.Thread(target=log.run, args=(print,))
        thread.start()
        log.stop()
        thread.join(60)
        assert not thread.is_alive()


def test_late_acknowledgements_are_ignored() -> None:
    answer = error_message(0, nfulnl.config(5, seq=99))
    assert [message.mark for message in read(answer + log_message(MARK=1))] == [1]


# --- loss and damage


def numbered(*numbers: int) -> bytes:
    return b"".join(log_message(SEQ=number & 0xFFFFFFFF) for number in numbers) + DONE


def test_gaps_in_the_sequence_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    kernel = LogKernel()
    with Log(5, transport=kernel, sequence=True) as log:
        kernel.deliver(numbered(0, 1, 2))
        kernel.deliver(numbered(3, 4))
        log.process(id)
        assert (log.counters.lost, log.counters.overruns) == (0, 0)
        kernel.deliver(numbered(100, 101))
        kernel.deliver(numbered(105))
        log.process(id)
        assert log.counters == nfnet.LogCounters(received=8, lost=98, overruns=2, malformed=0)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "log group 5: 95 messages were lost, 95 so far; the receive buffer was full",
        "log group 5: 3 messages were lost, 98 so far; the receive buffer was full",
    ]


def test_loss_before_the_first_message_is_counted() -> None:
    kernel = LogKernel()
    with Log(5, transport=kernel, sequence=True, on_overrun="ignore") as log:
        kernel.deliver(numbered(7, 8))
        log.process(id)
        assert log.counters.lost == 7


def test_the_wrap_is_no_gap() -> None:
    kernel = LogKernel()
    with Log(5, transport=kernel, sequence=True) as log:
        log._bound()._next_seq = 0xFFFFFFFE
        kernel.deliver(numbered(0xFFFFFFFE, 0xFFFFFFFF, 0))
        kernel.deliver(numbered(1, 2))
        log.process(id)
        assert log.counters.lost == 0
        log._bound()._next_seq = 0xFFFFFFFE
        kernel.deliver(numbered(1))
        log.process(id)
        assert log.counters.lost == 3


def test_numbers_from_the_kernel_never_go_back() -> None:
    kernel = LogKernel()
    with Log(5, transport=kernel, sequence=True, on_overrun="ignore") as log:
        kernel.deliver(numbered(0, 0x90000000))
        kernel.deliver(numbered(0x8FFFFFFF))
        log.process(id)
        assert log.counters.lost == 0x90000000 - 1 + 0xFFFFFFFE


def test_without_sequence_numbers_loss_is_not_known() -> None:
    kernel = LogKernel()
    with Log(5, transport=kernel) as log:
        assert log.counters.lost is None


@pytest.mark.parametrize(
    ("damaged", "offset"),
    [
        (b"\x05", 0),
        (b"\x10\0\0\0\0\x04", 0),
        (bytes(16), 0),
        (b"\xff\xff\0\0\0\x04" + bytes(30), 0),
    ],
)
def test_a_damaged_datagram_is_an_error_and_the_others_arrive(damaged: bytes, offset: int) -> None:
    kernel = LogKernel(ends=True)
    good = log_message(MARK=1)
    with Log(5, transport=kernel) as log:
        kernel.deliver(good)
        kernel.deliver(good + damaged)
        kernel.deliver(good + good)
        with pytest.raises(nfnet.DecodeError) as caught:
            log.run(id)
        assert caught.value.offset == offset + len(good)
        assert len(list(log)) == 4
        assert log.counters.malformed == 1


def test_reading_a_damaged_message_is_an_error() -> None:
    whole = log_message(MARK=1)
    short = nfnetlink.build_message(nfulnl.MSG_PACKET, 5, whole[20:31])
    (message,) = read(short)
    with pytest.raises(nfnet.DecodeError):
        message.payload  # noqa: B018
    (headless,) = read(nfnetlink.build_message(nfulnl.MSG_PACKET, 5, b""))
    with pytest.raises(nfnet.DecodeError, match="PACKET_HDR"):
        headless.hook  # noqa: B018


@given(st.binary(max_size=120), st.integers(0, 119))
@example(b"\x10", 0)  # a message that ends behind the netlink header
def test_any_bytes_raise_nothing_but_our_errors(noise: bytes, place: int) -> None:
    kernel = LogKernel(ends=True)
    kernel.trusted = False

    seen: list[LogMessage] = []

    def handler(message: LogMessage) -> None:
        seen.append(message)
        for name in dir(LogMessage):
            if isinstance(getattr(LogMessage, name), property):
                with contextlib.suppress(nfnet.NfnetError):
                    getattr(message, name)

    good = log_message(MARK=1, SEQ=5, HWADDR={"length": 6, "address": bytes(8)}, VLAN={1: 1, 2: 2})
    with Log(5, transport=kernel, sequence=True) as log:
        kernel.deliver(noise)
        kernel.deliver(good[:place] + noise + good[place + len(noise) :])
        for _ in range(3):
            with contextlib.suppress(nfnet.NfnetError):
                log.run(handler)
        assert log.counters.received == len(seen)
