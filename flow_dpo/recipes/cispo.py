"""CISPO (MiniMax-M1, arXiv 2506.13585): a clipped ratio as a fixed weight, so every token keeps its gradient.

A setting of DAPO: a token's gain is its clipped ratio, held fixed, times advantage times log-probability. Section 3.1
of the paper states equation 4, GRPO's advantages, no lower limit, no KL term, DAPO's dynamic sampling and length
penalty, and 16 updates per batch; it compares with DAPO on DAPO's model and data. It does not state the upper limit,
the batch or the rate, and the authors published no code. Used here: a ratio of at most 5 (ScaleRL, arXiv 2510.13786, as
in huggingface/trl 0167b7d, docs/source/paper_index.md), and DAPO's groups, lengths, batch and rate.
"""

from __future__ import annotations

from flow_dpo.core.explore import Group
from flow_dpo.learner.settings import LearnerSettings, PassSettings
from flow_dpo.recipes.group_advantages import GroupAdvantages
from flow_dpo.recipes.groups import LORA, fitted, of_group
from flow_dpo.recipes.policy_gradient import ClippedPolicyGradient
from flow_dpo.recipes.scales import Preset
from flow_dpo.recipes.single import Single

_CREDIT = GroupAdvantages(overlong_share=0.2)
_OBJECTIVE = ClippedPolicyGradient(surrogate="weight", clip_low=1.0, clip_high=4.0, reduction="tokens", kl_coef=0.0)

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=of_group(_CREDIT, _OBJECTIVE, Single(max_tokens=20_480), Group(num_rollouts=16)),
        lora=LORA,
        learner=LearnerSettings(
            learning_rate=1e-6, examples_per_update=512, passes=PassSettings(minibatches=16, short_batch="fill")
        ),
        problems_per_batch=512,
    ),
    **fitted(_CREDIT, _OBJECTIVE, passes=PassSettings(minibatches=4, short_batch="fill")),
}
