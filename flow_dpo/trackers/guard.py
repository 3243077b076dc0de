"""One place where whatever a tracker raises is caught: it is reported once, and the tracker is left alone from then on.

    guard = Guard("wandb")
    with guard:
        wandb.log(...)        # a lost connection: one warning; guard.failed is True, and the run continues

Invariant: a tracker never ends a run. Interruptions are no failures, and pass.
"""

from __future__ import annotations

import logging
from types import TracebackType

log = logging.getLogger("flow_dpo")


class Guard:
    """A context that may be entered again; after the first failure its owner enters it no more."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.failed = False

    def __enter__(self) -> None:
        """Nothing is needed."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        self.failed = True
        log.warning(
            "%s failed and gets nothing more of this run, which continues: %s: %s; all of it is in metrics.jsonl",
            self.name, type(error).__name__, str(error)[:500],
        )  # fmt: skip
        return True
