"""Commands that only write their words down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from flow_dpo.evaluate.compare import jobs


@contextmanager
def stand_ins() -> Iterator[None]:
    """Runners do not collect garbage after each command: stand-ins load no model that would have to go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "gc", SimpleNamespace(collect=int))
        yield
