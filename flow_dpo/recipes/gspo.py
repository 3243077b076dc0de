"""GSPO (arXiv 2507.18071): GRPO with a probability ratio, and a clip, of whole answers.

A setting of GRPO: the ratio of an answer is the geometric mean of its tokens' ratios, so the clip keeps or drops the
whole answer. The paper's values are those of section 5.1: clip 3e-4 below and 4e-4 above, a batch in four mini-batches.
Not stated there, and taken from volcengine/verl b178a3cd5 (examples/gspo_trainer/run_qwen3_32b_gspo_npu.sh): no KL
term, 16 answers of at most 16,384 tokens to each of 256 questions, rate 1e-6 after 10 warm-up updates.
"""

from __future__ import annotations

from flow_dpo.core.explore import Group
from flow_dpo.learner.settings import LearnerSettings, PassSettings
from flow_dpo.recipes.group_advantages import GroupAdvantages
from flow_dpo.recipes.groups import LORA, fitted, of_group
from flow_dpo.recipes.policy_gradient import ClippedPolicyGradient
from flow_dpo.recipes.scales import Preset
from flow_dpo.recipes.single import Single

_CREDIT = GroupAdvantages()
_OBJECTIVE = ClippedPolicyGradient(ratio_level="sequence", clip_low=3e-4, clip_high=4e-4, kl_coef=0.0)

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=of_group(_CREDIT, _OBJECTIVE, Single(max_tokens=16_384), Group(num_rollouts=16)),
        lora=LORA,
        learner=LearnerSettings(
            learning_rate=1e-6, warmup_updates=10, examples_per_update=0, passes=PassSettings(minibatches=4)
        ),
        problems_per_batch=256,
    ),
    **fitted(_CREDIT, _OBJECTIVE, examples_per_update=0, passes=PassSettings(minibatches=4)),
}
