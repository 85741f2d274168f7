"""Measure, and write the results to docs/figures: `make bench-report`, `make bench-report ARGS=log`.

It writes a table with the machine and the date for each benchmark, a drawing of the same figures for some, and a table
of the goals, from these and from stored results. This takes about seven minutes; ``--rounds`` sets the number of
rounds. Standard library only.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from run import ROOT, SCRIPTS, prepare

FIGURES = ROOT / "docs" / "figures"
PEERS = ("NetfilterQueue", "nflogr")
NAMES = {"queue": "Verdicts on queued packets", "log": "Logged packets"}
# The default arguments: enough rounds for a median, within some minutes.
ARGUMENTS = {
    "lone": ["--rounds", "7", "--packets", "3000"],
    "queue": ["--rounds", "7", "--packets", "1000", "20000"],
    "log": ["--rounds", "9"],
    "cliffs": ["--rounds", "7"],
    "growth": ["--rounds", "3"],
    "flood": ["--rounds", "1", "--seconds", "10"],
}
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.small { font-size: 12px; fill: #57606a }
.ours { fill: #1a7f64; stroke: #1a7f64 } .peer { fill: #828b98; stroke: #828b98 }
.axis { stroke: #8c959f; stroke-width: 1 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9da7b3 }
  .ours { fill: #3fb996; stroke: #3fb996 } .peer { fill: #7d8794; stroke: #7d8794 }
}
rect { stroke: none } .line { fill: none; stroke-width: 2 }
"""


class Row(NamedTuple):
    """One program in one case: processor time a packet in µs, and the subject's time as a share of it."""

    case: str
    packets: int
    program: str
    subject: str
    ratio: float
    cpu: float


