"""Fork server of the worker processes: Python's own, with what workers import already imported.

    warm_up()        before this process imports the same, so that both are at it at once
    CONTEXT.Process(...)

It is a process without threads that has computed nothing, from which a worker is forked in a moment; elsewhere than on
Linux, where libraries may have begun threads by then, a worker is a new process that imports for itself. Invariant:
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
"""Those of a terminal or a scheduler, which the command alone answers to, neither the fork server nor a worker."""
_IMPORTED = ["flow_dpo.workers.preloaded"]
_LONGEST_FOLDER = 32
"""Characters of a folder for temporary files with sockets, which may lie deep below it: 107 are the limit in all."""


def warm_up() -> None:
    """Let the fork server begin to import, unless it is there already."""
    if METHOD == "forkserver":
        CONTEXT.set_forkserver_preload(_IMPORTED)
        with _temporary_files_in(short_folder()), _signals_blocked():  # where its socket is
            forkserver.ensure_running()


def short_folder() -> str:
    """The system's folder for temporary files, or /tmp where its name is too long for a socket in it."""
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
    """A process that is begun in this context has these signals blocked from its first moment."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
