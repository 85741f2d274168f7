"""The commands as processes: on recordings, and with wrong arguments."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfnet import rules, testing
from nfnet.captures import LinkType, Writer
from nfnet.captures._format import netlink_header
from nfnet.cli import build, packet_text
from nfnet.cli.command_line import netns, rule_words
from nfnet.cli.decode_command import describe
from nfnet.collect import Sqlite
from nfnet.collect._queries import QUESTIONS
from nfnet.log import LogMessage

from .conftest import FIXTURES
from .frames import ETHERNET, IPV4, NOT_IP, write_pcap
from .test_captures import recording
from .test_replay import cut_file, mixed

COMMANDS: dict[str, argparse.ArgumentParser] = build().commands.choices  # type: ignore[attr-defined]
NO_FILE = "unable to open database file: there is no such file"
QUEUE = FIXTURES / "queue-forward-ipv4.pcapng"
LOG = FIXTURES / "log-input-ipv6.pcapng"


def nfnet(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nfnet", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def examples(text: str) -> Iterator[list[str]]:
    """The commands in a help text: lines that are set off by four columns or more."""
    for line in re.findall(r"^ {4,}((?:sudo |.* \| )?nfnet .*)", text.replace("\\\n", " "), re.MULTILINE):
        words = shlex.split(line)
        yield words[words.index("nfnet") + 1 :]


def accept(words: list[str]) -> None:
    """Have the parser accept a command, without abbreviated options."""
    parser = build()
    for each in (parser, *parser.commands.choices.values()):  # type: ignore[attr-defined]
        each.allow_abbrev = False
    parser.parse_args(words)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_terminal_and_has_an_exit_status(command: str) -> None:
    done = nfnet(command, "--help", env={"COLUMNS": "80", "PATH": "/usr/bin:/bin"})
    assert done.returncode == 0
    assert not [line for line in done.stdout.splitlines() if len(line) > 80]
    assert "exit status" in done.stdout
    shown = list(examples(done.stdout))
    assert shown
    for words in shown:
        assert words[0] == command
        accept(words)


def test_the_help_lists_all_commands_by_job() -> None:
    done = nfnet("--help", env={"COLUMNS": "80", "PATH": "/usr/bin:/bin"})
    assert not [line for line in done.stdout.splitlines() if len(line) > 80]
    jobs = re.findall(r"^(\w.*):\n((?:  \w.*\n)+)\n((?:    .*\n)+)", done.stdout, re.MULTILINE)
    assert len(jobs) == 6
    listed = []
    for _, commands, shown in jobs:
        names = re.findall(r"^  (\S+)  +\S", commands, re.MULTILINE)
        listed += names
        for words in examples(shown):
            assert words[0] in names
            accept(words)
        assert len(list(examples(shown))) == len(shown.splitlines())
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize("arguments", [["x.db"], ["x.db", "--json"], ["x.db", " "]])
def test_query_without_a_question_lists_the_questions(arguments: list[str]) -> None:
    done = nfnet("query", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("nfnet query: a question is missing. Questions are:\n\n    top sources  ")
    assert all(f"    {name} " in done.stderr for name in QUESTIONS)
    shown = list(examples(done.stderr))
    assert any("SELECT" in words[-1] for words in shown)
    for words in shown:
        accept(words)


def test_a_question_can_follow_an_option(tmp_path: Path) -> None:
    """In Python 3.10 to 3.12, nargs="*" would not accept it there."""
    done = nfnet("query", tmp_path / "missing.db", "--json", "latest")
    assert (done.returncode, done.stderr) == (1, f"nfnet query: {tmp_path}/missing.db: {NO_FILE}\n")


WRONG: dict[str, tuple[list[str], str]] = {
    "number": (["queue", "x"], "argument NUM: 'x' is no number; it must be in 0..65535. See nfnet queue --help\n"),
    "no command": (["qeue", "1"], "nfnet: no command is called 'qeue'; did you mean 'queue'? See nfnet --help\n"),
    "no option": (["queue", "1", "--lose", "5"], "unrecognized arguments: --lose 5; did you mean --loss? See nfnet"),
    "option before it": (["queue", "1", "--debug"], "--debug must be before the command. See nfnet queue --help\n"),
    "no quotes": (["queue", "1", "--install-rule", "hook=input", "protocol=udp"], "must be one argument, in quotes."),
    "milliseconds": (["queue", "1", "--delay", "1s"], "'1s' is no number, such as 5 or 0.5ms"),
    "host bits": (["queue", "1", "--source", "192.0.2.1/24"], "has host bits set; the network is 192.0.2.0/24"),
    "host bits to block": (["block", "10.0.0.1/8"], "has host bits set; the network is 10.0.0.0/8"),
    "host bits of replay": (["replay", "x", "--local", "10.0.0.1/8"], "has host bits set; the network is 10.0.0.0/8"),
    "host name": (["block", "example.com"], "names are not looked up"),
    "file of a handler": (["queue", "1", "--handler", "own.py:f"], "is not MODULE:FUNCTION, such as own:f. See"),
    "name of nft": (["queue", "1", "--install-rule", "hook=input dport=5"], "did you mean 'destination_port'?"),
    "option of iptables": (["queue", "1", "--install-rule", "-p udp"], "'-p' is not name=value, such as protocol=udp"),
    "no question": (["query", "x.db", "top source"], "no question is called 'top source'; did you mean 'top sources'?"),
    "not SQL": (["query", "x.db", "DELETE FROM messages"], "(an SQL query begins with SELECT or WITH)"),
    "no group": (["collect", "--to", "x.jsonl"], "no log group is given: add --group N"),
    "no output": (["collect", "--group", "5"], "no output is given: add --to OUTPUT"),
    "no setting": (["collect", "--group", "5", "--to", "x.jsonl", "1G"], "'1G' is not a setting, such as rotate_size="),
    "no action": (["stand-in"], "nfnet stand-in: the following arguments are required: install|remove. See"),
    "no script": (["run"], "nfnet run: a script, -m MODULE or -c CODE is missing. See nfnet run --help\n"),
    "no code": (["run", "-c"], "nfnet run: nothing follows -c. See nfnet run --help\n"),
    "range": (["queue", "70000"], "must be in 0..65535"),
    "two verdicts": (["queue", "1", "--drop", "--requeue", "2"], "not allowed with"),
    "mark": (["queue", "1", "--mark", "-1"], "must be in"),
    "protocol": (["queue", "1", "--protocol", "pigeon"], "unknown protocol 'pigeon'"),
    "network": (["queue", "1", "--source", "1.2.3.4/8"], "has host bits set"),
    "loss": (["queue", "1", "--loss", "101"], "must be in 0..100"),
    "delay": (["queue", "1", "--delay", "-5"], "at least 0"),
    "handler": (["queue", "1", "--handler", "nothing"], "is not MODULE:FUNCTION"),
    "no module": (["queue", "1", "--handler", "no_such_module:f"], "the module 'no_such_module' cannot be imported"),
    "no function": (["queue", "1", "--handler", "json:nothing"], "there is no function 'nothing' in 'json'"),
    "async function": (["queue", "1", "--handler", "asyncio:sleep"], "the handler sleep is an async function"),
    "generator": (["queue", "1", "--handler", "os:fwalk"], "the handler fwalk has a yield in it"),
    "undecided": (["queue", "1", "--undecided", "accept"], "about what a --handler leaves undecided"),
    "no mark": (["queue", "1", "--handler", "json:loads", "--mark", "1"], "--mark is for packets that are accepted"),
    "length": (["queue", "1", "--max-len", "0"], "must be in 1..4294967295"),
    "rate": (["queue", "1", "--rate", "5"], "'5' is no rate, such as 1mbit, 500kB or 200pps; units are bit,"),
    "no rate": (["queue", "1", "--rate", "0mbit"], "a rate must be above 0"),
    "all late": (["queue", "1", "--reorder", "100"], "--reorder must be below 100"),
    "seed": (["queue", "1", "--seed", "-1"], "must be at least 0"),
    "mark of what is refused": (["queue", "1", "--reject", "--mark", "1"], "--mark is for packets that are accepted"),
    "corrupt": (["queue", "1", "--drop", "--corrupt", "1"], "--corrupt is for packets that are accepted by this"),
    "duplicate": (["queue", "1", "--duplicate", "1", "--gso"], "--duplicate is for packets, not for super-packets"),
    "bridge": (["queue", "1", "--duplicate", "1", "--install-rule", "family=bridge hook=forward"], "are routed"),
    "connection": (["queue", "1", "--connection", "--requeue", "2"], "--connection is for what is accepted, dropped"),
    "delayed connection": (["queue", "1", "--connection", "--delay", "9"], "to the kernel, which makes no bad line"),
    "forgetful": (
        ["queue", "1", "--connection", "--install-rule", "hook=input remember=no"],
        "--connection needs remember=yes",
    ),
    "where no connection is known": (
        ["queue", "1", "--connection", "--install-rule", "hook=output priority=-300"],
        "priority is -300 and must be above -200",
    ),
    "nothing to block": (["block"], "there is nothing to block: give an address, --port,"),
    "address": (["block", "10.0.0.1/8"], "ADDRESS must be an address, a network, or two addresses"),
    "port to block": (["block", "--port", "smtp"], "--port is 'smtp' and must be a port"),
    "protocol to block": (["block", "--protocol", "pigeon"], "--protocol is 'pigeon' and must be one of"),
    "no ports": (["block", "--port", "1", "--protocol", "icmp"], "destination_port needs protocol to be 'tcp'"),
    "no unit": (["block", "--unit", "no-such.service"], "--unit "),
    "no user": (["block", "--user", "nobody-of-that-name"], "there is no user of that name"),
    "no time": (["block", "192.0.2.1", "--for", "soon"], "'soon' is no time, which is like 90"),
    "both": (["block", "192.0.2.1", "--drop", "--reject"], "not allowed with"),
    "built in": (["queue", "1", "--handler", "sys:nothing"], "there is no function 'nothing' in 'sys' (built in)"),
    "rule": (["queue", "1", "--install-rule", "xyz=red"], "'xyz=red': there is no such name; there is hook,"),
    "rule value": (["log", "1", "--install-rule", "hook=outside"], "hook is 'outside' and must be one of"),
    "port": (["log", "1", "--metrics", "0"], "must be in 1..65535"),
    "neither": (["record", "x.pcap"], "one of the arguments --queue --group is required"),
    "what": (["rules", "paint"], "invalid choice"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case: str) -> None:
    arguments, text = WRONG[case]
    done = nfnet(*arguments)
    assert done.returncode == 2
    assert text in done.stderr
    assert done.stderr.startswith("nfnet")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["replay", "missing.pcap"], "nfnet replay: missing.pcap: no such file or directory [ENOENT]"),
        (["queue", "1", "--read", "."], "nfnet queue: .: is a directory [EISDIR]"),
        (["collect", "--config", "missing.toml"], "nfnet collect: missing.toml: no such file or directory [ENOENT]"),
        (["decode", "abc"], "nfnet decode: 'abc' is neither a file nor an even number of hexadecimal digits"),
        (["query", "missing.db", "latest"], "missing.db: unable to open database file: there is no such file"),
        (["query", "empty.db", "latest"], "no such table: messages; nfnet collect makes databases with the tables"),
        (["query", "messages.db", "SELECT sorce FROM messages"], "no such column: sorce; did you mean 'source'?"),
        (["query", "messages.db", "SELECT x FROM (SELECT 1)"], "messages.db: no such column: x; there is time,"),
        (["query", "empty.db", "SELECT x FROM (SELECT 1)"], "nfnet query: empty.db: no such column: x"),
        (["query", "messages.db", "--follow", "port = 22"], "such as destination_port = 22: no such column: port"),
    ],
)
def test_an_error_about_a_file_is_one_line(arguments: list[str], text: str, tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    messages = Sqlite(str(tmp_path / "messages.db"))
    messages.begin()
    messages.close()
    done = nfnet(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2 if "--follow" in arguments else 1, "")
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_port_for_metrics_that_is_in_use() -> None:
    pytest.importorskip("prometheus_client")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = nfnet("queue", "1", "--read", QUEUE, "--metrics", str(port))
    assert (done.returncode, done.stdout) == (1, "")
    text = f"nfnet queue: metrics cannot be served at 127.0.0.1 port {port}: Address already in use"
    assert done.stderr.startswith(text)
    assert done.stderr.endswith("[EADDRINUSE]\n")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--loss", "5%"], ["--delay", "100ms", "--jitter", "20ms"]])
def test_numbers_may_have_their_unit(arguments: list[str]) -> None:
    options, plain = (
        build().parse_args(["queue", "1", *words])
        for words in (arguments, [word.replace("%", "").replace("0ms", "0") for word in arguments])
    )
    assert options == plain
    assert options.loss or options.delay


def test_a_module_that_raises_is_one_line_and_with_debug_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('of its own accord')")
    done = nfnet("queue", "1", "--handler", "broken:f", cwd=tmp_path)
    assert done.returncode == 2
    text = "the module 'broken' cannot be imported: RuntimeError: of its own accord\n"
    assert done.stderr == f"nfnet queue: --handler: {text}"
    assert "Traceback" in nfnet("--debug", "queue", "1", "--handler", "broken:f", cwd=tmp_path).stderr


def test_a_handler_in_the_current_directory_is_not_found_on_a_safe_path(tmp_path: Path) -> None:
    (tmp_path / "decider.py").write_text("def decide(packet): pass")
    arguments = ("queue", "1", "--netns", "/nowhere", "--handler", "decider:decide")
    assert "/nowhere" in nfnet(*arguments, cwd=tmp_path).stderr  # it was found
    done = nfnet(*arguments, cwd=tmp_path, env={**os.environ, "PYTHONSAFEPATH": "1"})
    assert done.returncode == 2
    assert "the module 'decider' cannot be imported: ModuleNotFoundError" in done.stderr


def test_replay_of_a_queue() -> None:
    done = nfnet("replay", QUEUE)
    assert (done.returncode, done.stderr) == (0, "")
    first = done.stdout.splitlines()[0]
    assert "2 > 3 UDP 10.81.1.1." in first
    assert "> 10.81.2.2.7000 29 bytes" in first


def test_replay_of_a_log_as_json() -> None:
    done = nfnet("replay", LOG, "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows[0]["source"]["ip"] == "fd81:1::1"
    assert rows[0]["network"]["transport"] == "udp"
    assert rows[0]["nfnet"] == {"hook": "input", "mark": 0, "group": 5, "prefix": "input: ", "hwtype": 1}
    assert rows[0]["@timestamp"].endswith("Z")


def test_replay_of_what_is_not_there(tmp_path: Path) -> None:
    done = nfnet("replay", tmp_path / "nothing.pcap")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("nfnet replay: ")
    (tmp_path / "bad.pcap").write_bytes(b"no capture at all")
    done = nfnet("replay", tmp_path / "bad.pcap")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_ends_it() -> None:
    command = f"{sys.executable} -m nfnet replay {FIXTURES / 'queue-64k.pcapng'} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


# --- files that are not as they should be


def good_good_bad_good(path: Path) -> Path:
    packets = [packet(number) for number in range(1, 5)]
    packets[2] = packets[2][:20] + b"\xff\x7f" + packets[2][22:]  # an attribute that is longer than all of it
    return recording(path, *packets)


def packet(number: int) -> bytes:
    return testing.packet_message(number, testing.udp(bytes([number])), MARK=number)


def test_replay_shows_what_is_damaged_and_goes_on(tmp_path: Path) -> None:
    path = good_good_bad_good(tmp_path / "queue.pcap")
    place = path.read_bytes().index(b"\xff\x7f\x01\0")
    done = nfnet("replay", path)
    assert done.returncode == 1
    assert [line.split(" mark ")[1] for line in done.stdout.splitlines()] == ["0x1", "0x2", "0x4"]
    said = [line for line in done.stderr.splitlines() if line.startswith("nfnet replay: ")]
    assert said == [
        f"nfnet replay: record 3: attribute 1 of 32767 bytes where only 53 are left (at byte {place})",
    ]


def test_decode_shows_what_is_damaged_and_goes_on(tmp_path: Path) -> None:
    path = good_good_bad_good(tmp_path / "queue.pcap")
    place = path.read_bytes().index(b"\xff\x7f\x01\0")
    path.write_bytes(path.read_bytes() + b"end")
    done = nfnet("decode", path)
    assert done.returncode == 1
    assert [line.split(",")[0] for line in done.stdout.splitlines() if line.startswith("record")] == [
        "record 1",
        "record 2",
        "record 3",
        "record 4",
    ]
    assert [word for word in done.stdout.split() if word == "packet_id"] == ["packet_id"] * 3
    size = path.stat().st_size
    assert done.stderr.splitlines() == [
        f"nfnet decode: record 3: attribute 1 of 32767 bytes where only 53 are left (at byte {place})",
        f"nfnet decode: record 5: the file ends in the middle of a record (at byte {size})",
    ]


def test_records_of_other_link_types_are_no_fault(tmp_path: Path) -> None:
    path = mixed(tmp_path / "mixed.pcapng")
    done = nfnet("replay", path)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)
    assert done.stderr == (
        "nfnet replay: skipped: 3 records of link type ETHERNET (1), 2 records of link type LINUX_SLL2 (276)\n"
    )
    done = nfnet("decode", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(",")[0] for line in done.stdout.splitlines() if line.startswith("record")] == [
        "record 2",
        "record 6",
    ]


def test_files_with_nothing_in_them(tmp_path: Path) -> None:
    ethernet, empty, short = tmp_path / "ethernet.pcap", tmp_path / "empty", tmp_path / "short"
    recording(ethernet, bytes(60), link_type=1)
    empty.write_bytes(b"")
    short.write_bytes(b"abc")
    wanted = {
        ("decode", ethernet): f"no netlink messages of netfilter in {ethernet}: 1 record of link type ETHERNET (1)",
        ("replay", ethernet): f"no packets of a queue and no log messages in {ethernet}",
        ("decode", empty): "the file is empty (at byte 0)",
        ("replay", empty): "the file is empty (at byte 0)",
        ("decode", short): "3 bytes are too few for a netlink header (at byte 0)",
        ("replay", short): "the file ends in the middle of a header (at byte 3)",
    }
    for (command, path), text in wanted.items():
        done = nfnet(command, path)
        assert done.returncode == 1
        assert done.stderr.splitlines()[0] == f"nfnet {command}: {text}"
        assert "record " not in done.stdout


def test_cut_records_are_no_fault(tmp_path: Path) -> None:
    path = cut_file(tmp_path / "cut.pcap", QUEUE, 110, "<")
    done = nfnet("replay", path)
    assert (done.returncode, done.stderr) == (0, "")
    first, whole = done.stdout.splitlines()[0], nfnet("replay", QUEUE).stdout.splitlines()[0]
    assert first.replace("10.81.1.1", "").startswith(whole.split(" UDP ")[0])
    done = nfnet("decode", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "record 3, 94 of 117 bytes" in done.stdout


# --- captures of any link type

WEB = [
    testing.tcp(b"GET /", source="192.0.2.1", destination="198.51.100.7"),
    testing.tcp(b"200", source="198.51.100.7", destination="192.0.2.1", source_port=80, destination_port=40000),
    testing.udp(b"", source="198.51.100.7", destination="192.0.2.1"),
]


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """A capture of Ethernet: three packets, and one of ARP between them."""
    frames = [ETHERNET + IPV4 + packet for packet in WEB]
    return write_pcap(tmp_path / "web.pcap", LinkType.ETHERNET, frames[0], NOT_IP["ARP"][1], *frames[1:])


def test_replay_of_a_capture_of_ethernet(web: Path) -> None:
    done = nfnet("replay", web)
    assert done.returncode == 0
    assert [line.split(" > - ")[1] for line in done.stdout.splitlines()] == [
        "TCP 192.0.2.1.40000 > 198.51.100.7.80 [PSH.ACK] 45 bytes",
        "TCP 198.51.100.7.80 > 192.0.2.1.40000 [PSH.ACK] 43 bytes",
        "UDP 198.51.100.7.40000 > 192.0.2.1.9 28 bytes",
    ]
    assert done.stderr == "nfnet replay: skipped: 1 record that is not IP (1 ARP)\n"
    rows = [json.loads(line) for line in nfnet("replay", web, "--json", "--local", "192.0.2.0/24").stdout.splitlines()]
    assert [row["nfnet"]["hook"] for row in rows] == ["output", "input", "input"]
    assert [row["@timestamp"] for row in rows] == [f"2023-11-14T22:13:2{n}.123456Z" for n in (0, 2, 3)]
    rows = [json.loads(line) for line in nfnet("replay", web, "--json", "--group", "5").stdout.splitlines()]
    assert [row["nfnet"]["hook"] for row in rows] == ["prerouting"] * 3
    done = nfnet("replay", web, "--family", "bridge")
    assert (len(done.stdout.splitlines()), done.stderr) == (4, "")
    assert "0x0806" in done.stdout


def test_a_queue_reads_a_capture(web: Path, tmp_path: Path) -> None:
    done = nfnet("queue", "7", "--read", web, "--drop", "--protocol", "tcp", env={**os.environ, "TZ": "UTC"})
    assert done.returncode == 0
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["drop", "drop"]
    assert done.stderr.splitlines() == [
        "3 packets: 1 accepted, 2 dropped",
        "nfnet queue: skipped: 1 record that is not IP (1 ARP)",
    ]
    assert all(line.startswith("22:13:2") for line in done.stdout.splitlines())
    for options, said in (
        (["--reject", "--hook", "forward"], "0 accepted, 0 dropped, 3 rejected"),
        (["--duplicate", "100", "--local", "192.0.2.1"], "3 accepted, 0 dropped, 3 duplicated"),
    ):
        done = nfnet("queue", "7", "--read", web, "-q", *options)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.splitlines()[0] == f"3 packets: {said}"
    handler = "def decide(packet):\n    packet.drop() if packet.tcp else packet.accept()\n"
    (tmp_path / "my_module.py").write_text(handler)
    done = nfnet("queue", "7", "--read", web, "--handler", "my_module:decide", "-q", cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()[0]) == (0, "3 packets: 1 accepted, 2 dropped")


def test_a_queue_reads_a_recording_and_standard_input() -> None:
    with QUEUE.open("rb") as file:
        done = nfnet("queue", "1", "--read", "-", "-c", "5", "--json", stdin=file)
    assert done.returncode == 0
    assert [json.loads(line)["nfnet"]["verdict"] for line in done.stdout.splitlines()] == ["accept"] * 5


def test_a_queue_says_what_is_damaged_in_a_capture(web: Path) -> None:
    data = web.read_bytes()
    place = data.index(WEB[0]) - len(ETHERNET + IPV4)
    record = data[place - 16 : place - 8] + bytes((5, 0, 0, 0, 5, 0, 0, 0)) + data[place : place + 5]
    web.write_bytes(data[: place - 16] + record + data[place - 16 : -3])
    done = nfnet("queue", "7", "--read", web, "-q")
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert said[0] == f"nfnet queue: record 1: 5 bytes are too few for a header of ETHERNET (at byte {place + 5})"
    assert said[1].startswith("nfnet queue: record 5: the file ends in the middle of a record")
    assert said[2] == "2 packets: 2 accepted, 0 dropped"


def test_a_queue_reads_no_packets_from_other_things(tmp_path: Path) -> None:
    path = write_pcap(tmp_path / "usb.pcap", LinkType.USB_LINUX, b"usb")
    for command in (["queue", "7", "--read"], ["replay"]):
        done = nfnet(*command, path)
        assert done.returncode == 1
        assert f"1 record of link type USB_LINUX (189). {path}" not in done.stderr
        assert (
            f"1 record of link type USB_LINUX (189). To get the IP packets that Wireshark finds: tshark -r {path}"
            in (done.stderr)
        )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--hook", "input"], "for packets of a capture: --read FILE"),
        (["--local", "192.0.2.1"], "for packets of a capture: --read FILE"),
        (["--read", "x.pcap", "--netns", "blue"], "--netns is for packets of the kernel"),
        (["--read", "x.pcap", "--install-rule", "hook=input"], "--install-rule is for packets of the kernel"),
        (["--read", "x.pcap", "--delay", "5"], "--rate, --delay and --jitter are for packets of the kernel"),
        (["--read", "x.pcap", "--hook", "sideways"], "invalid choice: 'sideways'"),
    ],
)
def test_options_that_do_not_fit_a_capture(options: list[str], text: str) -> None:
    done = nfnet("queue", "1", *options)
    assert done.returncode == 2
    assert text in done.stderr


def test_a_wrong_network_is_refused(web: Path) -> None:
    done = nfnet("replay", web, "--local", "192.0.2.1/24")
    assert (done.returncode, "has host bits set" in done.stderr) == (2, True)


# --- pipes


@pytest.mark.parametrize("command", ["replay", "decode"])
@pytest.mark.parametrize(
    "how", ["cat {} | {} {} /dev/stdin", "gzip -c {} | {} {} -", "{1} {2} <(cat {0})", "mkfifo f; cat {} >f & {} {} f"]
)
def test_a_pipe_is_a_file(command: str, how: str, tmp_path: Path) -> None:
    line = how.format(QUEUE, f"{sys.executable} -m nfnet", command)
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == nfnet(command, QUEUE).stdout


def test_decode_of_a_datagram_from_a_pipe() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nfnet", "decode", "/dev/stdin"], input=packet(7), capture_output=True, timeout=60
    )
    assert done.returncode == 0
    assert b"packet_id 7" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_replay_of_a_pipe_shows_what_comes_and_ends_when_it_is_told(number: int, tmp_path: Path) -> None:
    data = recording(tmp_path / "queue.pcap", packet(1), packet(2), packet(3)).read_bytes()
    size = (len(data) - 24) // 3
    command = [sys.executable, "-m", "nfnet", "replay", "/dev/stdin"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write(data[: 24 + size])
        assert b"mark 0x1" in process.stdout.readline()
        process.stdin.write(data[24 + size : 24 + 2 * size + 9])  # and the beginning of the third
        assert b"mark 0x2" in process.stdout.readline()
        process.send_signal(number)
        assert process.wait(60) == 0


# --- times


@pytest.mark.parametrize(("zone", "shown"), [("UTC", "22:13:20.123456"), ("Asia/Kolkata", "03:43:20.123456")])
def test_the_time_of_a_record_is_the_time_of_its_packet(zone: str, shown: str, tmp_path: Path) -> None:
    path = tmp_path / "queue.pcapng"
    writer = Writer(path, LinkType.NETLINK)
    writer.write(1_700_000_000_123_456_123, bytes(netlink_header.build({"family": 12})) + packet(1))
    writer.close()
    environment = {**os.environ, "TZ": zone}
    assert nfnet("replay", path, env=environment).stdout.split()[0] == shown
    row = json.loads(nfnet("replay", "--json", path, env=environment).stdout)
    assert row["@timestamp"] == "2023-11-14T22:13:20.123456Z"


# --- fields


def test_decode_of_a_capture_and_of_digits() -> None:
    done = nfnet("decode", QUEUE)
    assert done.returncode == 0
    assert "NFQA_PACKET_HDR: packet_id 1, hw_protocol 2048, hook 2" in done.stdout
    assert "nlmsghdr: NFQNL_MSG_VERDICT" in done.stdout
    assert "errno 0: success" in done.stdout
    message = testing.packet_message(7, testing.udp(b"x"), MARK=9)
    done = nfnet("decode", message.hex())
    assert "packet_id 7" in done.stdout
    assert "NFQA_MARK: 9" in done.stdout
    assert "29 bytes, UDP 192.0.2.1.40000 > 192.0.2.2.9 29 bytes" in done.stdout
    done = nfnet("decode", "this is nothing")
    assert done.returncode == 1
    assert "neither a file nor an even number of hexadecimal digits" in done.stderr
    assert nfnet("decode", message.hex()[:50]).returncode == 1


def test_decode_shows_every_byte_of_every_fixture(datagrams: dict[str, bytes]) -> None:
    for name, datagram in datagrams.items():
        shown = list(describe(datagram))
        assert shown, name
        offsets = [int(line.split()[0]) for line in shown]
        assert offsets == sorted(offsets)
        assert offsets[0] == 0


def test_decode_of_a_nested_attribute_and_unknown_ones() -> None:
    message = testing.packet_message(1, CT={8: 5}, hook=3)
    text = "\n".join(describe(message))
    assert "NFQA_CT:" in text
    assert "CTA_MARK: 5" in text


def test_what_a_rule_or_a_packet_says_cannot_command_the_terminal() -> None:
    message = LogMessage.from_bytes(testing.log_message(testing.udp(), prefix="\x1b[2Jred\x07\udcff"))
    text = packet_text.line(message)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[1b]" in text
    text.encode()
    json.loads(packet_text.ecs(message))


def test_lines_of_other_packets() -> None:
    def contents(payload: bytes) -> str:
        return LogMessage.from_bytes(testing.log_message(payload)).contents()

    assert contents(b"") == "0 bytes that are not an IP packet"
    assert contents(testing.tcp(flags=0x12)) == "TCP 192.0.2.1.40000 > 192.0.2.2.80 [SYN.ACK] 40 bytes"
    assert contents(testing.udp(source="fd00::1", destination="fd00::2")).startswith("UDP fd00::1.40000 > fd00::2.9")


def test_rules_in_words() -> None:
    words = "hook=output protocol=udp destination_port=1-5 source=192.0.2.0/24 mark=0x7"
    assert rule_words(f"{words} state=new,related uid=0 priority=-5") == {
        "hook": "output",
        "protocol": "udp",
        "destination_port": "1-5",
        "source": "192.0.2.0/24",
        "mark": 7,
        "state": ["new", "related"],
        "uid": 0,
        "priority": -5,
    }
    with pytest.raises(argparse.ArgumentTypeError, match="needs protocol"):
        rule_words("hook=output destination_port=5")
    with pytest.raises(argparse.ArgumentTypeError, match="mark: 'x' is no number"):
        rule_words("mark=x")
    with pytest.raises(argparse.ArgumentTypeError, match="hook must be given: where packets meet the rule, one of 'pr"):
        rule_words("protocol=udp")
    assert rule_words("hook=output protocol=47 uid=root") == {"hook": "output", "protocol": 47, "uid": "root"}


def test_rules_in_words_say_whether_they_fail_open() -> None:
    assert rule_words("hook=input bypass=no balance=cpu") == {"hook": "input", "bypass": False, "balance": "cpu"}
    assert rule_words("hook=input bypass=yes") == {"hook": "input", "bypass": True}
    for word in ("bypass=No", "bypass=0", "bypass=", "bypass"):
        with pytest.raises(argparse.ArgumentTypeError, match="neither yes nor no|name=value"):
            rule_words(word)
    with pytest.raises(argparse.ArgumentTypeError, match="uid has no meaning at the hook 'input'"):
        rule_words("hook=input uid=0")
    with pytest.raises(argparse.ArgumentTypeError, match="only logged"):
        rule_words("hook=ingress in_interface=lo")


def test_rules_that_log_in_words() -> None:
    assert rule_words("hook=ingress in_interface=lo prefix='web: ' snaplen=60 threshold=9", rules.log) == {
        "hook": "ingress",
        "in_interface": "lo",
        "prefix": "web: ",
        "snaplen": 60,
        "threshold": 9,
    }
    for text, rule, error in (
        ("bypass=no", rules.log, "'bypass=no': there is no such name; there is hook"),
        ("snaplen=60", rules.queue, "'snaplen=60': there is no such name"),
        ("prefix='web", rules.log, "No closing quotation"),
        ("threshold=0", rules.log, "threshold is 0"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=error):
            rule_words(text, rule)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--prefix", "a"], "--prefix is for the rule of --install-rule, which is missing"),
        (
            ["--prefix", "a", "--install-rule", "hook=input prefix=b"],
            "the prefix is given twice: as --prefix, and in the words of --install-rule",
        ),
    ],
)
def test_a_prefix_is_for_the_rule_and_said_once(words: list[str], text: str) -> None:
    done = nfnet("log", "5", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"nfnet log: {text}\n"


def test_a_number_is_a_process_for_the_command() -> None:
    assert netns("7") == "/proc/7/ns/net"
    assert netns("blue") == "blue"
    assert netns("/run/netns/7") == "/run/netns/7"


def test_the_shell_completes(tmp_path: Path) -> None:
    """Return argcomplete's completions of a line; it writes them to descriptor 8."""
    pytest.importorskip("argcomplete")
    line = "nfnet rec"
    script = f"exec 8>{tmp_path / 'said'}; {sys.executable} -m nfnet"
    environment = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "|"}
    subprocess.run(["bash", "-c", script], env={**os.environ, **environment}, timeout=60)
    assert (tmp_path / "said").read_text().strip() == "record"
