"""Independent tasks several at a time, each in a process of its own; an interruption ends all of them.

    side_by_side(2, one_seed, [(do, 0), (do, 1), (do, 2)])          the results, in the order of the tasks

A task begins when a process is free, never before. If one fails, no other begins, and those that are running are waited
for. On Ctrl-C or SIGTERM every running task gets one KeyboardInterrupt, so that it can keep its work.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any


def side_by_side(jobs: int, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The function's result for each task, in order; up to `jobs` run at once. With 1, in this process."""
    if jobs == 1:
        return [function(*task) for task in tasks]
    results: list[Any] = [None] * len(tasks)
    waiting, running = deque(enumerate(tasks)), dict[Future[Any], int]()
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_take_signals) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    number, task = waiting.popleft()
                    running[pool.submit(_task, function, task)] = number
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    results[running.pop(future)] = future.result()
        except KeyboardInterrupt:
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            raise
    return results


# ---- in a child ------------------------------------------------------------------------------------------------------


class _State:
    """Of this process."""

    interrupted = False
    busy = False


def _take_signals() -> None:
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, _interrupt)


def _interrupt(*_: Any) -> None:
    """Raise KeyboardInterrupt in the task, once: Ctrl-C comes from the terminal, and again from the parent."""
    again, _State.interrupted = _State.interrupted, True
    if _State.busy and not again:
        raise KeyboardInterrupt


def _task(function: Callable[..., Any], task: tuple[Any, ...]) -> Any:
    _State.busy = True
    try:
        if _State.interrupted:
            raise KeyboardInterrupt
        return function(*task)
    finally:
        _State.busy = False
