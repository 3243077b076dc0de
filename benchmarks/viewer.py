"""Time and memory of the viewer on a run of 100,000 trees.

    python -m benchmarks.viewer

A short run on the embedded seed is repeated under other problem ids until there are 100,000 trees with their pairs,
scored and learned rows, 1.6 GiB. One process indexes it, in at most 20 processor seconds (one thread does it all) and
100 MiB. It then answers: the first page of problems (1 second), every filter in every order (the slowest: 100 ms), a
search (300 ms) and whole trees at random places (99 of 100 within 100 ms). Another process opens the finished index and
shows the first page, at most a second after its start.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

from benchmarks import measuring
from benchmarks.measuring import Figure, PeakMemory
from flow_dpo.report.viewer.library import Library
from flow_dpo.report.viewer.server import to_json

MODULE = "benchmarks.viewer"
ROWS = ("trees.jsonl", "pairs.jsonl", "scored.jsonl", "learned.jsonl")
SORTS = ("time", "-time", "accuracy", "-accuracy", "examples", "-examples", "tokens", "-tokens", "margin", "-margin")
FILTERS: tuple[dict[str, str], ...] = (
    {}, {"role": "answer"}, {"role": "stop", "depth": "4"}, {"depth": "2"}, {"status": "wrong"}, {"flipped": "1"},
    {"examples": "pair"}, {"examples": "none"}, {"ungraded": "1"}, {"version": "0-4"}, {"level": "3"},
    {"role": "answer", "depth": "1", "status": "wrong", "flipped": "1", "examples": "pair", "version": "0-20"},
)  # fmt: skip
SEARCHES = ("shells", "train/12", "no such words", "how many", "e")


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--num_trees", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.tiny:
        settings.num_trees, settings.repeats = 300, 1
    sides = {"index": index, "opened": opened}
    if settings.side:
        measuring.report(sides[settings.side](settings.folder))
        return
    with tempfile.TemporaryDirectory() as folder:
        size = make(Path(folder), settings.num_trees, settings.num_threads)
        print(f"{settings.num_trees:,} trees, {size / 2**20:,.0f} MiB", flush=True)
        flags = ["--folder", folder]
        reports = measuring.take_turns(
            MODULE, {"index": flags, "opened": flags}, num_threads=settings.num_threads, repeats=settings.repeats
        )
    names = f"viewer, {settings.num_trees:,} trees"
    details = {**reports, "mib": size / 2**20}
    figures = [
        Figure(name=f"{names}: {what}", ratio=measuring.median(reports[side], key), reach=reach, details=details)
        for what, side, key, reach in (
            ("index, processor seconds", "index", "processor_seconds", "<= 20"),
            ("index, MiB of memory", "index", "peak_mib", "<= 100"),
            ("first page of a new index, ms", "index", "first_page_ms", "<= 1000"),
            ("first page from the start, index there, ms", "opened", "first_page_ms", "<= 1000"),
            ("slowest filter and order, ms", "index", "slowest_ms", "<= 100"),
            ("slowest search, ms", "index", "search_ms", "<= 300"),
            ("a tree, median ms", "index", "item_ms", "<= 100"),
            ("a tree, 99th percentile, ms", "index", "item_p99_ms", "<= 100"),
            ("32 trees more until they are listed, ms", "index", "more_ms", ""),
        )
    ]
    measuring.keep(figures, settings, MODULE)


# ---- a run of 100,000 trees ------------------------------------------------------------------------------------------


def make(folder: Path, num_trees: int, num_threads: int) -> int:
    """A run of so many trees in `folder`/run; its size in bytes."""
    short, run = folder / "short", folder / "run"
    command = [sys.executable, "-m", "flow_dpo", "train", "--max_problems", "64", "--output_dir", str(short)]
    done = subprocess.run(command, env=measuring.environment(num_threads), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command} failed with status {done.returncode}:\n{done.stderr}")
    run.mkdir()
    for name in ("config.yaml", "run.json", "metrics.jsonl"):
        (run / name).write_bytes((short / name).read_bytes())
    for name in ROWS:
        if (short / name).exists():
            multiply(short / name, run / name, num_trees)
    return sum((run / name).stat().st_size for name in ROWS if (run / name).exists())


def multiply(source: Path, target: Path, num_trees: int) -> None:
    """Write the rows of a file again and again, each time under other problem ids, up to the tree of this number."""
    lines = source.read_bytes().splitlines(keepends=True)
    with target.open("wb") as file:
        for turn in range(-(-num_trees // 64)):
            for line in lines:
                place, number = renamed(line, turn)
                if number < num_trees:
                    file.write(place)


def renamed(line: bytes, turn: int) -> tuple[bytes, int]:
    """The row in this turn: its problem has the number after all those of the turns before."""
    head, mark, tail = line.partition(b'd": "seed/train/')  # "id" or "problem_id"
    number, quote, rest = tail.partition(b'"')
    new = turn * 64 + int(number)
    return head + mark + str(new).encode() + quote + rest, new


# ---- the two sides ---------------------------------------------------------------------------------------------------


def index(folder: Path) -> measuring.Report:
    """Index the run, and ask for everything that the page asks for."""
    with tempfile.TemporaryDirectory() as cache:
        memory, started, used = PeakMemory(), time.perf_counter(), time.process_time()
        with Library([folder / "run"], cache=Path(cache)) as library:
            library.wait()
            report: measuring.Report = {
                "seconds": time.perf_counter() - started,
                "processor_seconds": time.process_time() - used,
                "peak_mib": memory.mib(),
                "index_mib": sum(path.stat().st_size for path in Path(cache).iterdir()) / 2**20,
            }
            [num] = [source["num_items"] for source in library.get("sources", {})["sources"]]
            report["first_page_ms"] = ms(library, "items", limit="200")
            report |= slowest(library, num) | trees(library, num)
            report["more_ms"] = more(library, folder / "run", num)
    return report


def slowest(library: Library, num: int) -> measuring.Report:
    """The slowest filter in the slowest order, at the beginning or in the middle of its list; and the slowest search.

    Everything is asked three times, and the fastest answer counts: the others waited for a core. Two questions in a row
    differ in their filter, so that nothing is known of the second.
    """
    taken: dict[str, float] = {}
    for _, sort, offset, chosen in product(range(3), SORTS, ("0", str(num // 2)), FILTERS):
        params = {"limit": "200", "sort": sort, "offset": offset, **chosen}
        name = json.dumps(params)
        taken[name] = min(ms(library, "items", **params), taken.get(name, float("inf")))
    rounds = [[ms(library, "items", limit="200", q=word) for word in SEARCHES] for _ in range(3)]
    name = max(taken, key=lambda one: taken[one])
    return {"slowest_ms": taken[name], "slowest": name, "search_ms": max(map(min, zip(*rounds, strict=True)))}


def trees(library: Library, num: int) -> measuring.Report:
    """Whole trees at random places."""
    places = random.Random(0).sample(range(num), min(num, 300))
    taken = sorted(ms(library, "item", n=str(n)) for n in places)
    return {"item_ms": statistics.median(taken), "item_p99_ms": taken[int(0.99 * (len(taken) - 1))]}


def more(library: Library, run: Path, num: int) -> float:
    """Milliseconds from the moment at which 32 trees more stand in the file to that at which they are listed."""
    with (run / "trees.jsonl").open("rb") as file:
        lines = [file.readline() for _ in range(32)]
    size = (run / "trees.jsonl").stat().st_size
    with (run / "trees.jsonl").open("ab") as file:
        file.writelines(lines)
    started = time.perf_counter()
    while library.get("items", {"source": "run", "limit": "1"})["all"] < num + 32:
        time.sleep(0.01)
        assert time.perf_counter() - started < 60, "32 trees more are not listed within a minute"
    taken = 1000 * (time.perf_counter() - started)
    with (run / "trees.jsonl").open("r+b") as file:
        file.truncate(size)
    return taken


def opened(folder: Path) -> measuring.Report:
    """The first page by a new process, the index being there."""
    cache = folder / "cache"
    if not cache.exists():
        with Library([folder / "run"], cache=cache) as library:
            library.wait()
    started = time.perf_counter()
    with Library([folder / "run"], cache=cache) as library:
        while not library.get("items", {"source": "run", "limit": "200"})["rows"]:
            time.sleep(0.001)
        return {"first_page_ms": 1000 * (time.perf_counter() - started)}


def ms(library: Library, kind: str, **params: str) -> float:
    """Milliseconds until the library has answered, as JSON."""
    started = time.perf_counter()
    to_json(library.get(kind, {"source": "run", **params}))
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
