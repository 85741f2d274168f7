"""The examples as processes, unchanged, with packets that they are made for."""

from __future__ import annotations

import contextlib
import errno
import http.client
import http.server
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nfnet
from nfnet import rules

from ..test_examples import copied, entrypoint, exec_start
from .conftest import (
    ADDRESS,
    QUIET,
    TIMEOUT,
    UID,
    Net,
    cgroup_root,
    kernel_lacks,
    lacking,
    readable,
    wait_for,
)
from .programs import is_bound, running
from .traffic import Way

EXAMPLES = Path(__file__).parents[2] / "examples"
V4 = socket.AF_INET
TESTED = (
    *("print_and_accept", "packet_printer", "own_socket", "event_loop", "dns_answers", "replace_text", "port_knocker"),
    *("bad_network", "firewall", "print_log", "count_senders"),
)


IPTABLES = shutil.which("iptables-nft")


def words_of_rule(name: str) -> list[str]:
    """Return the rule that an example needs, in words of iptables."""
    (line,) = re.findall(r"^ *iptables (.*)$", (EXAMPLES / name).read_text(), flags=re.MULTILINE)
    return shlex.split(line)


@contextlib.contextmanager
def rule_of(net: Net, name: str) -> Iterator[str]:
    """That rule, put there by iptables if it is installed, on the host of which it is right; gives the host."""
    words = words_of_rule(name)
    host = {"INPUT": "server", "FORWARD": "router"}[words[1]]
    if IPTABLES is not None:
        program = IPTABLES
        net.at(host, lambda: subprocess.run([program, *words], check=True))  # removed with the namespace
        yield host
        return
    settings = [word for word in words if word != "--syn"]
    options = dict(zip(settings[::2], settings[1::2]))
    what: dict[str, Any] = {"hook": options["-I"].lower(), "family": "ip", "protocol": options.get("-p")}
    if "--sport" in options:
        what["source_port"] = int(options["--sport"])
    if options["-j"] == "NFQUEUE":
        rule = rules.queue(int(options["--queue-num"]), netns=net.hosts[host], **what)
    else:
        prefix = options.get("--nflog-prefix", "")
        rule = rules.log(int(options["--nflog-group"]), prefix=prefix, netns=net.hosts[host], **what)
    with rule:
        yield host


@contextlib.contextmanager
def example(net: Net, name: str, *arguments: str) -> Iterator[Callable[..., str]]:
    """An example that has its rule and its queue or group.

    Gives a function that interrupts it, after so many lines, and returns what it printed.
    """
    command = [sys.executable, "-m", "nfnet.compat", str(EXAMPLES / name), *arguments]
    # Without the right to a larger buffer there is a warning, as there would be with the original.
    environment = {**os.environ, "PYTHONWARNINGS": "ignore::RuntimeWarning"}
    with rule_of(net, name) as host, running(net, command, host, env=environment) as process:
        number = {"group": 5} if name.startswith("nflogr/") else {"queue": 1}
        assert wait_for(lambda: is_bound(net, host=host, **number) or process.poll() is not None)

        def finish(*, lines: int = 0, interrupt: bool = True) -> str:
            assert process.stdout is not None
            before = "".join(process.stdout.readline() for _ in range(lines))
            if interrupt:
                process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=TIMEOUT)
            assert errors == ""
            assert process.returncode == 0
            return before + output

        yield finish


def test_all_are_tested() -> None:
    elsewhere = {
        "dns_answers",
        "guard",
        "block_server_name",
        "ask_once",
        "port_knocking",
        "ban",
        "sinkhole",
        "unit_networks",
    }
    assert {path.stem for path in EXAMPLES.rglob("*.py")} == {*TESTED, *elsewhere}


