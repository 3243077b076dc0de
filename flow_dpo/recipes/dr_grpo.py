"""Dr. GRPO (arXiv 2503.20783): GRPO without the two divisions that favour some answers over others.

A setting of GRPO. Advantages are not divided by the group's standard deviation: the division favours questions that are
nearly always or never answered right. An answer's tokens are summed and divided by a constant: dividing by the answer's
own length favours long wrong answers. The paper's values are those of its authors' code (sail-sg/understand-r1-zero
dfca49d, examples/qwen2.5-math-7b.sh): 8 answers to each of 128 questions, updates of 128 answers (8 per batch), at most
3,000 tokens, also the constant (train_zero_math.py), rate 1e-6, no KL term, clip 0.2 (oat's default).
"""

from __future__ import annotations

from flow_dpo.core.explore import Group
from flow_dpo.learner.settings import LearnerSettings, PassSettings
from flow_dpo.recipes.group_advantages import GroupAdvantages
from flow_dpo.recipes.groups import LORA, fitted, of_group
from flow_dpo.recipes.policy_gradient import ClippedPolicyGradient
from flow_dpo.recipes.scales import Preset
from flow_dpo.recipes.single import Single

_CREDIT = GroupAdvantages(scale=False)
_OBJECTIVE = ClippedPolicyGradient(reduction="constant", kl_coef=0.0)

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=of_group(_CREDIT, _OBJECTIVE, Single(max_tokens=3000), Group(num_rollouts=8)),
        lora=LORA,
        learner=LearnerSettings(learning_rate=1e-6, examples_per_update=128, passes=PassSettings(short_batch="learn")),
        problems_per_batch=128,
    ),
    **fitted(_CREDIT, _OBJECTIVE, passes=PassSettings(short_batch="learn")),
}
