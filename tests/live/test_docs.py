"""The programs of the documentation, unchanged, on the kernel: they do what the pages say.

tests/test_docs.py runs all code of all pages without the kernel; these programs install rules, or need a rule.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nfnet import rules

from ..test_docs import ROOT, blocks
from .conftest import ADDRESS, QUIET, TIMEOUT, Net, readable, wait_for
from .programs import is_bound, running

V4 = socket.AF_INET
SERVER = ADDRESS["server", V4]
OTHER = "192.0.2.66"  # an address of the client's that pages speak of


class Page:
    """The program of a page: some of its blocks, after the code that the page leaves to the reader."""

    def __init__(self, net: Net, directory: Path) -> None:
        self.net = net
        self._directory = directory
        self._replaced: dict[str, str] = {}

    def replace(self, old: str, new: str) -> None:
        """Replace names that exist only on the page."""
        self._replaced[old] = new

    @contextlib.contextmanager
    def program(
        self,
        name: str,
        *numbers: int,
        host: str,
        before: str = "",
        queues: tuple[int, ...] = (1,),
        group: int | None = None,
    ) -> Iterator[Callable[..., str]]:
        """The program while it runs on a host.

        Gives a function that interrupts it, after so many lines, and returns what it printed.
        """
        python = [block.text for block in blocks(ROOT / name) if block.kind == "python"]
        script = "\n\n".join(["import nfnet", before, *(python[number] for number in numbers)])
        for old, new in self._replaced.items():
            assert old in script
            script = script.replace(old, new)
        places = [str(ROOT), *(path for path in sys.path if path)]
        # Without the right to a larger buffer, as for an ordinary user here, there is a warning.
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(places),
            "PYTHONWARNINGS": "ignore::RuntimeWarning",
            "PYTHONUNBUFFERED": "1",
        }
        command = [sys.executable, "-c", script]
        with running(self.net, command, host, cwd=self._directory, env=environment) as process:

            def ready() -> bool:
                if group is not None:
                    return is_bound(self.net, host=host, group=group)
                return all(is_bound(self.net, host=host, queue=number) for number in queues)

            assert wait_for(lambda: ready() or process.poll() is not None)
            yield functools.partial(self._end, process)
        assert wait_for(lambda: rules.installed(self.net.hosts[host]) == [])

    @staticmethod
    def _end(process: subprocess.Popen[str], *, lines: int = 0) -> str:
        assert process.stdout is not None
        before = "".join(process.stdout.readline() for _ in range(lines))
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=TIMEOUT)
        assert errors == "" or errors.endswith("KeyboardInterrupt\n"), errors
        return before + output


@pytest.fixture
def page(net: Net, tmp_path: Path) -> Page:
    return Page(net, tmp_path)


def own_address(net: Net, host: str, peer: str, address: str) -> None:
    """Give a host one more address, which the others reach."""
    from pyroute2 import IPRoute

    def add() -> None:
        with IPRoute() as ip:
            ip.addr("add", index=ip.link_lookup(ifname=f"to-{peer}")[0], address=address, prefixlen=32)

    def route() -> None:
        with IPRoute() as ip:
            ip.route("add", dst=f"{address}/32", gateway=ADDRESS[host, V4])

    net.at(host, add)
    net.at(peer, route)


def send(net: Net, port: int, *data: bytes, source: str | None = None) -> socket.socket:
    sender = net.open_socket("client")
    if source is not None:
        sender.bind((source, 0))
    for item in data:
        sender.sendto(item, (SERVER, port))
    return sender


def test_log_messages(page: Page, net: Net) -> None:
    with listening(net, 80), page.program("docs/packets.md", 1, host="server", group=5) as end:
        connect(net, 80).close()
        lines = end(lines=1).splitlines()
    assert lines[0].startswith("web:  to-router TCP 10.81.1.1.")
    assert lines[0].endswith(" > 10.81.2.2.80")


@contextlib.contextmanager
def listening(net: Net, port: int) -> Iterator[socket.socket]:
    with net.open_socket("server", kind=socket.SOCK_STREAM) as door:
        door.bind(("0.0.0.0", port))
        door.listen()
        yield door


def connect(net: Net, port: int) -> socket.socket:
    sock = net.open_socket("client", kind=socket.SOCK_STREAM)
    sock.connect((SERVER, port))
    return sock


def test_dropping(page: Page, net: Net) -> None:
    own_address(net, "client", "router", OTHER)
    receiver = net.receiver()
    with listening(net, 80) as door, page.program("docs/dropping.md", 0, host="server") as end:
        send(net, 7000, b"from one who is blocked", source=OTHER)
        send(net, 7000, b"from another")
        assert receiver.recv(100) == b"from another"
        for request, passes in ((b"GET / HTTP/1.1", True), (b"GET /admin HTTP/1.1", False)):
            with connect(net, 80) as sock, door.accept()[0] as connection:
                sock.send(request)
                assert readable(connection, TIMEOUT if passes else QUIET) is passes
        end()
    assert not readable(receiver, 0)


def test_emulating_a_bad_line(net: Net) -> None:
    """Both commands of the page at once, on the client: answers are late, nothing leaves out of order, rules go."""
    text = next(block.text for block in blocks(ROOT / "docs/emulate.md") if block.kind == "console")
    lines = text.replace("\\\n", "").replace("eth0", "to-router").splitlines()
    server, client = net.receiver(), net.open_socket("client")
    with contextlib.ExitStack() as stack:
        processes = []
        for number, line in enumerate(lines, 1):
            words = shlex.split(line.removeprefix("$ sudo .venv/bin/nfnet "))
            command = [sys.executable, "-m", "nfnet", *words, "--seed", "5"]
            process = stack.enter_context(running(net, command, "client"))
            assert wait_for(functools.partial(is_bound, net, queue=number, host="client"))
            processes.append(process)
        began = time.monotonic()
        # The last packets mark the end; one in two hundred is lost.
        for number in [*range(40), *[255] * 5]:
            client.sendto(bytes([number]), (SERVER, 7000))
        asked = []
        while (got := server.recvfrom(100))[0] != b"\xff":
            data, sender = got
            asked.append(data)
            server.sendto(data, sender)
        for _ in range(5):
            server.sendto(b"\xff", sender)
        answers = []
        while (data := client.recv(100)) != b"\xff":
            answers.append(data)
            assert time.monotonic() - began >= 0.125  # 150 ms, or 25 less
        summaries = []
        for process in processes:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=TIMEOUT)
            summaries.append(errors.splitlines()[-1])
    assert asked == sorted(asked)
    assert answers == sorted(answers)
    # There were more than these: the rules match all packets, for instance those of IPv6 neighbour discovery.
    for summary, sent, came in ((summaries[0], len(asked), len(answers)), (summaries[1], 40, len(asked))):
        packets, accepted, dropped = map(int, re.findall(r"\d+", summary)[:3])
        assert packets == accepted + dropped
        assert accepted >= came
        assert dropped >= sent - came
    assert rules.installed(net.hosts["client"]) == []


def test_deciding_connections(page: Page, net: Net) -> None:
    with listening(net, 80) as door, page.program("docs/connections.md", 0, host="client") as end:
        with pytest.raises(ConnectionRefusedError):
            connect(net, 25)
        with connect(net, 80) as sock, door.accept()[0] as connection:
            for _ in range(10):
                sock.send(b"x")
                assert connection.recv(100) == b"x"
        output = end(lines=2)
    refused, accepted = dict.fromkeys(output.splitlines())  # unanswered packets are sent, and shown, again
    assert refused.endswith(f" > {SERVER}.25")
    assert accepted.endswith(f" > {SERVER}.80")


def test_refusing(page: Page, net: Net) -> None:
    with listening(net, 80) as door, listening(net, 23), page.program("docs/answers.md", 0, host="server") as end:
        with pytest.raises(ConnectionRefusedError):
            connect(net, 23)
        sock = net.open_socket("client")
        sock.connect((SERVER, 69))
        sock.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(100)
        with connect(net, 80), door.accept()[0]:
            end()


def test_resetting(page: Page, net: Net) -> None:
    with listening(net, 80) as door, page.program("docs/answers.md", 1, host="router") as end:
        for host, passes in ((b"good.example", True), (b"bad.example", False)):
            with connect(net, 80) as sock, door.accept()[0] as connection:
                connection.settimeout(TIMEOUT)
                request = b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host
                sock.send(request)
                if passes:
                    assert connection.recv(100) == request
                    continue
                for one in (sock, connection):
                    with pytest.raises(ConnectionResetError):
                        one.recv(100)
        end()


def test_answering_for_a_dns_server(page: Page, net: Net) -> None:
    from scapy.layers.dns import DNS, DNSQR

    server = net.receiver(port=53)
    with page.program("docs/answers.md", 2, host="client") as end:
        sock = net.open_socket("client")
        sock.connect((SERVER, 53))
        sock.send(bytes(DNS(id=7, rd=1, qd=DNSQR(qname="ads.example"))))
        answer = DNS(sock.recv(1000))
        assert (answer.id, answer.qr, answer.rcode, answer.ancount) == (7, 1, 0, 1)
        record = answer.an[0] if isinstance(answer.an, list) else answer.an
        assert (record.rrname, record.type, record.ttl, record.rdata) == (b"ads.example.", 1, 60, "192.0.2.1")
        other = bytes(DNS(id=8, rd=1, qd=DNSQR(qname="www.example")))
        sock.send(other)
        assert server.recv(1000) == other
        end()


def test_answering_for_a_web_server(page: Page, net: Net) -> None:
    with listening(net, 80) as door, page.program("docs/answers.md", 3, host="router") as end:
        with forbidden(net) as answer:
            assert (answer.code, answer.read()) == (403, b"Blocked by the firewall.\n")
        with door.accept()[0] as connection:
            connection.settimeout(TIMEOUT)
            with pytest.raises(ConnectionResetError):
                connection.recv(100)
        end()


def test_injecting_a_copy(page: Page, net: Net) -> None:
    own_address(net, "server", "router", "198.51.100.7")
    server = net.open_socket("server")
    server.bind((SERVER, 53))
    watcher = net.open_socket("server")
    watcher.bind(("198.51.100.7", 53))
    with page.program("docs/answers.md", 4, host="router") as end:
        send(net, 53, b"a question")
        assert server.recv(100) == b"a question"
        assert watcher.recv(100) == b"a question"
        end()


def forbidden(net: Net) -> urllib.error.HTTPError:
    """Return the data that the client's program receives from the server."""

    def get() -> urllib.error.HTTPError:
        try:
            urllib.request.urlopen(f"http://{SERVER}/", timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            return error
        raise AssertionError("the server has answered")

    answer: urllib.error.HTTPError = net.at("client", get)
    return answer


def test_marking_and_another_route(page: Page, net: Net) -> None:
    """The route of marked packets leads nowhere here."""
    from pyroute2 import IPRoute

    def table() -> None:
        with IPRoute() as ip:
            ip.rule("add", fwmark=2, table=100)
            ip.route("add", type="blackhole", dst="0.0.0.0/0", table=100)

    net.at("router", table)
    phone, dns = net.receiver(port=5060), net.receiver(port=53)
    page.replace('"lan*"', '"to-cl*"')
    with page.program("docs/marking.md", 0, host="router") as end:
        send(net, 5060, b"a call")
        send(net, 53, b"a question")
        assert dns.recv(100) == b"a question"
        end()
    assert not readable(phone, QUIET)
    send(net, 5060, b"a call")
    assert phone.recv(100) == b"a call"


def test_marking_and_once_more_through_the_chain(page: Page, net: Net) -> None:
    receiver = net.receiver()
    with page.program("docs/marking.md", 1, host="client") as end:
        send(net, 7000, b"one", b"two")
        assert [receiver.recv(100) for _ in range(2)] == [b"one", b"two"]
        end()
    assert not readable(receiver, QUIET)


def reaches(net: Net, port: int, timeout: float = TIMEOUT) -> bool:
    """Return whether a connection to the server succeeds; a dropped one is known by a timeout."""
    with net.open_socket("client", kind=socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect((SERVER, port))
        except TimeoutError:
            return False
        return True


def test_a_ban(page: Page, net: Net) -> None:
    with listening(net, 80) as door, page.program("docs/sets.md", 0, host="server") as end:
        for request, passes in ((b"GET / HTTP/1.1", True), (b"GET /wp-login.php HTTP/1.1", False)):
            with connect(net, 80) as sock, door.accept()[0] as connection:
                sock.send(request)
                assert readable(connection, TIMEOUT if passes else QUIET) is passes
        assert wait_for(lambda: not reaches(net, 80, QUIET))
        end()
        assert reaches(net, 80)


def test_a_blocklist_from_a_file(page: Page, net: Net, tmp_path: Path) -> None:
    file = tmp_path / "blocklist.txt"
    file.write_text("192.0.2.0/24\n")
    page.replace("    while signal", "    print('ready')\n    while signal")
    with listening(net, 80), page.program("docs/sets.md", 1, host="server", queues=()) as end:
        process: subprocess.Popen[str] = end.args[0]  # type: ignore[attr-defined]
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert reaches(net, 80)
        file.write_text("10.81.0.0/16 # the client's\n")
        process.send_signal(signal.SIGHUP)
        assert wait_for(lambda: not reaches(net, 80, QUIET))
        file.write_text("not a network")
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline().startswith("The old list stays: blocklist.txt, line 1: no network: 'not a")
        assert not reaches(net, 80, QUIET)
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == 0


def test_port_knocking(page: Page, net: Net) -> None:
    with listening(net, 22), page.program("docs/sets.md", 2, host="server", group=5) as end:
        assert not reaches(net, 22, QUIET)
        for port in (7000, 9000, 8000):
            with pytest.raises(ConnectionRefusedError):
                connect(net, port)
        assert wait_for(lambda: reaches(net, 22, QUIET))
        end()


def test_rewriting(page: Page, net: Net) -> None:
    own_address(net, "server", "router", "192.0.2.53")
    elsewhere = net.open_socket("server")
    elsewhere.bind(("192.0.2.53", 53))
    receiver = net.receiver()
    with page.program("docs/rewriting.md", 0, host="client") as end:
        send(net, 53, b"a question")
        send(net, 7000, b"hello")
        assert elsewhere.recv(100) == b"a question"
        assert receiver.recv(100) == b"hello"
        end()


def test_rate_limits(page: Page, net: Net) -> None:
    own_address(net, "client", "router", OTHER)
    receiver = net.receiver(port=53)
    with page.program("docs/rate-limits.md", 0, host="server") as end:
        began = time.monotonic()
        send(net, 53, *[b"many"] * 200)
        send(net, 53, b"the last", source=OTHER)
        got = [receiver.recv(100)]
        while got[-1] != b"the last":
            got.append(receiver.recv(100))
        took = time.monotonic() - began
        end()
    assert 20 <= len(got) - 1 <= 20 + 10 * took + 1


def test_delaying(page: Page, net: Net) -> None:
    """In bursts that the receiver's socket has room for."""
    receiver = net.receiver()
    with page.program("docs/delaying.md", 0, host="router") as end:
        for _ in range(5):
            began = time.monotonic()
            send(net, 7000, *[b"%d" % number for number in range(200)])
            got = [receiver.recv(100) for _ in range(200)]
            assert time.monotonic() - began >= 0.1
            assert sorted(map(int, got)) == list(range(200))
        end()


HANDLER_THAT_FAILS = """
def handle(packet):
    if b"bad" in packet.payload:
        raise ValueError("never seen such a packet")
    if b"undecided" not in packet.payload:
        packet.accept()
"""


@pytest.mark.parametrize("block", [0, 1], ids=["open", "closed"])
def test_fail_open(page: Page, net: Net, block: int) -> None:
    receiver = net.receiver()
    page.replace("import nfnet\n", "import logging\nimport nfnet\nlogging.disable()\n")
    with page.program("docs/fail-open.md", block, host="router", before=HANDLER_THAT_FAILS) as end:
        send(net, 7000, b"bad", b"undecided", b"good")
        passes = [b"bad", b"undecided", b"good"] if block == 0 else [b"good"]
        assert [receiver.recv(100) for _ in passes] == passes
        end()
    assert not readable(receiver, QUIET)


def test_log_files(page: Page, net: Net, tmp_path: Path) -> None:
    with listening(net, 80), page.program("docs/log-files.md", 0, host="server", group=5) as end:
        for _ in range(2):
            connect(net, 80).close()
        file = tmp_path / "web.jsonl"
        assert wait_for(lambda: file.exists() and file.read_text().count("\n") == 2)
        end()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["in"], row["from"]) for row in rows] == [("to-router", "10.81.1.1")] * 2