def test_a_service_of_an_ordinary_user_with_one_capability(net: Net) -> None:
    """As docs/running.md has it, and the systemd unit."""
    if UID or shutil.which("setpriv") is None:
        pytest.skip("takes root, and the program setpriv")
    way = Way(net)
    places = [str(EXAMPLES.parent), *(path for path in sys.path if path)]
    environment = {**os.environ, "NOTIFY_SOCKET": "@systemd", "PYTHONPATH": os.pathsep.join(places)}

    def may_run(python: str) -> bool:
        """Return whether another user can run this interpreter and read the imported modules."""
        command = ["setpriv", "--reuid=65534", python, "-c", f"import nfnet; open({str(script)!r})"]
        return not subprocess.call(command, env=environment, stderr=subprocess.DEVNULL, cwd="/")

    script = EXAMPLES / "systemd" / "guard.py"
    python = next(filter(may_run, (sys.executable, "/usr/bin/python3")), None)
    if python is None:
        pytest.skip("another user can run no Python here, or not read these files")
    capability = "-all,+net_admin"
    command = [
        *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", f"--inh-caps={capability}"),
        *(f"--ambient-caps={capability}", f"--bounding-set={capability}", python, str(script), *exec_start()[2:]),
    ]
    # A name like this belongs to a network namespace, as it happens.
    with net.at("server", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as systemd:
        systemd.bind("\0systemd")
        systemd.settimeout(TIMEOUT)
        with running(net, command, "server", env=environment) as process:
            assert systemd.recv(100).startswith(b"READY=1")
            status = Path(f"/proc/{process.pid}/status").read_text()
            assert "Uid:\t65534\t65534\t65534\t65534" in status
            assert f"CapEff:\t{1 << 12:016x}" in status
            way.send(b"a secret", b"passes")
            assert way.received(1) == [b"passes"]
            process.send_signal(signal.SIGTERM)
            assert systemd.recv(100) == b"STOPPING=1"
            assert process.wait(TIMEOUT) == 0
    assert wait_for(lambda: rules.installed(net.hosts["server"]) == [])


@pytest.mark.parametrize(
    ("host", "arguments"), [("server", []), ("router", ["1", "forward"])], ids=["a container", "the machine"]
)
def test_a_container_with_one_capability(net: Net, host: str, arguments: list[str]) -> None:
    """The image's command, as root of a network namespace that forwards packets, or does not."""
    if shutil.which("setpriv") is None:
        pytest.skip("takes the program setpriv")
    _, script, *usual = entrypoint()
    capability = "-all,+net_admin"
    command = [
        *("setpriv", f"--inh-caps={capability}", f"--bounding-set={capability}", sys.executable, str(copied()[script])),
        *(arguments or usual),
    ]
    way = Way(net)
    # Without the right to a larger buffer, as for an ordinary user here, there is a warning.
    environment = {**os.environ, "PYTHONWARNINGS": "ignore::RuntimeWarning"}
    with running(net, command, host, env=environment) as process:
        assert wait_for(lambda: is_bound(net, host=host, queue=1) or process.poll() is not None)
        assert f"CapEff:\t{1 << 12:016x}" in Path(f"/proc/{process.pid}/status").read_text()
        way.send(b"a secret", b"passes")
        assert way.received(1) == [b"passes"]
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=TIMEOUT) == ("", "")
        assert process.returncode == 0
    assert not readable(way.receiver, 0)
    assert wait_for(lambda: rules.installed(net.hosts[host]) == [])


def test_a_service_says_in_one_line_why_it_cannot_start(net: Net) -> None:
    command = [sys.executable, str(EXAMPLES / "systemd" / "guard.py"), *exec_start()[2:]]
    with nfnet.Queue(1, netns=net.hosts["server"]), running(net, command, "server") as process:
        output, errors = process.communicate(timeout=TIMEOUT)
    assert (output, process.returncode) == ("", 1)
    assert errors.startswith("binding queue 1: another socket has it")
    assert errors.count("\n") == 1


def test_our_own_dns_answers(net: Net) -> None:
    """In another namespace, without any program of netfilter's; and nothing is left of it."""
    dns = pytest.importorskip("scapy.layers.dns")
    here = net.hosts["client"]
    netns = f"/proc/{os.getpid()}/fd/{here.fileno()}"
    command = [sys.executable, str(EXAMPLES / "dns_answers.py"), netns, "192.0.2.1", "192.0.2.80"]
    server = net.open_socket("server")
    server.bind((ADDRESS["server", V4], 53))
    client = net.open_socket("client")
    client.connect((ADDRESS["server", V4], 53))

    def ask() -> Any:
        client.send(bytes(dns.DNS(qd=dns.DNSQR(qname="www.example.com"))))
        _, address = server.recvfrom(2000)
        answer = dns.DNSRR(rrname="www.example.com", rdata="192.0.2.1")
        server.sendto(bytes(dns.DNS(qr=1, qd=dns.DNSQR(qname="www.example.com"), an=[answer])), address)
        return dns.DNS(client.recv(2000)).an[0].rdata

    with running(net, command, "server", env={**os.environ, "PATH": "/nowhere"}) as process:
        assert wait_for(lambda: is_bound(net, host="client", queue=1) or process.poll() is not None)
        assert ask() == "192.0.2.80"
        assert len(rules.installed(here)) == 1
        process.send_signal(signal.SIGTERM)
        process.wait(TIMEOUT)
    assert process.returncode == -signal.SIGTERM
    rules.clean(here)  # before Linux 5.12 the kernel leaves it, later there is nothing to clean: see test_rules
    assert wait_for(lambda: rules.installed(here) == [])
    assert wait_for(lambda: not is_bound(net, host="client", queue=1))
    assert ask() == "192.0.2.1"


