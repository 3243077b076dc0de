"""The inside of a worker process: answers calls of its actor, one after another, until its parent is gone.

    answer_calls(connection, Surroundings(...))        is the process's main function

A call consists of the files whose classes it names, and a pickle of a method's name and arguments; its answer is a
pickle of a result and an error. Both ends are the same program on the same machine, connected by an unnamed pipe.
Invariants: the process leads its own session, with everything that it starts. It ends when its parent does, and removes
its files. Its output goes to its own file.
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
from multiprocessing import connection, parent_process, util
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from flow_dpo.core.errors import FlowDpoError, WorkerError
from flow_dpo.plugins.load import RanFile, run_again
from flow_dpo.workers.actor import RolloutActor
from flow_dpo.workers.fork_server import SIGNALS
from flow_dpo.workers.shard import Outcome

LOG = "log.txt"
"""File in a worker's folder with everything that it printed."""
_LOOK_S = 1.0
"""Seconds between checks whether the parent is alive: a child that it forked can keep the sentinel open."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a worker process is given besides its calls."""

    folder: str
    """Folder for its temporary files. Its parent folder holds those of all workers."""
    variables: Mapping[str, str]
    """Its environment variables."""


def answer_calls(calls: Connection, surroundings: Surroundings) -> None:
    """Answer calls until the other end is closed."""
    # 1. A session of its own: signals of a terminal or a scheduler reach only the command, which knows how to react.
    if hasattr(os, "setsid"):
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.environ.clear()
    os.environ.update(surroundings.variables)
    folder = Path(surroundings.folder)
    tempfile.tempdir = str(folder)  # the fork server may have set one already
    _print_to(folder / LOG)
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    # 2. Calls.
    actor = RolloutActor()
    while True:
        try:
            files, content = pickle.loads(calls.recv_bytes())
        except (EOFError, OSError):
            _leave(folder)
        result, outcome = None, Outcome()
        with outcome:
            run_again(files)
            method, args = pickle.loads(content)
            result = getattr(actor, method)(*args)
        with suppress(BrokenPipeError):
            calls.send_bytes(_dumped(result, outcome.error))


def message(files: Sequence[RanFile], content: bytes) -> bytes:
    """A call as bytes."""
    return pickle.dumps((tuple(files), content), protocol=pickle.HIGHEST_PROTOCOL)


def _dumped(result: Any, error: BaseException | None) -> bytes:
    """An answer as bytes: with the error itself if it can be pickled, otherwise with its text."""
    if error is not None and not isinstance(error, FlowDpoError):
        error.add_note("in a worker process:\n" + "".join(traceback.format_exception(error)))
    sent, pickling = b"", Outcome()
    with pickling:  # an exception of an unknown class can raise anything here
        sent = pickle.dumps((result, error), protocol=pickle.HIGHEST_PROTOCOL)
        if error is not None and type(pickle.loads(sent)[1]) is not type(error):
            sent = b""
    if sent and pickling.error is None:
        return sent
    what = "a result that cannot be pickled" if error is None else f"{type(error).__name__}: {error}"
    return pickle.dumps((None, WorkerError(what)))


def _print_to(file: Path) -> None:
    """Redirect the output of this process and its children to a file."""
    with file.open("ab") as out:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number in (1, 2):
            os.dup2(out.fileno(), number)


def _end_with_parent(folder: Path) -> None:
    """Wait until the parent process ends, then end this one at once."""
    parent = parent_process()
    assert parent is not None
    while not connection.wait([parent.sentinel], _LOOK_S):
        with suppress(PermissionError):
            try:
                os.kill(parent.pid or 0, 0)
            except ProcessLookupError:
                break
    # The folder of the fork server's socket, which the parent would have removed.
    shutil.rmtree(util.get_temp_dir(), ignore_errors=True)
    _leave(folder)


def _leave(folder: Path) -> NoReturn:
    """Remove the files of this process, and end it with all that it started."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # the last worker removes the folder of all workers
        folder.parent.rmdir()
    if hasattr(os, "killpg") and os.getsid(0) == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)
