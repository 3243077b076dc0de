"""Loading of libraries: what a command imports once its arguments are understood.

    with loading():
        from flow_dpo.runs import training

Automatic collections of reference cycles take a fifth of the time of importing torch and its neighbours, three quarters
of a million objects of which hardly one is ever free, and each later one would walk through all of them again.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """A context of imports: no collections in it, and what it made is left out of later ones. Nothing is changed in a
    process that has torch already, whose objects are not all there for good."""
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
