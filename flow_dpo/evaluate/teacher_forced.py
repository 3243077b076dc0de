"""Teacher-forced log-probabilities of completions under one role's adapter, as the learner computes them.

    teacher_forced(policy, "answer", [(request, completion), ...])      [[-0.01, -0.3], ...], one list per completion

No engine samples or scores here: an engine only has log-probabilities of tokens that it samples. Invariant: the results
are in the order of the completions, one value per token, in nats.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flow_dpo.core.types import Role
from flow_dpo.learner.gradients import Gradients
from flow_dpo.learner.policy import Policy
from flow_dpo.learner.settings import RowSettings
from flow_dpo.models.drift_causes import PromptedCompletion, inputs
from flow_dpo.models.packing import padded_rows


def teacher_forced(policy: Policy, role: Role, completions: Sequence[PromptedCompletion]) -> list[list[float]]:
    """The log-probability of each completion's tokens after its prompt.

    Raises `ModelError` if they cannot be computed correctly for this model.
    """
    settings = RowSettings(packed=False)
    computed = Gradients(policy, settings, {})
    computed.check()
    found: list[list[float]] = [[] for _ in completions]
    with torch.no_grad(), policy.using(role):
        for row, _ in padded_rows([[inputs(one)] for one in completions], settings.most):
            for index, values in zip(row, computed.logprobs([completions[at] for at in row])(), strict=True):
                found[index] = values.tolist()
    return found
