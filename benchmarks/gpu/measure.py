"""One part of the GPU benchmark, run by the runner in its own process.

    python -m benchmarks.gpu.measure attention --folder FOLDER [--rehearse]

The sides of a comparison take turns in this one process, A B A B, until the soft limit: importing and compiling happen
once. Figures are saved after every turn, so a part that is killed leaves those that it had. A side that runs out of GPU
memory is left out, and the log says so. Our side must not run out.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.measuring import Figure, Report

_WATCH_S = 0.5
HOMES = {
    "tests": "whole:tests",
    "run": "whole:run",
    "attention": "attention:attention",
    "vllm": "served:served",
    "sampling-seed": "sampling:sampling",
    "sampling-0.5b": "sampling:sampling",
    "sampling-8b": "sampling:sampling",
    "variants-0.5b": "sampling:variants",
    "learner-0.5b": "learning:learner",
    "learner-8b": "learning:learner",
    "memory": "learning:memory",
    "online-dpo-seed": "learning:online",
}
"""The module and function that measure each part."""
OURS = "ours"
Sides = Mapping[str, Callable[[], Report]]
Reports = Mapping[str, Sequence[Report]]


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a part needs to know."""

    name: str
    folder: Path
    """The folder for its figures and its other files."""
    rehearse: bool
    model: str
    """A real model instead of the random 0.5B one; "" for none."""
    soft_s: float
    started: float

    @property
    def case(self) -> str:
        """The model of a part named "something-MODEL": a size with random weights, or the model that the user named."""
        size = self.name.rpartition("-")[2]
        if size == "seed":
            return size
        if self.rehearse:
            return "tiny"
        return self.model if size == "0.5b" and self.model else size

    @property
    def label(self) -> str:
        """The model's short name, for display."""
        return self.case.rstrip("/").rpartition("/")[2]

    def left_s(self) -> float:
        """Seconds until the part must start nothing more."""
        return self.soft_s - (time.monotonic() - self.started)

    def keep(self, figures: Sequence[Figure]) -> None:
        """Merge figures into the part's file."""
        rows = [
            {"name": f.name, "ratio": f.ratio, "reach": f.reach, "met": f.met, "details": dict(f.details)}
            for f in figures
        ]
        measuring.merge(self.folder / "figures.json", rows)

    def take_turns(self, sides: Sides, figures: Callable[[Reports], list[Figure]], *, most: int = 3) -> None:
        """Run the sides in whole turns, A B A B, and save the figures after each turn.

        The first turn always runs. Another begins only if it would end in time. Exits if our side, or every other
        side, runs out of memory.
        """
        import torch

        reports: dict[str, list[Report]] = {side: [] for side in sides}
        turn_s = 0.0
        for turn in range(1 if self.rehearse else most):
            if turn and turn_s > self.left_s():
                return
            started = time.monotonic()
            for side in list(reports):
                begun = time.monotonic()
                try:
                    reports[side].append(sides[side]())
                except torch.OutOfMemoryError as error:
                    if side.startswith(OURS) or len(reports) == 2:
                        raise SystemExit(f"{side} ran out of memory: {error}") from error
                    del reports[side]
                    print(f"{side}: out of memory", flush=True)
                free()
                print(f"{side}: {time.monotonic() - begun:.1f} s", reports.get(side, [{}])[-1], flush=True)
            turn_s = time.monotonic() - started
            self.keep(figures(reports))


def free() -> None:
    """Free the memory that the last side held."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def best(reports: Reports, sides: Sequence[str], name: str, *, least: bool = False) -> tuple[str, float]:
    """The side with the best median of this measure, among those that did not run out of memory."""
    found = {side: measuring.median(reports[side], name) for side in sides if reports.get(side)}
    side = (min if least else max)(found, key=found.__getitem__)
    return side, found[side]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(HOMES))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--model_name_or_path", default="")
    parser.add_argument("--soft_s", type=float, default=60.0)
    parser.add_argument("--runner", type=int, default=0, help="id of the parent process: when it ends, this one does")
    settings = parser.parse_args()
    if settings.runner:
        threading.Thread(target=_end_with, args=(settings.runner,), daemon=True).start()
    context = Context(
        name=settings.name,
        folder=settings.folder,
        rehearse=settings.rehearse,
        model=settings.model_name_or_path,
        soft_s=settings.soft_s,
        started=time.monotonic(),
    )
    module, _, function = HOMES[settings.name].partition(":")
    measure: Any = getattr(import_module(f"benchmarks.gpu.{module}"), function)
    measure(context)


def _end_with(runner: int) -> None:
    """End this process's whole group when the runner is no longer its parent, so that the GPU becomes free."""
    while os.getppid() == runner:
        time.sleep(_WATCH_S)
    print("the runner is gone", file=sys.stderr, flush=True)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
