"""Make a page of the results of live tests on several kernels: docs/kernels/*.json to docs/kernels.md.

    python -m tests.live.matrix

`pytest tests/live --features FILE` writes such a JSON file; see conftest.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parent.parent.parent / "docs"
RUNS = DOCS / "kernels"
PAGE = DOCS / "kernels.md"

WORKS = "works"

# The features with which tests can be marked (pytest.mark.feature), in the order of the page.
FEATURES: dict[str, list[str]] = {
    "Rules that queue": [
        "queue: nft, family ip",
        "queue: nft, family ip6",
        "queue: nft, family inet",
        "queue: xt_NFQUEUE",
        "fan-out by addresses: nft",
        "fan-out by addresses: xt_NFQUEUE",
        "fan-out by CPU: nft",
        "fan-out by CPU: xt_NFQUEUE",
        "fan-out by flow: nft",
        "bypass",
    ],
    "Queues": [
        "accept, drop, repeat, requeue, stop",
        "payload set by a verdict",
        "mark set by a verdict",
        "fail_open",
        "gso",
        "uid_gid",
        "secctx: the flag",
        "timestamps",
        "cgroup",
        "priority",
        "priority set by a verdict",
        "conntrack",
        "ct_mark",
        "ct_labels",
        'undecided="accept" on closing',
    ],
    "Queues in the bridge family (nft)": [
        "queue in a bridge: prerouting",
        "queue in a bridge: input",
        "queue in a bridge: forward",
        "queue in a bridge: output",
        "queue in a bridge: postrouting",
        "queue in a bridge: vlan, l2header",
        "queue in a bridge: vlan set by a verdict",
        "queue in a bridge: l2header set by a verdict",
    ],
    "Logs": [
        "log: nft, families ip, ip6",
        "log: nft, family inet",
        "log: xt_NFLOG",
        "log: ingress, family netdev",
        "log: ingress, family inet",
        "log in a bridge: prerouting",
        "log in a bridge: input",
        "log in a bridge: forward",
        "log in a bridge: output",
        "log in a bridge: postrouting",
        "log in a bridge: vlan, l2header",
        "log: sequence",
        "log: global_sequence",
        "log: conntrack",
        "log: timestamps by default",
    ],
    "Connections, answers, processes": [
        "verdicts on connections: rules.queue",
        "verdicts on connections: chains of nft",
        "verdicts on connections: chains of iptables",
        "first=N",
        "answers",
        "resets",
        "processes",
        "processes behind translated addresses",
    ],
    "Criteria and actions of rules": [
        "criteria in all hooks",
        "cgroup in a rule",
        "reject: prerouting",
        "reject: input, forward, output",
        "sets that change",
        "sets: intervals",
        "sets: time-outs",
        "sets: counters",
    ],
    "Other features": [
        "state (connection tracking)",
        "rules removed with a killed process",
        "messages of the kernel in errors",
        "nlmon",
    ],
}


class Run(NamedTuple):
    """The features of a kernel."""

    version: tuple[int, ...]
    kernel: str
    """Its version, for the page."""
    features: dict[str, str]
    """By feature: `WORKS`, or why it does not work."""


def names() -> list[str]:
    return [name for group in FEATURES.values() for name in group]


def load(path: Path) -> Run:
    data = json.loads(path.read_text())
    return Run(tuple(map(int, path.stem.split("."))), data["kernel"], data["features"])


def store(path: Path, kernel: str, features: dict[str, str]) -> None:
    """Store the results in the order of the page, so that two runs with the same results write the same file.

    Results of earlier runs on the same kernel are kept, unless this run has a result for the feature.
    """
    if path.exists() and (earlier := load(path)).kernel == kernel:
        features = {**earlier.features, **features}
    ordered = {name: features[name] for name in names() if name in features}
    path.write_text(json.dumps({"kernel": kernel, "features": ordered}, indent=2, ensure_ascii=False) + "\n")


HEAD = """\
# Which kernel can do what

These tables are the results of the tests in `tests/live` on these kernels. Those marked Debian were built by Debian;
the other one was built with fewer options, for small virtual machines. If a kernel lacks a feature that a queue, log or
rule needs, opening or installing it raises `NotSupportedError`; attributes that a kernel lacks are None or 0.
`nfnet doctor` reports the features of the running kernel.

"""

FOOT = """\
## How to repeat it

```sh
make test-vm KERNEL=6.1 VMRUN="vmrun --cpus 2" RECORD=1
```

This writes docs/kernels/6.1.json and this page. VMRUN is a program that boots a kernel and runs a command under it:
see [contributing](contributing.md). The fan-out by CPU needs two CPUs. For the running kernel, as root:

```sh
.venv/bin/python -m pytest tests/live --features docs/kernels/6.18.json
.venv/bin/python -m tests.live.matrix
```

`@pytest.mark.feature("...")` names the feature of a test. "yes" means that all tests of the feature passed, "no" that
a test was skipped because the kernel lacks the feature, and "not tried" that the tests are newer than the run. Before a
test is skipped, it checks that the kernel really lacks the feature: the test fails if the option is in the kernel's
configuration (where this can be read), or if the kernel is new enough to have the feature.
"""


def page(runs: list[Run]) -> str:
    """Return the page as Markdown."""
    runs = sorted(runs)
    reasons: dict[str, int] = {}  # in the order in which they appear, with the number of their note

    def cell(result: str | None) -> str:
        if result is None or result == WORKS:
            return "yes" if result else "not tried"
        return f"no ({reasons.setdefault(result, len(reasons) + 1)})"

    parts = [HEAD]
    for title, features in FEATURES.items():
        rows = [["", *(run.kernel for run in runs)], ["---"] * (len(runs) + 1)]
        rows += [[name, *(cell(run.features.get(name)) for run in runs)] for name in features]
        parts.append(f"## {title}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows) + "\n")
    parts.append("## What is missing\n\n" + "".join(f"{number}. {text}\n" for text, number in reasons.items()) + "\n")
    return "".join([*parts, FOOT])


def main() -> None:
    PAGE.write_text(page([load(path) for path in RUNS.glob("*.json")]))


if __name__ == "__main__":
    main()