def first_example(page: str, tmp_path: Path) -> list[str]:
    """Return the command that runs it, with the interpreter NFNET_PYTHON if set: one with only nfnet, for instance."""
    script = tmp_path / "script.py"
    script.write_text((EXAMPLES.parent / page).read_text().split("```python\n", 1)[1].split("```", 1)[0])
    return [os.environ.get("NFNET_PYTHON", sys.executable), "-X", "dev", str(script)]


def test_the_first_example_of_the_readme(net: Net, tmp_path: Path) -> None:
    sender, receiver = net.open_socket("client"), net.receiver(port=7777)
    destination = (ADDRESS["server", V4], 7777)
    command = first_example("README.md", tmp_path)
    with running(
        net, command, "server", env={**os.environ, "PATH": "/nowhere", "PYTHONUNBUFFERED": "1"}, cwd=tmp_path
    ) as process:
        assert wait_for(lambda: is_bound(net, host="server", queue=1) or process.poll() is not None)
        for data in (b"hello", b"the secret", b"end"):
            sender.sendto(data, destination)
        assert [receiver.recv(100) for _ in range(2)] == [b"hello", b"end"]
        assert process.stdout is not None
        assert [process.stdout.readline().split()[-1] for _ in range(3)] == ["accept", "drop", "accept"]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=TIMEOUT)
    assert errors.endswith("KeyboardInterrupt\n")
    assert wait_for(lambda: rules.installed(net.hosts["server"]) == [])


def test_the_example_of_each_kind_of_verdict(net: Net, tmp_path: Path) -> None:
    command = first_example("docs/packets.md", tmp_path)
    sender, receiver = net.open_socket("client"), net.receiver(port=7777)
    destination = (ADDRESS["server", V4], 7777)
    with running(net, command, "client", env={**os.environ, "PATH": "/nowhere"}, cwd=tmp_path) as process:
        assert wait_for(lambda: is_bound(net, host="client", queue=1) or process.poll() is not None)
        for data in (b"a secret", b"the cat", b"mark me", b"plain"):
            sender.sendto(data, destination)
        assert [receiver.recv(100) for _ in range(3)] == [b"the elephant", b"mark me", b"plain"]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=TIMEOUT)
    assert errors.endswith("KeyboardInterrupt\n")
    assert wait_for(lambda: rules.installed(net.hosts["client"]) == [])
    assert not readable(receiver, 0)


@pytest.mark.parametrize("name", ["print_and_accept", "packet_printer", "own_socket"])
def test_printing(net: Net, name: str) -> None:
    way = Way(net)
    with example(net, f"netfilterqueue/{name}.py") as finish:
        way.send(b"one", b"three")
        assert way.received(2) == [b"one", b"three"]
        assert finish().split("\n")[:2] == ["UDP packet, 31 bytes", "UDP packet, 33 bytes"]


def test_event_loop(net: Net) -> None:
    way = Way(net)
    with example(net, "netfilterqueue/event_loop.py") as finish:
        began = time.monotonic()
        way.send(b"one", b"two")
        assert way.received(2) == [b"one", b"two"]
        assert time.monotonic() - began >= 0.1
        assert finish() == ""


