"""Are the versions that batches in flight were sampled with at hand, and does the drift check use them?"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.errors import LearningError
from flow_dpo.core.types import Adapter, Pair, by_role
from flow_dpo.learner.learner import Learner
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.learner.settings import LearnerSettings, ReferenceSettings
from tests.learner.test_drift import pairs, recorded
from tests.learner.test_learner import same
from tests.learner.test_logprobs import stir
from tests.support.packed_builders import ROLES
from tests.support.tiny_models import tiny_model

DTYPES = [torch.float32, torch.bfloat16]


def learner(lag: int, *, dtype: torch.dtype = torch.float32, dropout: float = 0.0, **values: Any) -> Learner:
    lora = LoraSettings(lora_r=4, lora_dropout=dropout)
    policy = stir(Policy(tiny_model("llama").to(dtype), ROLES, lora, seed=5))  # pyright: ignore[reportArgumentType]
    settings = {"learning_rate": 0.02, "examples_per_update": 0, **values}
    return Learner(policy, LearnerSettings(**settings), kept_versions=lag)


def masters(policy: Policy) -> dict[str, list[torch.Tensor]]:
    return {role: [w.clone() for w in policy.weights(role)] for role in ROLES}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_versions_of_batches_in_flight_are_at_hand_and_no_others(dtype: torch.dtype) -> None:
    student = learner(2, dtype=dtype)
    made = pairs(1)
    # The fourth call makes no update, the fifth two.
    stood = {0: masters(student.policy)}
    at_hand: list[list[int]] = []
    for examples in (made, made, made, [], made):
        student.update(Dpo(), examples)
        stood[student.version] = masters(student.policy)
        found: list[int] = []
        for version in range(student.version + 1):
            try:
                with student.holding(version) as adapters:
                    assert adapters == {role: Adapter(role=role, version=version) for role in ROLES}
                    for role in ROLES:
                        assert same(student.policy.weights(role), stood[version][role])
                        assert same(
                            [p.detach().float() for p in student.policy.parameters(role)],
                            [w.to(dtype).float() for w in stood[version][role]],
                        )
                found.append(version)
            except LearningError:
                continue
        at_hand.append(found)
        assert all(same(student.policy.weights(role), stood[student.version][role]) for role in ROLES)
    assert at_hand == [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3], [3, 4]]


def test_a_learner_without_lag_keeps_nothing() -> None:
    student = learner(0)
    student.update(Dpo(), pairs(1))
    with pytest.raises(LearningError, match=r"version 0 were not kept; expected one of \[1\]"), student.holding(0):
        pass


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kept_versions_are_saved_and_loaded(dtype: torch.dtype, tmp_path: Path) -> None:
    student = learner(3, dtype=dtype)
    made = pairs(1)
    for examples in (made, [], made, made):
        student.update(Dpo(), examples)
    student.save(tmp_path / "a")
    other = learner(3, dtype=dtype)
    stir(other.policy, 7)
    other.load(tmp_path / "a")
    other.save(tmp_path / "b")
    for file in ("learner.json", "learner.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert b'"kept": [1, 1, 2]' in (tmp_path / "a" / "learner.json").read_bytes()
    for version in (1, 2, 3):
        with student.holding(version), other.holding(version):
            assert all(same(student.policy.weights(role), other.policy.weights(role)) for role in ROLES)
    # One that keeps less takes all the same what batches in flight may have been submitted with.
    fewer = learner(1, dtype=dtype)
    fewer.load(tmp_path / "a")
    for version in (1, 2):
        with fewer.holding(version):
            pass


def lagged(student: Learner, lag: int, *, swapped_at: int | None = None, batches: int = 7) -> list[dict[str, float]]:
    """The rows of calls whose examples were sampled `lag` calls before; from one batch on by each other's adapter."""
    other = dict(zip(ROLES, reversed(ROLES), strict=True))
    flying: deque[list[Pair]] = deque()
    rows: list[dict[str, float]] = []
    for number in range(batches):
        while len(flying) < lag + 1:
            roles = by_role(pairs(2))
            wrong = swapped_at is not None and number >= swapped_at
            flying.append(
                [
                    pair
                    for role in ROLES
                    for pair in recorded(
                        student.policy, roles[role], student.version, adapter=other[role] if wrong else role
                    )
                ]
            )
        rows.append(student.update(Dpo(), flying.popleft()))
    return rows


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("lag", [1, 3])
def test_drift_under_lag_finds_a_wrong_adapter_and_no_other(lag: int, dropout: float) -> None:
    rows = lagged(learner(lag, dropout=dropout), lag)
    for number, row in enumerate(rows):
        for role in ROLES:
            # All that the rows tell for nothing at first, then the few that are computed again.
            share = row[f"learn/{role}/compared_share"]
            assert share == 1.0 if number == 0 and not dropout else 0 < share <= 1
            assert row[f"learn/{role}/max_logprob_drift"] < 1e-3
    student = learner(lag, dropout=dropout, max_logprob_drift=0.05)
    before = student.version
    with pytest.raises(LearningError, match=r"fits version \d+ of '\w+' to within 0\S*.*nothing was changed") as caught:
        lagged(student, lag, swapped_at=2)
    assert student.version == before + 2 + lag, "at the first batch that was sampled wrongly"
    version = student.version - lag
    role = "answer" if "role 'answer'" in str(caught.value) else "stop"
    wrong = dict(zip(ROLES, reversed(ROLES), strict=True))[role]
    assert f"fits version {version} of {wrong!r}" in str(caught.value)


def test_what_the_reference_tells_is_not_computed_again() -> None:
    """Its rows hold version 0 whole, and a share above one would count a completion twice."""
    student = learner(2, reference=ReferenceSettings(kind="snapshot"))
    made = recorded(student.policy, pairs(2), 0)
    for _ in range(3):
        row = student.update(Dpo(), made)
        assert [row[f"learn/{role}/compared_share"] for role in ROLES] == [1.0, 1.0]


@pytest.mark.parametrize("lag", [1, 3])
def test_comparing_changes_no_bit_of_what_is_learned(lag: int) -> None:
    with_check, without = learner(lag), learner(0, max_logprob_drift=0)
    made = recorded(with_check.policy, pairs(2), 0)
    for _ in range(3):
        for student in (with_check, without):
            student.update(Dpo(), made)
    assert all(same(with_check.policy.weights(role), without.policy.weights(role)) for role in ROLES)