def test_threads(page: Page, net: Net) -> None:
    receiver = net.receiver()
    with page.program("docs/threads.md", 0, host="server") as end:
        send(net, 7000, *[b"x"] * 50)
        assert [receiver.recv(100) for _ in range(50)] == [b"x"] * 50
        end()


RULE = 'rule = nfnet.rules.queue(1, hook="forward", protocol="udp"); rule.install()\n'


@pytest.mark.parametrize("numbers", [(0,), (0, 1), (0, 3)], ids=["iteration", "tasks", "trio"])
def test_event_loops(page: Page, net: Net, numbers: tuple[int, ...]) -> None:
    """The first block's imports are those of all; its loop is not for the others."""
    receiver = net.receiver()
    if numbers == (0, 3):
        pytest.importorskip("trio")
    if numbers != (0,):
        page.replace(
            "        async for packet in queue:\n            packet.accept()\n\n\nasyncio.run(main())", "        pass"
        )
    with page.program("docs/event-loops.md", *numbers, host="router", before=RULE) as end:
        send(net, 7000, b"one", b"two")
        assert [receiver.recv(100) for _ in range(2)] == [b"one", b"two"]
        end()


def test_the_log_in_an_event_loop(page: Page, net: Net) -> None:
    before = (
        'import asyncio\nrule = nfnet.rules.log(5, prefix="seen: ", hook="forward", protocol="udp"); rule.install()'
    )
    receiver = net.receiver()
    with page.program("docs/event-loops.md", 2, host="router", group=5, before=before) as end:
        send(net, 7000, b"one")
        assert receiver.recv(100) == b"one"
        output = end(lines=1)
    assert output.startswith("seen:  UDP 10.81.1.1.")


