"""Kill a run with SIGKILL at many points, resume it, and see whether it is the run that was never killed.

    python -m tests.support.kill_runs --points 200

and the same with a disk that is full after some bytes (a limit on the size of files). A process that is about to write,
has written half, or has written; that plays; that is inside an update: each is an event, numbered as it comes. A fresh
child is forked for every kill, so the libraries are loaded once, and none of their objects is walked again by a child's
garbage collection.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flow_dpo.cli import train
from flow_dpo.core.errors import FlowDpoError
from flow_dpo.engines.local.engine import LocalEngine
from flow_dpo.learner import state
from flow_dpo.learner.learner import Learner
from flow_dpo.models import adapter_files, probes
from flow_dpo.runs import charts, run_folder
from tests.support.run_equality import assert_same_run

WORDS = ("--max_problems", "8", "--problems_per_batch", "3", "--examples_per_update", "6", "--num_threads", "1",
         "--save_updates", "1")  # fmt: skip
"""Three batches; they have updates, and leave pairs that wait for the next. Adapters are saved on the way."""
LATE = (
    "flow_dpo.runs.training",
    "flow_dpo.evaluate.during",
    "flow_dpo.report.page_of_run",
    "flow_dpo.engines.merged_lora",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
    "transformers.models.llama.modeling_llama",
    "peft.tuners.lora.model",
)
"""What a run loads only when it needs it; loaded before the first fork, it is not loaded by every child. So is the
parser of its settings, and what draws its picture."""
POLLS = 10
"""One poll of the engine in so many is an event."""


class Fuse:
    """Counts events, and kills this process at one of them."""

    def __init__(self, at: int | None) -> None:
        self.at, self.count = at, 0

    def burn(self, first: Callable[[], None] = lambda: None) -> None:
        """One event; at the last one `first` is done, and nothing after it."""
        if self.count == self.at:
            first()
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1

    def around(self, holder: Any, name: str, half: Callable[..., None] | None = None, every: int = 1) -> None:
        """Events before and after each call (or each so many calls) of a function; `half` does half of its work."""
        whole, calls = getattr(holder, name), [0]

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] % every:
                return whole(*args, **kwargs)
            self.burn()
            if half is not None:
                self.burn(lambda: half(*args))
            result = whole(*args, **kwargs)
            self.burn()
            return result

        setattr(holder, name, wrapped)


def half_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode()[: len(text) // 2])


def half_tensors(save: Callable[..., None]) -> Callable[..., None]:
    def half(tensors: Any, path: Path) -> None:
        save(tensors, path)
        os.truncate(path, path.stat().st_size // 2)

    return half


def half_record(folder: run_folder.RunFolder, name: str, rows: Sequence[Any]) -> None:
    with (folder.path / name).open("ab") as file:
        file.write(b'{"problem_id": "torn')


def light(fuse: Fuse) -> None:
    """Put the fuse to everything that leaves a trace."""
    original = state.save_file
    fuse.around(state, "save_file", half_tensors(original))
    fuse.around(adapter_files, "save_file", half_tensors(original))
    fuse.around(run_folder.RunFolder, "_append", half_record)
    half = half_text
    fuse.around(Path, "write_text", lambda path, text, **_: half(path, text))
    for holder, name in ((os, "fsync"), (os, "unlink"), (os, "rmdir"), (Path, "replace"), (Learner, "_step")):
        fuse.around(holder, name)
    fuse.around(LocalEngine, "poll", every=POLLS)


def in_child(folder: Path, at: int | None, *more: str, max_bytes: int = 0) -> tuple[int, int, str]:
    """Train in a forked process: its wait status, how many events there were, and what it was refused for.

    No file may exceed `max_bytes`, unless it is 0.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            fuse = Fuse(at)
            light(fuse)
            if max_bytes:
                resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
            status = train.train([*WORDS, "--output_dir", str(folder), *more])
            os.write(writing, f"{fuse.count} {','.join(probes._found_right)} ".encode())
        except FlowDpoError as error:
            os.write(writing, f"0  {error}".encode())
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        count, found, refused = (*pipe.read().split(" ", 2), "", "")[:3]
    probes._found_right |= set(filter(None, found.split(",")))  # later children need not probe the model again
    return os.waitpid(child, 0)[1], int(count or 0), refused


def survive(folder: Path, whole: Path, kills: Sequence[int], begins: Sequence[str] = ()) -> int:
    """Kill at these events, one after another, then let the run end; how often it was really killed.

    `begins` are settings that a run needs where it begins.
    """
    killed = 0
    for at in kills:
        status, *_ = in_child(folder, at, *(resumed(folder) or begins))
        killed += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    finish(folder, whole, begins)
    return killed


def resumed(folder: Path) -> list[str]:
    """What goes on with the folder: killed before its settings were written, it holds no run yet and one is begun."""
    return ["--resume"] if (folder / "config.yaml").exists() else []


def finish(folder: Path, whole: Path, begins: Sequence[str] = ()) -> None:
    """Let the run end, and compare."""
    status, _, refused = in_child(folder, None, *(resumed(folder) or begins))
    assert status == 0, f"the resumed run ended with status {status}: {refused}"
    assert_same_run(whole, folder)


def survive_full_disk(folder: Path, whole: Path, share: float, begins: Sequence[str] = ()) -> None:
    """No file grows beyond this share of the whole run's largest; the run stops, says so, and goes on with room."""
    largest = max(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    status, _, refused = in_child(folder, None, *begins, max_bytes=int(share * largest))
    assert os.WEXITSTATUS(status) == 1, f"expected a refusal at {share} of the room, found status {status}"
    assert "could not write to" in refused, refused
    finish(folder, whole, begins)


def load_once() -> None:
    """Everything that a child would load, without a computation: torch's threads must not run before a fork."""
    for name in LATE:
        importlib.import_module(name)
    train.parse_train("flow-dpo train", [*WORDS], {})
    with tempfile.TemporaryDirectory() as place:
        charts.save_png(Path(place) / "picture.png", [charts.Panel(y="fonts")], x="and colours", height=3.0)
    gc.collect()
    gc.freeze()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lag", type=int, nargs="+", default=[0])
    settings = parser.parse_args()
    load_once()
    for lag in settings.lag:
        print(f"lag {lag}: {kill_and_fill(settings.points, settings.seed, lag)}", flush=True)


def kill_and_fill(points: int, seed: int, lag: int) -> str:
    """Kill a run of this lag at so many points, and give others a full disk; what was done, in words."""
    began, begins = time.monotonic(), ["--lag", str(lag)]
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        status, num_events, refused = in_child(whole, None, *begins)
        assert status == 0, f"the whole run ended with status {status}: {refused}"
        rng = random.Random(seed)
        num_killed = 0
        for point in range(points):
            # Spread over the run, and every other time killed a second time on the way.
            first = (2 * point + 1) * num_events // (2 * points)
            kills = [first, rng.randrange(num_events)] if point % 2 else [first]
            folder = Path(place) / "killed"
            num_killed += survive(folder, whole, kills, begins)
            shutil.rmtree(folder)
            if point % 20 == 19:
                print(f"{point + 1} points, {num_killed} kills, all resumed to the byte", flush=True)
        num_full = max(2, points // 10)
        for point in range(num_full):
            survive_full_disk(folder, whole, (point + 1) / (num_full + 1), begins)
            shutil.rmtree(folder)
    return (
        f"{num_killed} kills at {points} of {num_events} points and {num_full} full disks: every resumed run "
        f"equal to the whole one, {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
