"""Import heavy libraries without garbage collection, once a command's arguments are parsed.

    with loading():
        from flow_dpo.runs import training

Importing torch and what depends on it creates three quarters of a million objects, of which hardly one is ever freed.
Cyclic garbage collection takes a fifth of that time, and each later collection would scan all of them again.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """A context for imports: it suspends garbage collection, then exempts all present objects from it. It does nothing
    in a process that has torch already, because not all objects there are permanent."""
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
