"""What do all tests share?"""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """What the imports made stays for good, so no collection need walk it again: torch and its neighbours are over a
    million objects, and a full collection of them takes a quarter of a second."""
    gc.collect()
    gc.freeze()
