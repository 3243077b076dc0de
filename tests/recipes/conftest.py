"""One run of each recipe for all tests and processes that recompute what it taught."""

from __future__ import annotations

import pytest

from tests.support.once import Once
from tests.support.recipe_runs import Runs, recorded


@pytest.fixture(scope="session")
def runs(once: Once) -> Runs:
    """The records of a recipe's run by its name; a run is made when it is first asked for."""
    return lambda name: recorded(name, once)
