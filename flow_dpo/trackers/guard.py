"""Catches any error that a tracker raises: it is reported once, and the tracker is not used again in this run.

    guard = Guard("wandb")
    with guard:
        wandb.log(...)        # a lost connection: one warning; guard.failed is True, and the run continues

Invariant: a tracker never ends a run. Interruptions such as Ctrl-C are not caught.
"""

from __future__ import annotations

import logging
from types import TracebackType

log = logging.getLogger("flow_dpo")


class Guard:
    """A context manager that can be entered repeatedly. After the first failure its owner must not enter it again."""

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
            "%s failed and gets nothing more from this run, which continues: %s: %s; metrics.jsonl has all metrics",
            self.name, type(error).__name__, str(error)[:500],
        )  # fmt: skip
        return True
