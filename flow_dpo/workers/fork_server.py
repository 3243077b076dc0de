"""Fork server of the worker processes: Python's own, with the workers' imports preloaded.

    warm_up()        before this process imports the same modules, so both import at once
    CONTEXT.Process(...)

It is a process without threads that has computed nothing, so a worker is forked from it in a moment. On systems other
than Linux, libraries could have started threads by then, so a worker is a new process with its own imports. Invariant:
nothing heavy is imported here.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

METHOD = "forkserver" if sys.platform == "linux" else "spawn"
CONTEXT: Any = multiprocessing.get_context(METHOD)
SIGNALS = signal.SIGINT, signal.SIGTERM
"""Signals of a terminal or a scheduler. Only the command itself reacts to them, not the fork server or a worker."""
_IMPORTED = ["flow_dpo.workers.preloaded"]
_LONGEST_FOLDER = 32
"""Longest path of a folder for temporary files: sockets lie deep below it, and their paths can have 107 characters."""


def warm_up() -> None:
    """Let the fork server begin its imports, unless it runs already."""
    if METHOD == "forkserver":
        CONTEXT.set_forkserver_preload(_IMPORTED)
        with _temporary_files_in(short_folder()), _signals_blocked():  # for its socket
            forkserver.ensure_running()


def short_folder() -> str:
    """The system's folder for temporary files, or /tmp if that path is too long for a socket."""
    found = tempfile.gettempdir()
    return found if len(found) <= _LONGEST_FOLDER or not Path("/tmp").is_dir() else "/tmp"


@contextmanager
def _temporary_files_in(folder: str) -> Iterator[None]:
    before, tempfile.tempdir = tempfile.tempdir, folder
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes started in this context have these signals blocked from the start."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