def run(what: str, arguments: list[str]) -> list[dict[str, Any]]:
    """All figures of a benchmark. Its status does not matter for the cliffs: 1 if one is worse than before."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [str(prepare()), str(ROOT / "benchmarks" / SCRIPTS[what]), "--json", file.name]
        subprocess.run([*command, *ARGUMENTS[what], *arguments], check=what != "cliffs")
        figures: list[dict[str, Any]] = json.loads(Path(file.name).read_text())
    return figures


def store(what: str, figures: dict[str, Any]) -> None:
    """Store the figures for the table of goals, and for comparisons by `cliffs.py`."""
    (FIGURES / f"{what}.json").write_text(json.dumps(figures, indent=1) + "\n")


def stored(what: str) -> dict[str, Any]:
    path = FIGURES / f"{what}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def machine() -> str:
    """Processor, kernel, interpreter, date."""
    with open("/proc/cpuinfo") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    processor = models[0] if models else platform.machine()
    script = "import platform as p; print(p.python_implementation(), p.python_version())"
    python = subprocess.run([str(prepare()), "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    today = datetime.date.today()
    kernel = ".".join(platform.release().split(".")[:2])
    return f"{python}, Linux {kernel}, {len(models)} x {processor}, {today:%d %B %Y}"


def table(rows: list[Row], where: str) -> str:
    """Return each subject with the program that it is compared with."""
    lines = [
        "| work | waiting | program | µs | beside | µs | share |",
        "| --- | ---: | --- | ---: | --- | ---: | ---: |",
    ]
    for row in rows:
        if row.program == row.subject:
            ours = row
        else:
            lines.append(
                f"| {row.case} | {row.packets:,} | {row.subject} | {ours.cpu:.2f} | {row.program} | {row.cpu:.2f}"
                f" | {row.ratio:.2f} |"
            )
    return "\n".join([*lines, "", f"Microseconds of processor time a packet, medians. {where}.", ""])


def drawing(rows: list[Row], title: str, where: str) -> str:
    """A bar for each program, of the largest number of waiting packets."""
    most = max(row.packets for row in rows)
    chosen: dict[tuple[str, str], Row] = {}
    for row in sorted((row for row in rows if row.packets == most), key=lambda row: row.program in PEERS):
        chosen.setdefault((row.case, row.program), row)  # measured more than once, beside several
    cases = list(dict.fromkeys(row.case for row in rows))
    bars = sorted(chosen.values(), key=lambda row: cases.index(row.case))
    scale = 330 / max(row.cpu for row in bars)
    parts, y, before = [], 44, ""
    for row in bars:
        if row.case != before:
            before = row.case
            y += 12
            parts.append(f'<text x="0" y="{y + 12}">{escape(row.case)}</text>')
            y += 20
        kind = "peer" if row.program in PEERS else "ours"
        width = row.cpu * scale
        parts.append(f'<text class="small" x="130" y="{y + 12}" text-anchor="end">{escape(row.program)}</text>')
        parts.append(f'<rect class="{kind}" x="140" y="{y}" width="{width:.1f}" height="15" rx="2"/>')
        parts.append(f'<text class="small" x="{146 + width:.1f}" y="{y + 12}">{row.cpu:.2f} µs</text>')
        y += 20
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 560 {y + 30}" role="img" aria-label="{escape(title)}">'
        f"<style>{STYLE}</style>"
        f'<text x="0" y="16">{escape(title)}: processor time a packet, {most:,} waiting</text>'
        f'<text class="small" x="0" y="34">less is better</text>'
    )
    foot = f'<text class="small" x="0" y="{y + 22}">{escape(where)}</text></svg>'
    return "\n".join([head, *parts, foot, ""])


def report_drain(what: str, arguments: list[str]) -> None:
    figures = run(what, arguments)
    fields = Row._fields[:-1]
    rows = [Row(*(row[name] for name in fields), statistics.median(row["cpu"])) for row in figures]
    where = machine()
    (FIGURES / f"{what}.md").write_text(table(rows, where))
    (FIGURES / f"{what}.svg").write_text(drawing(rows, NAMES[what], where))
    most = max(row.packets for row in rows)
    ratios = {
        f"{row.case}: {row.subject} / {row.program}": round(row.ratio, 2)
        for row in rows
        if row.packets == most and row.program != row.subject
    }
    store(what, ratios)


def report_lone(arguments: list[str]) -> None:
    figures = run("lone", arguments)
    lines = [
        "| | program | round trip, µs | processor, µs | beside | share of round trip | of processor time | goals |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | --- |",
    ]
    ratios = {}
    for row in figures:
        goals = "{} and {}".format(*row["goals"]) if row["goals"] else ""
        cells = [
            row["case"],
            row["program"],
            f"{statistics.median(row['trip']):.2f}",
            f"{statistics.median(row['cpu']):.2f}",
            row["peer"],
            f"{row['trip ratio']:.2f}",
            f"{row['cpu ratio']:.2f}",
            goals,
        ]
        lines.append(f"| {' | '.join(cells)} |")
        ratios[f"{row['program']}, {row['case']}"] = [round(row["trip ratio"], 2), round(row["cpu ratio"], 2)]
    lines += ["", f"Medians; shares are medians of the ratios within a round. {machine()}.", ""]
    (FIGURES / "lone.md").write_text("\n".join(lines))
    store("lone", ratios)


def report_flood(arguments: list[str]) -> None:
    figures = run("flood", arguments)
    lines = [
        "| packets | program | thousands with a verdict a second | µs of processor time for each |",
        "| --- | --- | ---: | ---: |",
    ]
    for row in figures:
        if "size" in row:
            what, cpu = f"{row['size']:,} bytes", f"{statistics.median(row['cpu']):.2f}"
        else:
            what, cpu = f"100 bytes, queues: {row['queues']}, processes: {row['processes']}", ""
        lines.append(f"| {what} | {row['program']} | {statistics.median(row['rate']):.1f} | {cpu} |")
    lines += ["", f"The sender takes its share of the machine, too. {machine()}.", ""]
    (FIGURES / "flood.md").write_text("\n".join(lines))


def report_growth(arguments: list[str]) -> None:
    figures, where = run("growth", arguments), machine()
    (FIGURES / "growth.svg").write_text(growth_drawing(figures, where))
    lines = ["| | | program | µs | times the first |", "| --- | ---: | --- | ---: | ---: |"]
    for row in figures:
        cpu = statistics.median(row["cpu"])
        lines.append(f"| {row['series']} | {row['point']} | {row['program']} | {cpu:.2f} | {row['multiple']:.2f} |")
    lines += ["", f"Microseconds of processor time a packet, medians. {where}.", ""]
    (FIGURES / "growth.md").write_text("\n".join(lines))


def growth_drawing(figures: list[dict[str, Any]], where: str) -> str:
    """A small diagram for each series: both axes are logarithmic, so a proportional cost has slope 1."""
    parts, panel, height = [], 0, 150
    for series in dict.fromkeys(row["series"] for row in figures):
        rows = [row for row in figures if row["series"] == series]
        numbers = sorted({int(row["point"]) for row in rows})
        cpus = [statistics.median(row["cpu"]) for row in rows]
        left, top = 10 + 285 * (panel % 2), 76 + (height + 60) * (panel // 2)
        low, high = math.log(min(cpus) / 1.5), math.log(max(*cpus, min(cpus) * 4))
        first, last = math.log(numbers[0]), math.log(numbers[-1])

        def place(number: int, cpu: float) -> tuple[float, float]:
            x = left + 20 + 210 * (math.log(number) - first) / (last - first)  # noqa: B023  # called at once
            return x, top + height - height * (math.log(cpu) - low) / (high - low)  # noqa: B023

        parts.append(f'<text x="{left}" y="{top - 22}">{escape(series)}</text>')
        parts.append(f'<path class="axis" d="M{left} {top}V{top + height}H{left + 250}" fill="none"/>')
        labelled = -math.inf
        for number in numbers:
            x, _ = place(number, 1.0)
            if x < labelled + 25:
                continue  # the two labels would overlap
            labelled = x
            parts.append(
                f'<text class="small" x="{x:.0f}" y="{top + height + 15}" text-anchor="middle">{number:,}</text>'
            )
        for program in dict.fromkeys(row["program"] for row in rows):
            kind = "peer" if program in PEERS else "ours"
            points = sorted(
                (int(row["point"]), statistics.median(row["cpu"])) for row in rows if row["program"] == program
            )
            places = [place(*point) for point in points]
            parts.append(f'<path class="line {kind}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>')
            for (x, y), (_, cpu) in zip(places, points):
                parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
                if kind == "ours":
                    label = f'<text class="small" x="{x:.0f}" y="{y - 7:.0f}" text-anchor="middle">{cpu:.1f}</text>'
                    parts.append(label)
        panel += 1
    bottom = 76 + (height + 60) * ((panel + 1) // 2)
    title = "How the cost of a packet grows"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 580 {bottom + 10}" role="img" aria-label="{title}">'
        f"<style>{STYLE}</style>"
        f'<text x="0" y="16">{title}: processor time in µs; both axes are logarithmic</text>'
        '<text class="small" x="0" y="34">green: nfnet; grey: NetfilterQueue</text>'
    )
    return "\n".join([head, *parts, f'<text class="small" x="0" y="{bottom}">{escape(where)}</text></svg>', ""])


def report_cliffs(arguments: list[str]) -> None:
    """The table of the multiples, and the same for `cliffs.py` to compare with."""
    rows = run("cliffs", arguments)
    lines = [
        "| packets | times the usual packet | at most | the same in C | nfnet's share of C |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        peer = (f"{row['peer multiple']:.2f}", f"{row['share']:.2f}") if "peer" in row else ("", "")
        lines.append(f"| {row['case']} | {row['multiple']:.2f} | {row['goal']} | {peer[0]} | {peer[1]} |")
    lines += ["", f"Processor time, medians of the ratios within a round. {machine()}.", ""]
    (FIGURES / "cliffs.md").write_text("\n".join(lines))
    store("cliffs", {row["case"]: row["multiple"] for row in rows})


# The goals of November 2026: file, key, value before, goal.
GOALS: list[tuple[str, str, str, str, str]] = [
    ("lone", "nfnet, on one core", "a packet alone, one core", "1.68", "1.05"),
    ("lone", "nfnet, on two cores", "a packet alone, two cores", "", "1.05"),
    ("lone", "compat, on one core", "the same with `nfnet.compat`, one core", "", "1.05"),
    ("lone", "compat, on two cores", "the same with `nfnet.compat`, two cores", "", "1.05"),
    ("lone", "asyncio: run, on one core", "`AsyncQueue.run`, one core", "2.5", "1.5"),
    ("lone", "asyncio: run, on two cores", "`AsyncQueue.run`, two cores", "", "1.5"),
    ("lone", "bare asyncio, on one core", "asyncio with a bare socket, one core", "", ""),
    ("lone", "log, asyncio: run, on one core", "`AsyncLog.run`, one core", "", "1.5"),
    ("lone", "log, asyncio: run, on two cores", "`AsyncLog.run`, two cores", "", "1.5"),
    ("queue", "accept: nfnet / NetfilterQueue", "many wait: accept", "0.60", "0.54"),
    (
        "queue",
        "read the payload, accept: nfnet / NetfilterQueue",
        "many wait: read the payload, accept",
        "0.65",
        "0.58",
    ),
    (
        "queue",
        "read the payload, accept or drop in turn: nfnet / NetfilterQueue",
        "many wait: accept and drop in turn",
        "0.72",
        "0.65",
    ),
    ("cliffs", "log messages of 29 to 1,400 bytes", "log messages of many sizes", "6.4", "1.5"),
    ("cliffs", "other attributes at the same length", "other attributes at the same length", "2.2", "3"),
    ("cliffs", "9,000 distinct lengths", "9,000 distinct lengths", "3.4", "3"),
    ("cliffs", "a new mark for each packet", "a new mark for each packet", "3.0", "3"),
    ("cliffs", "payload replaced", "payload replaced", "3.1", "3"),
    ("cliffs", "rewrite(data=)", "`rewrite(data=)`", "5.7", "4"),
    ("cliffs", "one of fifty decided late", "one of fifty decided late", "2.9", "3"),
    ("cliffs", "all held, then accepted", "all held, then accepted", "2.4", "3"),
    ("cliffs", "recorded", "recorded", "4.8", "3"),
    ("cliffs", "flow behind 180 IPv6 headers", "`flow` behind 180 IPv6 headers", "30", "3"),
    (
        "cliffs",
        "16,000 held packets accepted in one step of asyncio",
        "16,000 held packets accepted in one step of asyncio",
        "11",
        "1.5",
    ),
]


def report_goals() -> None:
    """Return the table of goals (before, goal, now) from the stored figures."""
    figures = {what: stored(what) for what in ("lone", "queue", "cliffs")}
    of = {
        "lone": "round trip, and processor time, beside C or bare Python",
        "queue": "processor time beside NetfilterQueue",
        "cliffs": "times the usual packet",
    }
    lines = ["| what | figure | before | goal | now |", "| --- | --- | ---: | ---: | ---: |"]
    for what, key, name, before, goal in GOALS:
        now = figures[what].get(key, "")
        shown = ", ".join(f"{number:.2f}" for number in now) if isinstance(now, list) else str(now)
        lines.append(f"| {name} | {of[what]} | {before} | {goal} | {shown} |")
    (FIGURES / "goals.md").write_text("\n".join([*lines, ""]))


REPORTS: dict[str, Callable[[list[str]], None]] = {
    "lone": report_lone,
    "queue": partial(report_drain, "queue"),
    "log": partial(report_drain, "log"),
    "cliffs": report_cliffs,
    "growth": report_growth,
    "flood": report_flood,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=REPORTS, help="measure this alone")
    options, arguments = parser.parse_known_args()
    FIGURES.mkdir(exist_ok=True)
    for what, report in REPORTS.items():
        if what == options.what or (options.what is None and (what != "log" or has_nflogr())):
            print(f"--- {what}", flush=True)
            report(arguments)
            print(f"written: {FIGURES / what}.*", flush=True)
    report_goals()


def has_nflogr() -> bool:
    """Whether there is something to compare the log with: else the figures from an interpreter that has it stay."""
    there = not subprocess.run(
        [str(prepare()), "-c", "import nflogr"], stderr=subprocess.DEVNULL, check=False
    ).returncode
    if not there:
        print("the log's figures stay as they are: make bench-report ARGS=log with Python 3.13 has nflogr beside it")
    return there


if __name__ == "__main__":
    main()
