"""What do all tests share?"""

from __future__ import annotations

import gc
import sys

import pytest


def pytest_collection_finish() -> None:
    """What the imports made stays for good, so no collection need walk it again: torch and its neighbours are over a
    million objects, and a full collection of them takes a quarter of a second."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)  # what a test loads late is walked again and again all the same, but seldom


class Forgetful(set[str]):
    """Nothing is in it, whatever was added."""

    def __contains__(self, key: object) -> bool:
        return False


@pytest.fixture(autouse=True)
def exchanged_code_is_probed(request: pytest.FixtureRequest) -> None:
    """What was found right before a test exchanges code is not taken for right afterwards."""
    if "monkeypatch" in request.fixturenames and (probes := sys.modules.get("flow_dpo.models.probes")):
        request.getfixturevalue("monkeypatch").setattr(probes, "_found_right", Forgetful())