def connects(net: Net, port: int, source: str = "client", family: int = V4, *, timeout: float = TIMEOUT) -> bool:
    """Whether a TCP connection to the server can be made; one that is dropped is known by the silence."""
    with net.open_socket(source, family, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect((ADDRESS["server", family], port))
        except (TimeoutError, ConnectionRefusedError):
            return False
        return True


def reaches(net: Net, host: str, address: str, timeout: float = TIMEOUT) -> bool:
    """Whether a host can connect to port 80 of an address."""
    with net.open_socket(host, socket.AF_INET6 if ":" in address else V4, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect((address, 80))
        except TimeoutError:
            return False
        return True


@contextlib.contextmanager
def our_own(net: Net, name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """An example that logs to group 5, on the server; nothing is left of it."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore::RuntimeWarning"}
    with running(net, command, "server", env=environment) as process:
        assert wait_for(lambda: is_bound(net, host="server", group=5) or process.poll() is not None)
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == -signal.SIGTERM
    assert wait_for(lambda: rules.installed(net.hosts["server"]) == [])


@pytest.mark.parametrize("family", [V4, socket.AF_INET6])
def test_port_knocking(net: Net, family: int) -> None:
    with net.open_socket("server", socket.AF_INET6, socket.SOCK_STREAM) as door:
        door.bind(("::", 22))
        door.listen()
        with our_own(net, "port_knocking.py", "22", "7000", "9000", "8000") as process:
            assert process.stdout is not None
            assert not connects(net, 22, family=family, timeout=QUIET)
            for order in ((8000, 9000, 7000), (7000, 9000, 8000)):
                for port in order:
                    connects(net, port, family=family)
                if order[0] == 8000:
                    assert not connects(net, 22, family=family, timeout=QUIET)
            address = ADDRESS["client", family]
            assert process.stdout.readline() == f"port 22 is open to {address}\n"
            assert connects(net, 22, family=family)
            assert not connects(net, 22, "router", family, timeout=QUIET)


def test_ban(net: Net) -> None:
    """The client guesses passwords of an FTP server; the router does not."""
    with net.open_socket("server", kind=socket.SOCK_STREAM) as server:
        server.bind(("0.0.0.0", 21))
        server.listen()

        def fail(host: str) -> bytes:
            with net.open_socket(host, kind=socket.SOCK_STREAM) as sock:
                sock.settimeout(TIMEOUT)
                sock.connect((ADDRESS["server", V4], 21))
                with server.accept()[0] as connection:
                    connection.send(b"530 Login incorrect\r\n")
                    return sock.recv(100)

        with our_own(net, "ban.py", "21", "530 ") as process:
            for _ in range(4):
                for host in ("client", "router"):
                    assert fail(host).startswith(b"530 ")
            assert connects(net, 21)
            server.accept()[0].close()
            fail("client")
            assert process.stdout is not None
            assert process.stdout.readline() == "10.81.1.1 is banned for ten minutes\n"
            assert not connects(net, 21, timeout=QUIET)
            assert connects(net, 21, "router")


RESOLVE = """\
import socket, sys
for name in sys.argv[1:]:
    try:
        print(*sorted({address[0] for *_, address in socket.getaddrinfo(name, None)}))
    except socket.gaierror as error:
        print(error.errno == socket.EAI_NONAME)
"""


@pytest.mark.parametrize(("hook", "host"), [("output", "client"), ("forward", "router")])
def test_sinkhole(net: Net, tmp_path: Path, hook: str, host: str) -> None:
    """The C library's resolver sends requests; the test's name server answers that no name exists."""
    server = net.open_socket("server")
    server.bind((ADDRESS["server", V4], 53))
    asked = []

    def serve() -> None:
        while (got := server.recvfrom(1000))[0] != b"end":
            query, client = got
            asked.append(query)
            server.sendto(query[:2] + b"\x81\x83" + query[4:], client)

    configuration = tmp_path / "resolv.conf"
    configuration.write_text(f"nameserver {ADDRESS['server', V4]}\noptions attempts:1 timeout:30\n")
    names = ["ads.example", "www.Ads.example", "bads.example", "ads.example.net"]
    resolve = shlex.join([sys.executable, "-S", "-E", "-c", RESOLVE, *names])
    script = f"mount --bind {shlex.quote(str(configuration))} /etc/resolv.conf && exec {resolve}"
    command = [sys.executable, str(EXAMPLES / "sinkhole.py"), hook, "192.0.2.99", "ads.example", "other.example"]
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with running(net, command, host) as process:
            assert wait_for(lambda: is_bound(net, host=host, queue=1) or process.poll() is not None)
            done = net.at(
                "client",
                lambda: subprocess.run(
                    ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=TIMEOUT
                ),
            )
            assert (done.stdout.split("\n"), done.stderr) == (["192.0.2.99", "192.0.2.99", "True", "True", ""], "")
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=TIMEOUT)
    finally:
        net.open_socket("router").sendto(b"end", (ADDRESS["server", V4], 53))
        thread.join(TIMEOUT)
    assert errors.endswith("KeyboardInterrupt\n")
    seen = {line.split(" ", 1)[1].partition(" > ")[2] for line in output.splitlines()}
    assert seen == {f"{ADDRESS['server', V4]}.53 '.ads.example'", f"{ADDRESS['server', V4]}.53 '.www.ads.example'"}
    assert not [query for query in asked if b"\3ads\7example\0" in query.lower()], "they never left"


IN_A_UNIT = """\
import os, socket, sys
with open(sys.argv[1], "w") as file:
    file.write(str(os.getpid()))
for address in sys.argv[2:]:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(120)
        print(address, os.strerror(sock.connect_ex((address, 80))))
with socket.create_server(("", 80)) as door:
    print("serves", flush=True)
    while True:
        door.accept()
"""


def test_networks_of_a_unit(net: Net, group: str) -> None:
    """Of a program in a control group, and of another one; the server is in an allowed network, the router is not."""
    if lacking(rules.drop(hook="output", cgroup=group, netns=net.hosts["client"])):
        kernel_lacks("nft's socket expression for control groups", option="CONFIG_NFT_SOCKET")
    allowed = ["10.81.2.0/24", "192.0.2.0/24", "fd81:2::/64"]
    addresses = [ADDRESS[host, family] for host in ("server", "router") for family in (V4, socket.AF_INET6)]
    command = [sys.executable, str(EXAMPLES / "unit_networks.py"), group, *allowed]
    inside = [sys.executable, "-c", IN_A_UNIT, f"{cgroup_root()}/{group}/cgroup.procs", *addresses]
    with contextlib.ExitStack() as stack:
        for host in ("server", "router"):
            door = net.open_socket(host, socket.AF_INET6, socket.SOCK_STREAM)
            door.bind(("::", 80))
            door.listen()
        program = stack.enter_context(running(net, command, "client"))
        assert program.stdout is not None
        assert program.stdout.readline() == f"{group} may use 10.81.2.0/24, 192.0.2.0/24, fd81:2::/64\n"
        unit = stack.enter_context(running(net, inside, "client"))
        assert unit.stdout is not None
        assert [unit.stdout.readline().split(" ", 1) for _ in addresses] == [
            [address, f"{os.strerror(0 if 'server' in place else errno.ECONNREFUSED)}\n"]
            for place, address in zip(["server", "server", "router", "router"], addresses)
        ]
        assert unit.stdout.readline() == "serves\n"
        assert all(reaches(net, "client", address) for address in addresses), "which is another program"
        assert reaches(net, "server", ADDRESS["client", V4])
        assert not reaches(net, "router", ADDRESS["client", V4], QUIET)
        program.send_signal(signal.SIGTERM)
        assert program.communicate(timeout=TIMEOUT) == ("", "")
        assert reaches(net, "router", ADDRESS["client", V4])
    assert wait_for(lambda: rules.installed(net.hosts["client"]) == [])


def test_dns_answers(net: Net) -> None:
    dns = pytest.importorskip("scapy.layers.dns")
    server = net.open_socket("server")
    server.bind((ADDRESS["server", V4], 53))
    client = net.open_socket("client")
    client.connect((ADDRESS["server", V4], 53))

    def ask(name: str) -> Any:
        client.send(bytes(dns.DNS(qd=dns.DNSQR(qname=name))))
        _, address = server.recvfrom(2000)
        answers = [dns.DNSRR(rrname=name, rdata="192.0.2.1"), dns.DNSRR(rrname="other.example", rdata="192.0.2.2")]
        server.sendto(bytes(dns.DNS(qr=1, qd=dns.DNSQR(qname=name), an=answers)), address)
        reply = dns.DNS(client.recv(2000))
        return [reply.an[index].rdata for index in range(reply.ancount)]

    with example(net, "netfilterqueue/dns_answers.py", "www.example.com=192.0.2.80") as finish:
        assert ask("www.example.com") == ["192.0.2.80", "192.0.2.2"]
        assert ask("else.example.com") == ["192.0.2.1", "192.0.2.2"]
        assert finish() == "www.example.com is 192.0.2.1 and shall be 192.0.2.80\n"


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"the cat is a good cat" * 20
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None: ...


def test_replace_text(net: Net) -> None:
    pytest.importorskip("scapy.layers.inet")
    server = net.at("server", lambda: http.server.HTTPServer(("0.0.0.0", 80), Page))
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    try:
        with example(net, "netfilterqueue/replace_text.py", "cat", "dog") as finish:
            page = http.client.HTTPConnection(ADDRESS["server", V4], 80, timeout=TIMEOUT)
            net.at("client", page.connect)
            page.request("GET", "/")
            assert page.getresponse().read() == b"the dog is a good dog" * 20
            page.close()
            finish()
    finally:
        thread.join(TIMEOUT)
        server.server_close()


def test_port_knocker(net: Net) -> None:
    address = ADDRESS["server", V4]
    door = net.open_socket("server", kind=socket.SOCK_STREAM)
    door.bind(("0.0.0.0", 2222))
    door.listen()

    def knock(port: int) -> socket.socket:
        sock = net.open_socket("client", kind=socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.connect_ex((address, port))
        return sock

    with example(net, "netfilterqueue/port_knocker.py", "2222", "7001", "7002", "7003") as finish:
        early = knock(2222)
        assert not readable(door, QUIET)
        early.close()
        for port in (7001, 7002, 7003):
            knock(port).close()
        welcome = knock(2222)
        # Packets after the SYN also pass the queue: an established connection shows that they were accepted.
        assert readable(door, TIMEOUT)
        welcome.close()
        lines = finish().splitlines()
    assert lines[0] == "10.81.1.1 is kept out"
    assert [line for line in lines if "knocks" in line] == [
        f"10.81.1.1 knocks at {port}" for port in (7001, 7002, 7003)
    ]
    assert "10.81.1.1 comes in" in lines


def test_bad_network(net: Net) -> None:
    way = Way(net)
    with example(net, "netfilterqueue/bad_network.py", "100", "0") as finish:
        began = time.monotonic()
        way.send(b"one", b"two", b"three")
        assert way.received(3) == [b"one", b"two", b"three"], "late, and in order"
        assert time.monotonic() - began >= 0.1
        finish()
    with example(net, "netfilterqueue/bad_network.py", "0", "50") as finish:
        way.send(*[b"many"] * 200, *[b"end"] * 64)  # of which not all are lost
        got = 0
        while way.receiver.recv(100) == b"many":
            got += 1
        assert 50 < got < 150
        finish()


def test_firewall(net: Net) -> None:
    way = Way(net)
    dns = net.open_socket("server")
    dns.bind((ADDRESS["server", V4], 53))
    other = net.open_socket("server")
    other.bind(("0.0.0.0", 9))
    rule_file = str(EXAMPLES / "netfilterqueue" / "firewall.rules")
    with example(net, "netfilterqueue/firewall.py", rule_file) as finish:
        way.sender.sendto(b"to somewhere else", ("10.81.2.7", 53))
        way.sender.sendto(b"to the server", (ADDRESS["server", V4], 53))
        way.sender.sendto(b"no rule fits", (ADDRESS["server", V4], 9))
        assert dns.recv(100) == b"to the server"
        assert other.recv(100) == b"no rule fits"
        assert finish() == "drop udp 10.81.1.1 10.81.2.7 53\naccept udp 10.81.1.1 10.81.2.2 53\n"


def test_print_log(net: Net) -> None:
    door = net.open_socket("server", kind=socket.SOCK_STREAM)
    door.bind(("0.0.0.0", 7000))
    door.listen()
    with example(net, "nflogr/print_log.py", "5") as finish:
        with net.open_socket("client", kind=socket.SOCK_STREAM) as sock:
            sock.connect((ADDRESS["server", V4], 7000))
            assert finish(lines=1).splitlines()[0] == "new: to-router - 60 bytes"


def test_count_senders(net: Net) -> None:
    way = Way(net)
    with example(net, "nflogr/count_senders.py", "5", "25") as finish:
        way.send(*[b"x"] * 25)
        assert finish(interrupt=False) == "25 10.81.1.1\n"
