"""A trained run and a stand-in for the hub, for everything that is pushed and read back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import flow_dpo
from tests.support.hub_server import HubServer
from tests.support.once import Once


@pytest.fixture(scope="session")
def run(once: Once) -> Path:
    """Two batches of the seed, each learned from."""
    return once("hub", _train) / "flow"


def _train(folder: Path) -> None:
    flow_dpo.train(
        "seed", max_problems=12, output_dir=folder / "flow", quiet=True, problems_per_batch=6,
        settings={"learner.examples_per_update": 8, "model.num_threads": 1},
    )  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server, server.used(monkeypatch, tmp_path / "cache"):
        yield server
