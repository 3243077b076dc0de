"""Measurement of the benchmarks: sides in separate processes, their ratio, and the files that keep it.

A figure is a ratio of two sides that do the same work, with a target (`reach`). Each side runs in a process of its own,
so its time and its peak memory are its own. The sides take turns, A B A B, and their medians are compared. Every figure
is kept in `results.json`, merged by name, so one benchmark can be run again alone:

    {"name": "learner 50m, 150 + 160 x 6: time", "ratio": 4.6, "spread": [4.5, 4.6, 4.8], "reach": ">= 4", "met": true,
     "command": "python -m benchmarks.learner_vs_trl", "machine": "...", "date": "2026-11-24"}

    python -m benchmarks.measuring          # the kept figures as a Markdown table

The ratio is the ratio of the medians. Its spread is the least, the median and the greatest ratio of single turns.
`details.json` has, under the same names, what the ratio was made of and which settings of a peer were tried.
Invariant: a benchmark run with `--tiny` keeps nothing unless a file is named (`--results`).
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import operator
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results.json"
_PACKAGES = ("torch", "transformers", "peft", "trl", "vllm")
_BOUNDS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}

Report = dict[str, Any]
"""What one side reports of its run: "seconds", "peak_mib" and whatever else a benchmark compares."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured ratio."""

    name: str
    ratio: float
    reach: str
    """The bound, such as ">= 4" or "<= 0.5"; "" of a ratio without a target."""
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    repeats: Sequence[float] = ()
    """The ratio of each turn; one turn alone has no spread."""

    @property
    def spread(self) -> list[float] | None:
        """The least, the median and the greatest of several repeats."""
        if len(self.repeats) < 2:
            return None
        return [round(f(self.repeats), 4) for f in (min, statistics.median, max)]

    @property
    def row(self) -> dict[str, Any]:
        """What is kept of it, but for where and when."""
        spread = {"spread": self.spread} if self.spread else {}
        return {"name": self.name, "ratio": round(self.ratio, 4), **spread, "reach": self.reach, "met": self.met}

    @property
    def met(self) -> bool | None:
        """Whether the ratio is within its bound; None without one."""
        if not self.reach:
            return None
        sign, _, bound = self.reach.partition(" ")
        return _BOUNDS[sign](self.ratio, float(bound))


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The flags that every benchmark has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--num_threads", type=int, default=1, help="CPU threads of each side")
    made.add_argument("--repeats", type=int, default=3, help="how often the sides take turns")
    made.add_argument("--tiny", action="store_true", help="small sizes, only to show that the benchmark works")
    made.add_argument("--results", type=Path, help=f"file for the figures; {RESULTS.name} beside the benchmarks")
    made.add_argument("--side", help=argparse.SUPPRESS)
    return made


