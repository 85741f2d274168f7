"""Configurations of ulogd2, converted to those of the collector."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from nfnet import ArgumentError, cli, collect
from nfnet.cli.command_line import endpoint
from nfnet.collect import _ulogd
from nfnet.collect._settings import read_settings

DEBIAN = Path("/etc/ulogd.conf")


def translated(tmp_path: Path, text: str) -> tuple[str, dict[str, Any]]:
    """Return the configuration, and its contents: groups, and outputs with their groups."""
    source, target = tmp_path / "ulogd.conf", tmp_path / "collect.toml"
    source.write_text(text)
    toml = _ulogd.translate(source)
    target.write_text(toml)
    found = read_settings(target, endpoint=endpoint)
    numbers = tuple(group.number for group in found.groups)
    outputs = {f"{each.kind.scheme}:{each.target}": each.groups or numbers for each in found.outputs}
    return toml, {"groups": {group.number: dict(group.labels) for group in found.groups}, "outputs": outputs}


ALL = """\
[global]
logfile="syslog"
plugin="/usr/lib/x86_64-linux-gnu/ulogd/ulogd_inppkt_NFLOG.so"
stack=log1:NFLOG,base1:BASE,ifi1:IFINDEX,ip2str1:IP2STR,print1:PRINTPKT,emu1:LOGEMU
stack=log2:NFLOG,base1:BASE,json1:JSON
; a stack by which both groups are in one file
stack=log2:NFLOG,base1:BASE,ifi1:IFINDEX,ip2str1:IP2STR,print1:PRINTPKT,emu1:LOGEMU
stack=log2:NFLOG,base1:BASE,pcap1:PCAP
stack=log2:NFLOG,sqlite3_pkt:SQLITE3
stack=log1:NFLOG,base1:BASE,gp1:GPRINT
[log1]
group=0
[log2]
group=7 # another one
numeric_label=1
netlink_socket_buffer_size=1085440
[emu1]
file="/var/log/ulog/syslogemu.log"
sync=1
[json1]
file="/var/log/my ulogd.json"
boolean_label=1
device="My \\ firewall"
[sqlite3_pkt]
table="ulog_pkt"
db="/var/log/ulog/ulogd.sqlite3db"
"""


def test_what_has_a_counterpart(tmp_path: Path) -> None:
    toml, found = translated(tmp_path, ALL)
    assert found == {
        "groups": {0: {}, 7: {"verdict": "accept", "device": "My \\ firewall"}},
        "outputs": {
            "text:/var/log/ulog/syslogemu.log": (0, 7),
            "jsonl:/var/log/my ulogd.json": (7,),
            "pcapng:/var/log/ulogd.pcapng": (7,),
            "sqlite:/var/log/ulog/ulogd.sqlite3db": (7,),
            "jsonl:/var/log/ulogd_gprint.log": (0,),
        },
    }
    assert "# rcvbuf = 1085440" in toml


@pytest.mark.parametrize(
    ("stack", "remark"),
    [
        ("ct1:NFCT,ip2str1:IP2STR,print1:PRINTFLOW,emu1:LOGEMU", "connections and counters (NFCT) are not collected"),
        ("acct1:NFACCT,graphite1:GRAPHITE", "connections and counters (NFACCT) are not collected"),
        ("ulog1:ULOG,base1:BASE,emu1:LOGEMU", "the kernel has no ULOG any more"),
        ("nuauth1:UNIXSOCK,base1:BASE,emu1:LOGEMU", "UNIXSOCK is no source"),
        ("log1:NFLOG,base1:BASE,xml1:XML", "there is no output for XML"),
        ("log1:NFLOG,base1:BASE,mysql1:MYSQL", "there is no output for MYSQL"),
        ("log1:NFLOG,mark1:MARK,emu1:LOGEMU", "MARK lets only mark 5 pass"),
        ("log1:NFLOG,base1:BASE,pwsniff1:PWSNIFF,emu1:LOGEMU", "there is no PWSNIFF"),
        ("log1:NFLOG,base1:BASE,json1:JSON", "mode=udp, to 192.0.2.10"),
        ("log1:NFLOG", "the stack has no output"),
        ("bad:NFLOG,base1:BASE,emu1:LOGEMU", "group 'x' of [bad] is no log group"),
    ],
)
def test_what_has_none_is_a_comment(stack: str, remark: str, tmp_path: Path) -> None:
    toml = _ulogd.translate(_written(tmp_path, stack))
    comments = [line for line in toml.splitlines() if line.startswith("#")]
    assert any(remark in line for line in comments), toml
    if not stack.endswith("emu1:LOGEMU") or "[[output]]" not in toml:
        assert "[[output]]" not in toml
        assert any("no stack of this file leads from NFLOG" in line for line in comments)


def _written(tmp_path: Path, stack: str) -> Path:
    path = tmp_path / "ulogd.conf"
    path.write_text(
        f"[global]\nstack={stack}\n[mark1]\nmark = 5\n[json1]\nmode=udp\nhost=192.0.2.10\n"
        "[bad]\ngroup=x\n[log1]\ngroup=1\n"
    )
    return path


@pytest.mark.parametrize(
    ("stack", "section", "scheme", "part"),
    [
        (
            "pgsql1:PGSQL",
            'db="nulog"\nhost="db.example"\nuser="nu pik"\npass="p@ss"\n',
            "postgresql",
            "db.example/nulog",
        ),
        ("pgsql1:PGSQL", 'connstring="host=localhost port=4321 dbname=nulog user=x"\n', "postgresql", "4321/nulog"),
        ("sys1:SYSLOG", "facility=LOG_LOCAL2\nlevel=LOG_INFO\n", "syslog", "/dev/log"),
    ],
)
def test_outputs_that_may_be_there(stack: str, section: str, scheme: str, part: str, tmp_path: Path) -> None:
    """Unsupported parts become comments; others become targets that the outputs accept."""
    name = stack.partition(":")[0]
    toml, found = translated(tmp_path, f"[global]\nstack=log1:NFLOG,base1:BASE,{stack}\n[{name}]\n{section}")
    if scheme in collect.known():
        (output,) = found["outputs"]
        assert output.startswith(f"{scheme}:")
        assert part in output
    else:
        assert f"there is no output {scheme} here" in toml


def test_debians_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not DEBIAN.exists():
        pytest.skip("ulogd2 is not installed")
    config = tmp_path / "collect.toml"
    assert cli.main(["collect", "--import-ulogd", str(DEBIAN)]) == 0
    config.write_text(capsys.readouterr().out)
    assert cli.main(["collect", "--config", str(config), "--check"]) == 0
    assert capsys.readouterr().out == "groups 0 to text:/var/log/ulog/syslogemu.log\n"


def test_every_stack_of_debians_example(tmp_path: Path) -> None:
    """Also those that are commented out: each becomes an output or a comment."""
    if not DEBIAN.exists():
        pytest.skip("ulogd2 is not installed")
    text = DEBIAN.read_text().replace("#stack=", "stack=")
    toml, found = translated(tmp_path, text)
    assert set(found["groups"]) == {0, 1} | ({2} if "syslog" in collect.known() else set())
    for line in text.splitlines():
        if line.startswith("stack=") and not any(
            word in line for word in ("LOGEMU", "GPRINT", "PCAP", "SQLITE3", "JSON")
        ):
            name = line.rpartition(":")[2]
            assert name in toml or name in ("SYSLOG", "PGSQL"), line


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "there is no section [global]"),
        ("[log1]\ngroup=1\n", "there is no section [global]"),
        ("what is this\n", ":1: 'what is this' is no [section] and no name=value"),
        ("group=1\n", ":1: 'group=1' is before the first [section]"),
        ("[global]\nstack=log1,emu1\n", ":2: 'log1,emu1' is no stack"),
    ],
)
def test_what_is_no_configuration_of_ulogd2(text: str, error: str, tmp_path: Path) -> None:
    path = tmp_path / "ulogd.conf"
    path.write_text(text)
    with pytest.raises(ArgumentError) as caught:
        _ulogd.translate(path)
    assert error in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_nothing_in_a_value_ends_its_string(tmp_path: Path) -> None:
    _, found = translated(
        tmp_path, '[global]\nstack=l:NFLOG,e:LOGEMU\n[e]\nfile="/a\\b\x7f\x1b\té[x]\'= #".log\n[l]\ngroup=3\n'
    )
    assert list(found["outputs"]) == ["text:/a\\b\x7f\x1b\té[x]'= #"]


def test_the_page_shows_what_is_printed(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "ulogd2.md").read_text()
    (before,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    (after,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "ulogd.conf"
    path.write_text(before)
    assert _ulogd.translate(path).replace(str(path), "/etc/ulogd.conf") == after
