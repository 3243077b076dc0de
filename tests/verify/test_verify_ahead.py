"""Does the verifier begin with what takes long while others are played, and lose nothing of it?"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from flow_dpo.core.errors import ConfigError
from flow_dpo.verify.extract import AnswerRule
from flow_dpo.verify.verifier import Verifier
from flow_dpo.verify.worker_pool import Finding, GradingPool

ANYWHERE = AnswerRule(which="anywhere")


def test_what_was_begun_holds_nothing_up_and_is_found_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Algebra that never ends, as far as anybody who plays can see."""
    asked, free, compare = threading.Event(), threading.Event(), GradingPool.compare_many
    pairs: list[tuple[str, str]] = []

    def slow(pool: GradingPool, some: Sequence[tuple[str, str]]) -> list[Finding]:
        asked.set()
        assert free.wait(60)
        pairs.extend(some)
        return compare(pool, some)

    monkeypatch.setattr(GradingPool, "compare_many", slow)
    with Verifier(rule=ANYWHERE, timeout_s=20) as verifier:
        item = ("x+1", "\\boxed{1+x}", True)
        verifier.begin([item, ("4", "\\boxed{4}", True), ("4", "no answer", True), item])
        verifier.begin([item])
        assert asked.wait(60)
        free.set()
        assert verifier.grade(*item[:2], ended=True).status == "correct"
    assert len(pairs) == 1, "each pair once, and those that need no algebra never"


def test_what_was_begun_and_failed_fails_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> list[Finding]:
        raise ConfigError("no workers")

    monkeypatch.setattr(GradingPool, "compare_many", broken)
    with Verifier(rule=ANYWHERE) as verifier:
        verifier.begin([("x+1", "\\boxed{1+x}", True)])
        with pytest.raises(ConfigError, match="no workers"):
            verifier.grade("x+1", "\\boxed{1+x}", ended=True)
