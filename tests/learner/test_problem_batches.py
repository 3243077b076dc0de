"""Updates of so many problems, and a reference that is renewed with each batch of problems."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.errors import ConfigError
from flow_dpo.learner.pool import SHARED, Queue, make_pools
from flow_dpo.learner.settings import LearnerSettings, PassSettings, ReferenceSettings
from tests.learner.test_learner import learner as made_learner
from tests.learner.test_learner import pairs
from tests.learner.test_pool import word


def test_an_update_may_be_of_so_many_problems_with_examples() -> None:
    """Problems a to d have 2, 1, 3 and 1 examples: two problems an update, whatever calls they came in."""
    made = [replace(word(0, yes=True), problem_id=name) for name in "aabcccd"]
    pool = Queue(size=2, of_problems=True, updates=2)
    pool.take(made[:2])
    assert pool.batch() == []  # one problem
    pool.take(made[2:])
    for _ in range(2):  # each batch twice
        assert pool.batch() == made[:3]
        pool.learned()
    assert pool.batch() == made[3:]
    pool.give_up()
    assert (pool.batch(), pool.examples) == ([], [])
    learner = LearnerSettings(passes=PassSettings(problems_per_update=3))
    assert make_pools(learner, 0)[SHARED] == Queue(size=3, of_problems=True)
    with pytest.raises(ConfigError, match="problems_per_update"):
        PassSettings(problems_per_update=-1)


def test_a_snapshot_reference_is_renewed_with_each_batch_of_problems() -> None:
    """Two updates of a call have the policy as it was when the call began; the next call has that policy's."""
    student = made_learner(reference=ReferenceSettings(kind="snapshot", each_batch=True), examples_per_update=2)
    before = [weight.clone() for weight in student.policy.weights("answer")]
    student.update(Dpo(), pairs()[:4])
    assert student.version == 2
    assert all(map(torch.equal, before, student.policy.weights("reference_answer")))
    learned = [weight.clone() for weight in student.policy.weights("answer")]
    student.update(Dpo(), pairs()[:2])
    assert all(map(torch.equal, learned, student.policy.weights("reference_answer")))
    with pytest.raises(ConfigError, match="expected each_batch of 0, since only a snapshot moves, found True"):
        ReferenceSettings(each_batch=True)
