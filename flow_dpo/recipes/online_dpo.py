"""Whole-answer online DPO (OAIF, arXiv 2402.04792): two answers per question, compared by the verifier.

This is the single-model control. All four parts are the core's own; this file has their values. The paper's: beta 0.1,
temperature 0.9, rate 5e-7 for all weights, batches of 128 (from a digest of its settings and TRL's OnlineDPOConfig; the
paper itself was not read). Invariant: two independent rollouts per problem at every scale; a tie makes no pair.
"""

from __future__ import annotations

from flow_dpo.core.credit import OutcomePairs
from flow_dpo.core.dpo import Dpo
from flow_dpo.core.explore import Group
from flow_dpo.core.recipe import Recipe
from flow_dpo.learner.settings import LearnerSettings, LoraSettings
from flow_dpo.recipes.scales import (
    CHAT,
    SEED,
    SEED_SINGLE,
    SEED_TEMPERATURE,
    SEED_TOP_P,
    SMALL,
    SMALL_SINGLE,
    Preset,
)
from flow_dpo.recipes.single import Single


def _recipe(flow: Single, explore: Group) -> Recipe:
    return Recipe(flow=flow, explore=explore, credit=OutcomePairs(), objective=Dpo(beta=0.1))


PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=_recipe(Single(), Group(num_rollouts=2, temperature=0.9)),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(learning_rate=5e-7, examples_per_update=128),
        problems_per_batch=128,
    ),
    "chat": CHAT.preset(_recipe(Single(), Group(num_rollouts=2, temperature=0.9))),
    "small": SMALL.preset(_recipe(SMALL_SINGLE, Group(num_rollouts=2, temperature=0.9))),
    "seed": SEED.preset(_recipe(SEED_SINGLE, Group(num_rollouts=2, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P))),
}
