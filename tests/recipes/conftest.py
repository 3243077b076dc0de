"""One run of each recipe for all tests and processes that recompute what it taught."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.recipe_runs import Runs, recorded


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Runs:
    """The records of a recipe's run by its name; a run is made when it is first asked for."""
    base = tmp_path_factory.getbasetemp()
    folder: Path = (base if worker_id == "master" else base.parent) / "recorded"
    return lambda name: recorded(name, folder)
