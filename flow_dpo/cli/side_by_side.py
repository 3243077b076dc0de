"""Independent tasks several at a time, each in a process of its own; an interruption ends all of them.

    side_by_side(2, one_seed, [(do, 0), (do, 1), (do, 2)])          the results, in the order of the tasks

If a task fails, no other begins, and those that are running are waited for. On Ctrl-C or SIGTERM every running task
gets one KeyboardInterrupt, so that it can keep its work; further signals change nothing.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from flow_dpo.core.errors import WorkerError

SIGNALS = signal.SIGINT, signal.SIGTERM


def side_by_side(jobs: int, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The function's result for each task, in order; up to `jobs` run at once. With 1, in this process.

    Raises the first error of a task, with its traceback as a note; WorkerError if a process ended without a result
    (killed, or its result cannot be pickled); KeyboardInterrupt. Always after the last process has ended.
    """
    if jobs == 1:
        return [function(*task) for task in tasks]
    context = multiprocessing.get_context("spawn")
    results: list[Any] = [None] * len(tasks)
    waiting, running = deque(enumerate(tasks)), dict[Connection, tuple[int, BaseProcess]]()
    failure: BaseException | None = None
    interrupted = False
    with _noted_signals() as noted:
        while running or (waiting and failure is None and not noted):
            while waiting and len(running) < jobs and failure is None and not noted:
                number, task = waiting.popleft()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_run, args=(sender, function, task))
                process.start()
                sender.close()
                running[receiver] = number, process
            # A signal does not end this wait, hence its limit.
            ready = wait(running, timeout=0.1)
            for receiver in [one for one in running if one in ready]:
                number, process = running.pop(receiver)
                results[number], error = _outcome(receiver, process)
                failure = error if failure is None else failure
            if noted and not interrupted:
                interrupted = True
                for _, process in running.values():
                    process.terminate()
    if noted:
        raise KeyboardInterrupt
    if failure is not None:
        raise failure
    return results


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Signals that arrive are appended to the list and interrupt nothing: an exception in the middle of starting a
    process or of waiting for one would leave it behind."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {number: signal.signal(number, lambda number, _: noted.append(number)) for number in SIGNALS}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python


def _outcome(receiver: Connection, process: BaseProcess) -> tuple[Any, BaseException | None]:
    """The result of a task that has ended, or the error it ended with."""
    with receiver:
        try:
            sent = receiver.recv_bytes()
        except EOFError:
            sent = None
    process.join()
    if sent is None:
        return None, WorkerError(
            f"expected a result, found that a task's process ended with code {process.exitcode}; if it was killed for "
            "want of memory, fewer jobs need less"
        )
    return pickle.loads(sent)


# ---- in a child ------------------------------------------------------------------------------------------------------


def _run(sender: Connection, function: Callable[..., Any], task: tuple[Any, ...]) -> None:
    interrupted: list[int] = []

    def interrupt(number: int, _: Any) -> None:
        """Once: Ctrl-C comes from the terminal, and again from the parent."""
        interrupted.append(number)
        if len(interrupted) == 1:
            raise KeyboardInterrupt

    error: BaseException | None = None
    result = None
    try:
        for number in SIGNALS:
            signal.signal(number, interrupt)
        result = function(*task)
    except (KeyboardInterrupt, Exception) as failed:  # noqa: BLE001 (the parent raises it)
        failed.add_note(traceback.format_exc())
        error = failed
    sent = pickle.dumps((result, error))
    pickle.loads(sent)
    sender.send_bytes(sent)
