"""The inside of a worker process: calls of its actor, one after another, until whoever began it is gone.

    answer_calls(connection, Surroundings(...))        is what the process does

A call is a pickle of a method's name and arguments, its answer one of a result and an error. Both ends are the same
program on the same machine, connected by a pipe that has no name. Invariants: a process ends when its parent does, and
leaves no file; what it prints goes to a file of its own.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import FlowDpoError, WorkerError
from flow_dpo.plugins.load import RanFile, run_again
from flow_dpo.workers.actor import RolloutActor
from flow_dpo.workers.shard import Outcome

LOG = "log.txt"
"""In a worker's folder: what it printed."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a worker process has besides its calls."""

    folder: str
    """For its temporary files."""
    variables: Mapping[str, str]
    """Of its environment."""
    files: Sequence[RanFile]
    """Python files whose classes and functions calls may name."""


def answer_calls(connection: Connection, surroundings: Surroundings) -> None:
    """Answer calls until the other end is closed."""
    # Ctrl-C goes to all processes of a terminal; what it means is up to the one that the others belong to.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(surroundings.variables)
    folder = Path(surroundings.folder)
    tempfile.tempdir = str(folder)  # the fork server may have looked for one already
    _print_to(folder / LOG)
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    actor, ready = RolloutActor(), Outcome()
    with ready:
        run_again(surroundings.files)
    while True:
        try:
            content = connection.recv_bytes()
        except (EOFError, OSError):
            return
        result, outcome = None, Outcome()
        with outcome:
            if ready.error is not None:
                raise ready.error
            method, args = pickle.loads(content)
            result = getattr(actor, method)(*args)
        with suppress(BrokenPipeError):
            connection.send_bytes(_dumped(result, outcome.error))


def _dumped(result: Any, error: BaseException | None) -> bytes:
    """An answer as bytes: the error itself where it can be pickled, otherwise what it says."""
    if error is not None and not isinstance(error, FlowDpoError):
        error.add_note("in a worker process:\n" + "".join(traceback.format_exception(error)))
    failures = (pickle.PicklingError, TypeError, AttributeError, ValueError, LookupError)
    with suppress(*failures):
        sent = pickle.dumps((result, error), protocol=pickle.HIGHEST_PROTOCOL)
        if error is None or type(pickle.loads(sent)[1]) is type(error):
            return sent
    what = "a result that cannot be pickled" if error is None else f"{type(error).__name__}: {error}"
    return pickle.dumps((None, WorkerError(what)))


def _print_to(file: Path) -> None:
    """Send what this process and its children print to a file."""
    with file.open("ab") as out:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number in (1, 2):
            os.dup2(out.fileno(), number)


def _end_with_parent(folder: Path) -> None:
    """Wait for the end of the process that this one belongs to, and end at once."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
