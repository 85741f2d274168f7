"""Measures, and writes what came out to docs/figures: `make bench-report`, `make bench-report ARGS=log`.

For each benchmark a table with the machine and the date, and a drawing of the same figures. Standard library only.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import tempfile
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from run import ROOT, SCRIPTS, prepare

FIGURES = ROOT / "docs" / "figures"
PEERS = ("NetfilterQueue", "nflogr")
NAMES = {"queue": "Verdicts on queued packets", "log": "Logged packets"}
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.small { font-size: 12px; fill: #57606a }
.ours { fill: #1a7f64 } .peer { fill: #a5adb8 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9da7b3 } .ours { fill: #3fb996 } .peer { fill: #6b7480 }
}
"""


class Row(NamedTuple):
    """What one program took in one case: processor time a packet in µs, and the subject's as a share of it."""

    case: str
    packets: int
    program: str
    subject: str
    ratio: float
    cpu: float


def measure(what: str, arguments: list[str]) -> list[Row]:
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [str(prepare()), str(ROOT / "benchmarks" / SCRIPTS[what]), "--json", file.name, *arguments]
        subprocess.run(command, check=True)
        rows: list[dict[str, Any]] = json.loads(Path(file.name).read_text())
    fields = Row._fields[:-1]
    return [Row(*(row[name] for name in fields), statistics.median(row["cpu"])) for row in rows]


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
    """Each subject beside what it is compared with."""
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


def report_cliffs(arguments: list[str]) -> None:
    """The table of the multiples, and the same for `cliffs.py` to compare with."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [str(prepare()), str(ROOT / "benchmarks" / SCRIPTS["cliffs"]), "--json", file.name, *arguments]
        subprocess.run(command, check=False)  # 1 if one is worse than before, which is what is to be written
        rows: list[dict[str, Any]] = json.loads(Path(file.name).read_text())
    lines = [
        "| packets | times the usual packet | at most | the same in C | nfnet's share of C |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        peer = (f"{row['peer multiple']:.2f}", f"{row['share']:.2f}") if "peer" in row else ("", "")
        lines.append(f"| {row['case']} | {row['multiple']:.2f} | {row['goal']} | {peer[0]} | {peer[1]} |")
    lines += ["", f"Processor time, medians of the ratios within a round. {machine()}.", ""]
    (FIGURES / "cliffs.md").write_text("\n".join(lines))
    figures = {row["case"]: row["multiple"] for row in rows}
    (FIGURES / "cliffs.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(f"written: {FIGURES / 'cliffs'}.md, .json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=[*NAMES, "cliffs"], help="measure this alone")
    options, arguments = parser.parse_known_args()
    FIGURES.mkdir(exist_ok=True)
    if options.what in (None, "cliffs"):
        report_cliffs(arguments)
    for what, title in NAMES.items():
        if options.what in (None, what):
            rows, where = measure(what, arguments), machine()
            (FIGURES / f"{what}.md").write_text(table(rows, where))
            (FIGURES / f"{what}.svg").write_text(drawing(rows, title, where))
            print(f"written: {FIGURES / what}.md, .svg")


if __name__ == "__main__":
    main()