def test_scapy(page: Page, net: Net) -> None:
    dns = pytest.importorskip("scapy.layers.dns")
    server, client = net.receiver(port=53), net.open_socket("client")
    with page.program("docs/scapy.md", 0, host="client") as end:
        client.sendto(bytes(dns.DNS(qd=dns.DNSQR(qname="www.example.com"))), (SERVER, 53))
        _, address = server.recvfrom(2000)
        answer = dns.DNSRR(rrname="www.example.com", rdata="192.0.2.1")
        server.sendto(bytes(dns.DNS(qr=1, qd=dns.DNSQR(qname="www.example.com"), an=[answer])), address)
        assert dns.DNS(client.recv(2000)).an[0].rdata == "192.0.2.80"
        end()


def test_several_cores(page: Page, net: Net) -> None:
    receiver = net.receiver()
    with page.program("docs/cores.md", 0, host="router", queues=(0, 1, 2, 3)) as end:
        send(net, 7000, *[b"x"] * 50)
        assert [receiver.recv(100) for _ in range(50)] == [b"x"] * 50
        assert end() == ""


HANDLER = "def handle(packet):\n    print(packet.flow)\n    packet.accept()\n"


def test_running(page: Page, net: Net) -> None:
    receiver = net.receiver()
    page.replace("signal.SIGTERM", "signal.SIGINT")  # which ends a program here
    with page.program("docs/running.md", 0, host="server", before=HANDLER) as end:
        send(net, 7000, b"one")
        assert receiver.recv(100) == b"one"
        assert end().startswith("UDP 10.81.1.1.")


