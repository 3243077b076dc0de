"""What do all tests share?"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from tests.support.once import MadeOnce, Once


def pytest_collection() -> None:
    """No garbage collection while all tests and their libraries are imported."""
    gc.disable()


def pytest_collection_finish() -> None:
    """What the imports made stays for good, so no collection need walk it again: torch and its neighbours are over a
    million objects, and a full collection of them takes a quarter of a second."""
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)  # what a test loads late is walked again and again all the same, but seldom


class Forgetful(set[str]):
    """Nothing is in it, whatever was added."""

    def __contains__(self, key: object) -> bool:
        return False


@pytest.fixture(autouse=True)
def probed_anew(request: pytest.FixtureRequest) -> None:
    """No test takes for right what another found right, and one that exchanges code not even what it found itself."""
    if probes := sys.modules.get("flow_dpo.models.probes"):
        vars(probes)["_found_right"] = Forgetful() if "monkeypatch" in request.fixturenames else set()


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Once]:
    """once("name", make) is a read-only folder that one test process makes for all: for runs that are expensive."""
    made = MadeOnce(tmp_path_factory.getbasetemp())
    yield made
    made.check()
