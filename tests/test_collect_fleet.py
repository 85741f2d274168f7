"""Rows of PostgreSQL, batches as bytes, URLs and settings, without servers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfnet import ArgumentError, DecodeError, LogMessage, _accounts, _ecs, cli, collect, testing
from nfnet._annotated import Annotated
from nfnet._processes import Process
from nfnet.collect import Batch, _copy_rows, _outputs, _packed, _settings
from nfnet.collect._nats_client import subject
from nfnet.collect._output import without_password

from . import swap
from .collector import MOMENTS, PACKETS, SESSION, batch, icmp, message

pytest.importorskip("psycopg", reason="the extra postgresql is not installed")
pytest.importorskip("nats", reason="the extra nats is not installed")


# --- rows


@given(
    st.one_of(
        PACKETS,
        st.builds(icmp, st.integers(0, 255), st.integers(0, 255), st.integers(20, 58)),
        st.builds(lambda size: testing.tcp(b"data", flags=2)[:size], st.integers(20, 44)),
        st.builds(
            lambda size, offset: b"\x45" + bytes(8) + b"\6" + bytes(22) + bytes([offset]) + bytes(size),
            st.integers(0, 60),
            st.integers(0, 255),
        ),
    ),
    st.integers(0, 0xFFFFFFFF),
    MOMENTS,
)
def test_the_quick_rows_say_what_the_columns_say(packet: bytes, number: int, second: int) -> None:
    moment = second * 1_000_000_000 + 123_000
    each = message(number, packet)
    quick = _copy_rows._quick(each, moment)
    assert quick is None or quick == _copy_rows._of_packet(each, moment)


def test_most_packets_are_quick() -> None:
    packets = [testing.udp(b""), testing.tcp(b""), testing.udp(b"", source="::1", destination="::2"), icmp(8, 0, 58)]
    assert all(_copy_rows._quick(message(1, packet), 0) for packet in packets)


def test_a_row_has_as_many_fields_as_there_are_columns() -> None:
    each = message(1)
    each.raw = Annotated(each.raw, process=Process(7, "curl"), suppressed=3)
    data, days = _copy_rows.rows(Batch(SESSION, [message(0), each], read_ns=86400 * 10**9), 9)
    place = found = 0
    for _ in range(2):
        assert int.from_bytes(data[place : place + 2], "big") == len(_copy_rows.COLUMNS)
        place += 2
        for _ in _copy_rows.COLUMNS:
            size = int.from_bytes(data[place : place + 4], "big", signed=True)
            place += 4 + max(size, 0)
            found += size >= 0
    assert place == len(data)
    assert found > 20
    assert days == {1}


# --- bytes


def test_a_batch_is_the_same_on_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_accounts, "_users", {1000: "alice"}.get)
    monkeypatch.setattr(_accounts, "_groups", {100: "staff"}.get)
    each = message(2, UID=1000, GID=100, IFINDEX_INDEV=2)
    process = Process(7, "curl", "/bin/curl", ("curl", "x"))
    noted = message(3)
    noted.raw = Annotated(noted.raw, process=process, suppressed=20)
    before = Batch(SESSION, [message(1), each, noted], 4, 77, {"site": "berlin"})
    for compress in (False, True):
        data = _packed.pack(before, compress=compress)
        monkeypatch.setattr(_accounts, "_users", {1000: "mallory"}.get)
        after = _packed.unpack(data)
        assert (after.session, after.lost, after.read_ns, after.labels) == (SESSION, 4, 77, {"site": "berlin"})
        assert [m.raw for m in after.messages] == [m.raw for m in before.messages]
        assert after.messages[1].indev_name == "eth0"
        assert _ecs.fields(after.messages[1], 0, {})["user"] == {
            "id": "1000",
            "name": "alice",
            "group": {"id": "100", "name": "staff"},
        }
        raw = after.messages[2].raw
        assert isinstance(raw, Annotated)
        assert (raw.process, raw.suppressed) == (process, 20)
        monkeypatch.setattr(_accounts, "_users", {1000: "alice"}.get)


def test_a_machine_of_the_other_byte_order_is_understood() -> None:
    before = batch(1, 2)
    other = "big" if sys.byteorder == "little" else "little"
    head, _, _ = _packed.pack(before).partition(b"\n")
    messages = [swap.turn(each.raw, "<" if sys.byteorder == "little" else ">") for each in before.messages]
    data = b"".join(each + bytes(-len(each) % 4) for each in messages)
    head = head.replace(f'"order": "{sys.byteorder}"'.encode(), f'"order": "{other}"'.encode())
    after = _packed.unpack(head + b"\n" + data)
    assert [m.raw for m in after.messages] == [m.raw for m in before.messages]


@given(st.data())
def test_damaged_bytes_are_an_error_and_nothing_else(data: st.DataObject) -> None:
    good = bytearray(_packed.pack(batch(1, 2), compress=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 5))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = _packed.unpack(bytes(good[: data.draw(st.integers(0, len(good)))]))
    except DecodeError:
        return
    assert len(found) > 0


def test_pieces_are_bounded_and_together_the_whole() -> None:
    messages = [LogMessage.from_bytes(testing.log_message(testing.udp(bytes(n)), SEQ=n)) for n in range(0, 60_000, 500)]
    found = list(_packed.pieces(Batch(SESSION, messages, 9, 7, {"a": "b"})))
    assert [each for piece in found for each in piece.messages] == messages
    assert [piece.lost for piece in found] == [9] + [0] * (len(found) - 1)
    assert all(piece.size <= 256 << 10 for piece in found)
    assert {(piece.session, piece.read_ns, piece.labels["a"]) for piece in found} == {(SESSION, 7, "b")}
    assert next(_packed.pieces(batch(1))).messages[0].seq == 1


@pytest.mark.parametrize(
    ("host", "token"), [("fw-1.example.org", "fw-1_example_org"), ("a b>*\n", "a_b___"), ("", "_")]
)
def test_any_host_has_a_subject(host: str, token: str) -> None:
    assert subject(host) == f"nfnet.log.{token}"


# --- URLs and settings


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://user:secret@host/db",
        "postgresql://user:a@secret@host/db",
        "nats://secret@host:4222",
        "cannot read postgresql://user:a/secret@host/db: no",
        "postgresql://host/db?user=me&password=secret",
        "postgresql://host/db?sslpassword=secret&x=y",
    ],
)
def test_passwords_are_not_shown(text: str) -> None:
    assert "secret" not in without_password(text)


@pytest.mark.parametrize(
    ("to", "text"),
    [
        ("postgresql:db", "it has no //"),
        ("postgresql://user:se/cret@host/db", "is no URL of a database; write postgresql://USER"),
        ("postgresql://user:se@cret@host/db", "with %40 for an @"),
        ("postgresql://user:secret@host/db?nope=1", "is no URL of a database"),
        ("postgres://user:secret@host/db", "did you mean 'postgresql'"),
        ("nats:host", "is no URL of NATS"),
        ("nats://user:secret@", "is no URL of NATS"),
        ("nats://user:secret@host:port", "is no URL of NATS"),
        ("nats://user:secret@host/path", "is no URL of NATS"),
        ("natz://user:secret@host", "did you mean 'nats'"),
    ],
)
@pytest.mark.parametrize("option", ["--to", "--check"])
def test_wrong_urls(option: str, to: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["collect", "--group", "5", "--to", to, *(["--check"] if option == "--check" else [])]
    assert cli.main(arguments) == 2
    errors = capsys.readouterr().err
    assert text in errors
    assert "cret" not in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--to", "nats://h", "ca=/nowhere/ca"), "/nowhere/ca"),
        (("--to", "nats://h", "nkey=/nowhere/key"), "/nowhere/key"),
        (("--to", "nats://h", "stream=a b"), "stream: 'a b' is no name"),
        (("--to", "nats://h", "consumer=a"), "nats has no setting 'consumer'"),
        (("--to", "postgresql://h/d", "keep=often"), "keep: 'often' is no time"),
        (("--to", "jsonl:-", "--from", "log.jsonl"), "--from log.jsonl: 'log.jsonl' is no source"),
        (("--to", "jsonl:-", "--from", "nats://h"), "not from both"),
    ],
)
def test_wrong_settings(arguments: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["collect", "--group", "5", *arguments]) in (1, 2)
    errors = capsys.readouterr().err
    assert text in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(("package", "extra"), [("psycopg", "postgresql"), ("nats", "nats")])
def test_an_extra_that_is_not_installed_is_named(
    package: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert cli.main(["collect", "--group", "5", "--to", f"{extra}://host/db"[: 14 + len(extra)]]) == 2
    assert f"pip install 'nfnet[{extra}]'" in capsys.readouterr().err


def test_the_check_shows_no_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "collect.toml"
    config.write_text('[source]\nfrom = "nats://u:secret@h"\n[[output]]\nto = "postgresql://u:secret@h/d"\n')
    assert cli.main(["collect", "--config", str(config), "--check"]) == 0
    assert capsys.readouterr().out == "nats://***@h to postgresql://***@h/d\n"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ('[source]\nfrom = "nats:h"\n', 2, "is no URL of NATS"),
        ('[source]\nform = "nats://h"\n', 2, "[source] without 'from'; is that meant by 'form'?"),
        ('[source]\nfrom = "nats://h"\nkeep = "7"\n', 3, "keep: '7' is no time"),
        ('[source]\nfrom = "nats://h"\ncosumer = "a"\n', 3, "did you mean 'consumer'"),
        ('[[source]]\nfrom = "nats://h"\n', 1, "source is a table: [source]"),
        ("[source]\nfrom = 7\n", 2, "from: 7 is no text"),
    ],
)
def test_what_is_wrong_with_a_source_is_said_with_its_line(text: str, line: int, said: str, tmp_path: Path) -> None:
    path = tmp_path / "collect.toml"
    path.write_text(text)
    with pytest.raises(ArgumentError) as caught:
        _settings.read_settings(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert said in str(caught.value)


def test_outputs_that_need_an_extra_are_imported_without_it() -> None:
    assert {"nats", "postgresql"} <= {kind.scheme for kind in _outputs.OUTPUTS}
    described: Any = _outputs.describe_source("nats://h", {"consumer": "archive"})
    assert described.settings == {"consumer": "archive"}
    assert collect.OUTPUTS is _outputs.OUTPUTS