def test_metrics(page: Page, net: Net) -> None:
    pytest.importorskip("prometheus_client")
    receiver = net.receiver()
    before = 'rule = nfnet.rules.queue(1, hook="input", protocol="udp"); rule.install()\n' + HANDLER

    def scrape() -> str:
        net.at("server", up)
        with net.at(
            "server", lambda: urllib.request.urlopen("http://127.0.0.1:9464/metrics", timeout=TIMEOUT)
        ) as answer:
            return str(answer.read().decode())

    def up() -> None:
        from pyroute2 import IPRoute

        with IPRoute() as ip:
            ip.link("set", index=1, state="up")

    with page.program("docs/running.md", 1, host="server", before=before) as end:
        send(net, 7000, b"one")
        assert receiver.recv(100) == b"one"
        # The packet can arrive before its verdict is counted.
        assert wait_for(lambda: 'nfnet_queue_packets_total{event="accepted",queue="1"} 1.0' in scrape())
        end()


def test_rules(page: Page, net: Net) -> None:
    own_address(net, "client", "router", "192.0.2.7")
    with page.program("docs/rules.md", 0, host="router", before=HANDLER) as end:
        for port in (7999, 8000, 8099, 8100):
            for source in ("10.81.1.1", "192.0.2.7"):
                with net.open_socket("client", kind=socket.SOCK_STREAM) as sock:
                    sock.bind((source, 0))
                    sock.setblocking(False)
                    sock.connect_ex((SERVER, port))
                    assert wait_for(lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))  # it is refused
        seen = list(dict.fromkeys(end().splitlines()))
    assert [line.split(".")[-1] for line in seen] == ["8000", "8099"]
    assert all(line.startswith("TCP 192.0.2.7.") for line in seen)


def test_processes(page: Page, net: Net) -> None:
    page.replace('"/usr/bin/curl"', repr(os.path.realpath(sys.executable)))
    code = f"import socket; socket.create_connection({(SERVER, 80)}, {TIMEOUT})"
    with listening(net, 80), page.program("docs/processes.md", 0, host="client") as end:
        command = [sys.executable, "-S", "-E", "-c", code]
        net.at("client", lambda: subprocess.run(command, check=True, timeout=TIMEOUT))
        other = net.at("client", lambda: subprocess.Popen(["bash", "-c", f"exec 3<>/dev/tcp/{SERVER}/80"]))
        try:
            lines = end(lines=1).splitlines()
        finally:
            other.kill()
            other.wait()
    assert re.match(r"refused, of bash \(process \d+, /", lines[0]), lines
    assert lines[0].endswith(f" > {SERVER}.80")
