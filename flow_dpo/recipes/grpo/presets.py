"""GRPO's presets: groups of rollouts, each credited against its group (DeepSeekMath, arXiv 2402.03300).

The paper's values are those of section 4.2: 64 answers per question of at most 1,024 tokens, KL coefficient 0.04, rate
1e-6 for all weights, a batch of 1,024 answers, one update per batch. Clip range: not stated (PPO's 0.2).

Groups that are all right or all wrong make no example, so a batch is rarely full. It is learned at once, by
`short_batch` "learn": at the paper's preset this is one update per batch, in which every ratio is 1 up to rounding.
"""

from __future__ import annotations

from flow_dpo.core.explore import Group
from flow_dpo.learner.settings import LearnerSettings, PassSettings
from flow_dpo.recipes.group_advantages import GroupAdvantages
from flow_dpo.recipes.groups import LORA, fitted, of_group
from flow_dpo.recipes.policy_gradient import ClippedPolicyGradient
from flow_dpo.recipes.scales import Preset
from flow_dpo.recipes.single import Single

_CREDIT, _OBJECTIVE = GroupAdvantages(), ClippedPolicyGradient(kl_coef=0.04)

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=of_group(_CREDIT, _OBJECTIVE, Single(max_tokens=1024), Group(num_rollouts=64)),
        lora=LORA,
        learner=LearnerSettings(learning_rate=1e-6, examples_per_update=1024, passes=PassSettings(short_batch="learn")),
        problems_per_batch=16,
    ),
    **fitted(_CREDIT, _OBJECTIVE, passes=PassSettings(short_batch="learn")),
}
