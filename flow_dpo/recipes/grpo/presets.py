"""GRPO's presets: groups of rollouts, each credited against its group (DeepSeekMath, arXiv 2402.03300).

The paper's are section 4.2's: 64 answers a question of at most 1,024 tokens, KL coefficient 0.04, rate 1e-6 for all
weights, a batch of 1,024 answers, one update a batch. Clip range: not stated (PPO's 0.2). LoRA: not stated. Groups of
64 are for machines that can afford them: the other presets have 8.
"""

from __future__ import annotations

from flow_dpo.core.explore import Group
from flow_dpo.core.recipe import Recipe
from flow_dpo.learner.settings import LearnerSettings, LoraSettings
from flow_dpo.recipes.grpo.advantages import GroupAdvantages
from flow_dpo.recipes.grpo.policy_gradient import ClippedPolicyGradient
from flow_dpo.recipes.scales import (
    CHAT,
    SEED,
    SEED_SINGLE,
    SEED_TEMPERATURE,
    SEED_TOP_P,
    SMALL,
    SMALL_SINGLE,
    SMALL_TEMPERATURE,
    Preset,
)
from flow_dpo.recipes.single import Single


def _recipe(flow: Single, explore: Group) -> Recipe:
    return Recipe(
        flow=flow,
        explore=explore,
        credit=GroupAdvantages(),
        objective=ClippedPolicyGradient(clip_range=0.2, kl_coef=0.04),
    )


PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=_recipe(Single(max_tokens=1024), Group(num_rollouts=64)),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(learning_rate=1e-6, examples_per_update=1024),
        problems_per_batch=16,
    ),
    "chat": CHAT.preset(_recipe(Single(max_tokens=1024), Group(num_rollouts=8))),
    "small": SMALL.preset(_recipe(SMALL_SINGLE, Group(num_rollouts=8, temperature=SMALL_TEMPERATURE))),
    "seed": SEED.preset(_recipe(SEED_SINGLE, Group(num_rollouts=8, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P))),
}