def run_side(module: str, side: str, flags: Sequence[str], *, num_threads: int) -> Report:
    """Run one side of a benchmark in its own process; its report is the last line that it prints."""
    command = [sys.executable, "-m", module, *flags, "--num_threads", str(num_threads), "--side", side]
    done = subprocess.run(command, cwd=ROOT, env=environment(num_threads), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed with status {done.returncode}:\n{done.stdout}")
    report: Report = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {side}: {_shown(report)}", file=sys.stderr, flush=True)
    return report


def take_turns(
    module: str, sides: Mapping[str, Sequence[str]], *, num_threads: int, repeats: int
) -> dict[str, list[Report]]:
    """Run the sides A B A B, each with its flags."""
    reports: dict[str, list[Report]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, flags in sides.items():
            reports[side].append(run_side(module, side, flags, num_threads=num_threads))
    return reports


def median(reports: Sequence[Report], name: str) -> float:
    """The median over a side's runs."""
    return statistics.median(report[name] for report in reports)


def spread(reports: Sequence[Report], name: str) -> list[float]:
    """The least, the median and the greatest over a side's runs."""
    values = [report[name] for report in reports]
    return [min(values), statistics.median(values), max(values)]


def by_turn(over: Sequence[Report], under: Sequence[Report], name: str) -> list[float]:
    """The ratio of two sides in each turn."""
    return [a[name] / b[name] for a, b in zip(over, under, strict=True)]


def report(values: Mapping[str, Any]) -> None:
    """Print a side's report at its end, for `run_side` to read."""
    print(json.dumps(values), flush=True)


def clock() -> float:
    """Seconds, read when a GPU has done all that it was given."""
    if cuda := _cuda():
        cuda.synchronize()
    return time.perf_counter()


class PeakMemory:
    """Memory beyond what is held now, the GPU's where there is one: begin when the model is loaded."""

    def __init__(self) -> None:
        self._cuda = _cuda()
        if self._cuda:
            self._cuda.reset_peak_memory_stats()
            self._before = self._cuda.memory_allocated()
            return
        # Linux: the kernel forgets the peak so far, such as that of loading.
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS")

    def mib(self) -> float:
        """The peak since the beginning, in MiB."""
        if self._cuda:
            return (self._cuda.max_memory_allocated() - self._before) / 2**20
        return (_status("VmHWM") - self._before) / 1024


def keep(
    figures: Sequence[Figure], settings: argparse.Namespace, module: str, flags: Sequence[str] | None = None
) -> None:
    """Print the figures and merge them into the results; `flags` as given on the command line unless named."""
    given = sys.argv[1:] if flags is None else flags
    command = shlex.join(["python", "-m", module, *given])
    facts = {"command": command, "machine": machine(settings.num_threads), "date": str(datetime.date.today())}
    rows = [{**f.row, **facts} for f in figures]
    print(table(rows))
    path = settings.results or (None if settings.tiny else RESULTS)
    if path is None:
        return
    merge(path, rows)
    merge(path.with_name("details.json"), [{"name": f.name, **f.details} for f in figures])


def merge(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put rows into a JSON list: in place of one with the same name, or at the end."""
    kept = {row["name"]: row for row in json.loads(path.read_text(encoding="utf-8"))} if path.exists() else {}
    kept |= {row["name"]: row for row in rows}
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(list(kept.values()), indent=2) + "\n", encoding="utf-8")
    beside.replace(path)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Figures as a Markdown table."""
    lines = ["| what | measured | reach | met |", "|---|---|---|---|"]
    for row in rows:
        met = {True: "yes", False: "no", None: ""}[row["met"]]
        lines.append(f"| {row['name']} | {found(row)} | {row['reach']} | {met} |")
    return "\n".join(lines)


def found(row: Mapping[str, Any]) -> str:
    """A kept ratio in words, with its range where it was repeated."""
    low, _, high = row.get("spread", (row["ratio"],) * 3)
    return f"{row['ratio']:.3g}" + (f" ({low:.3g} to {high:.3g})" if "spread" in row else "")


def machine(num_threads: int) -> str:
    """What a figure depends on besides the code, in words."""
    cpu = platform.processor() or platform.machine()
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0))
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    # Looked up by name alone: a side's process imports what it needs, this one nothing heavy.
    found = [f"{name} {metadata.version(name)}" for name in _PACKAGES if importlib.util.find_spec(name)]
    words = [cpu, f"{cores} cores usable, {num_threads} used", f"{gib:.0f} GiB", f"load {os.getloadavg()[0]:.1f}"]
    return "; ".join([*words, f"Python {platform.python_version()}", ", ".join(found)])


def environment(num_threads: int) -> dict[str, str]:
    """Variables of a process that measures: so many threads, which sleep when idle, and nobody is phoned."""
    fixed = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    quiet = {"OMP_WAIT_POLICY": "passive", "TQDM_DISABLE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    quiet["PYTHONWARNINGS"] = "ignore"
    threads = {"OMP_NUM_THREADS": str(num_threads), "MKL_NUM_THREADS": str(num_threads)}
    return {**os.environ, **fixed, **quiet, **threads}


def _shown(report: Report) -> str:
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in report.items())


def _cuda() -> Any:
    """`torch.cuda` where it is loaded and has a device; nothing heavy is imported to ask."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch and torch.cuda.is_available() else None


def _status(name: str) -> int:
    """KiB that /proc reports of this process."""
    return next(int(line.split()[1]) for line in _lines("/proc/self/status") if line.startswith(f"{name}:"))


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


if __name__ == "__main__":
    print(table(json.loads(RESULTS.read_text(encoding="utf-8"))))
