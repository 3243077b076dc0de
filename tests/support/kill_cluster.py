"""Kill workers, ranks and the head of one run at random moments, and see whether it is the run that one process makes.

    python -m tests.support.kill_cluster --kills 20

The run: two learner ranks by torchrun, two workers on Ray, lag 1. A worker that is killed is replaced while the run
goes on; a rank or the head (rank 0) that is killed ends it, and it is resumed, with one rank or two by turns. At last
records, adapters and the whole learner are compared with those of the same run in one process.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from flow_dpo.runs.files import read_jsonl
from tests.support.run_equality import assert_same_run

ROOT = Path(__file__).parent.parent.parent
PROBLEMS, BATCH = 96, 8
WORDS = (
    "train", "--max_problems", str(PROBLEMS), "--problems_per_batch", str(BATCH), "--examples_per_update", "8",
    "--run.lag", "1", "--workers.shard", "4", "--num_threads", "1", "--save_updates", "3",
)  # fmt: skip
ON_RAY = ("--workers", "ray", "--workers.num", "2", "--workers.start_s", "300")
LIMIT_S = 600.0
"""Of one start, from the first to the last word."""


def torchrun(num: int) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(num),
        "-m",
        "flow_dpo",
    ]


def start(folder: Path, num_ranks: int) -> subprocess.Popen[bytes]:
    """Begin the run in the folder, or go on with it, in a session of its own."""
    goes_on = ["--resume"] if (folder / "config.yaml").exists() else []
    words = [*torchrun(num_ranks), *WORDS, *ON_RAY, "--output_dir", str(folder), *goes_on]
    log = folder.with_suffix(".log").open("ab")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "KILLED_RUN": str(folder)}
    return subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log, env=environment, start_new_session=True)


def processes(folder: Path) -> Iterator[tuple[str, int]]:
    """Who works for the run in this folder: "head", "rank" and "worker", with process ids."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environment = (place / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has just ended
            continue
        if f"KILLED_RUN={folder}" not in environment:
            continue
        if words.startswith("ray::RolloutActor"):
            yield "worker", int(place.name)
        elif "flow_dpo train" in words and "torch.distributed.run" not in words:
            yield ("head" if "RANK=0" in environment else "rank"), int(place.name)


def num_learned(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return len(read_jsonl(file)) if file.exists() and file.stat().st_size else 0


def end(run: subprocess.Popen[bytes], folder: Path) -> None:
    """Let a run that lost a process end; what torchrun has not ended after a while is killed."""
    try:
        run.wait(timeout=90)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait(timeout=30)
    until = time.monotonic() + 60
    while [*processes(folder)] and time.monotonic() < until:
        time.sleep(0.5)
    for _, pid in [*processes(folder)]:
        os.kill(pid, signal.SIGKILL)


def kill_one(run: subprocess.Popen[bytes], folder: Path, what: str, rng: random.Random, until: float) -> bool:
    """Kill such a process once the run learns, a moment later; whether there was one before the run ended."""
    before = num_learned(folder)
    while run.poll() is None and time.monotonic() < until:
        pids = [pid for name, pid in processes(folder) if name == what]
        if pids and num_learned(folder) > before:
            time.sleep(rng.uniform(0.0, 2.0))
            try:
                os.kill(rng.choice(pids), signal.SIGKILL)
            except ProcessLookupError:
                return False
            return True
        time.sleep(0.1)
    return False


def killed_run(folder: Path, kills: Sequence[str], rng: random.Random) -> Counter[str]:
    """One run from its beginning to its end, with these kills on the way; those that were made."""
    made: Counter[str] = Counter()
    left, starts = list(kills), 0
    while True:
        run = start(folder, 1 + (starts % 2 == 0))
        until, starts = time.monotonic() + LIMIT_S, starts + 1
        while left:
            if left[0] == "rank" and starts % 2 == 0:  # this start has but one rank
                left[0] = "head"
            if not kill_one(run, folder, left[0], rng, until):
                break
            made[what := left.pop(0)] += 1
            if what != "worker":
                break
        if not left and run.poll() is None and made.total():
            with suppress(subprocess.TimeoutExpired):  # told of below, by its missing status
                run.wait(timeout=LIMIT_S)
        end(run, folder)
        if run.returncode == 0:
            return made
        if starts > len(kills) + 3:
            raise AssertionError(f"the run in {folder} does not come to its end: {folder.with_suffix('.log')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    rng, made, began, num_runs = random.Random(settings.seed), Counter[str](), time.monotonic(), 0
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(
            [sys.executable, "-m", "flow_dpo", *WORDS, "--output_dir", str(whole)],
            cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        while made.total() < settings.kills:
            kills = rng.choices(["worker", "worker", "rank", "head"], k=min(5, settings.kills - made.total()))
            folder = Path(place) / f"killed{num_runs}"
            made += killed_run(folder, kills, rng)
            assert_same_run(whole, folder)
            num_runs += 1
            told = ", ".join(f"{number} of a {name}" for name, number in sorted(made.items()))
            print(f"{made.total()} kills ({told}) in {num_runs} runs, each equal to the whole one", flush=True)
    print(f"done in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
