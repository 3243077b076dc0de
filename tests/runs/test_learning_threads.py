"""Do updates of a small model have two threads, and sampling the one it had?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from flow_dpo.models.settings import ModelSettings
from flow_dpo.runs.learning_threads import in_two_threads

CPU = torch.device("cpu")


class Learner:
    version = 3

    def update(self, objective: Any, examples: Any) -> dict[str, float]:
        if not examples:
            raise ValueError("nothing to learn from")
        return {"threads": torch.get_num_threads()}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_an_update_has_two_threads_and_what_follows_has_one() -> None:
    inner: Any = Learner()
    learner: Any = in_two_threads(inner, ModelSettings(), CPU)
    assert learner.update(None, [1]) == {"threads": 2}
    assert torch.get_num_threads() == 1
    with pytest.raises(ValueError, match="nothing"):
        learner.update(None, [])
    assert torch.get_num_threads() == 1
    assert learner.version == 3


@pytest.mark.parametrize("why", ["setting", "environment", "one core", "GPU", "large model"])
def test_what_was_chosen_stays(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, device = ModelSettings(num_threads=1 if why == "setting" else 0), CPU
    if why == "environment":
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
    elif why == "one core":
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    elif why == "GPU":
        device = torch.device("cuda")
    elif why == "large model":
        torch.set_num_threads(2)
    learner: Any = Learner()
    assert in_two_threads(learner, settings, device) is learner
