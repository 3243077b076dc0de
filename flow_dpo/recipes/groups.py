"""Presets of the recipes that sample a group of whole answers to a question and weigh them by their rewards.

They have the same flow, exploration and scales; a recipe says which credit, which objective, and how its learner cuts a
batch into updates:

    fitted(GroupAdvantages(), ClippedPolicyGradient(kl_coef=0.04), passes=PassSettings(short_batch="learn"))

Invariant: what is stated here is the sizes of the models, and nothing of a method.
"""

from __future__ import annotations

from typing import Any

from flow_dpo.core.explore import Group
from flow_dpo.core.recipe import Recipe
from flow_dpo.learner.settings import LoraSettings
from flow_dpo.recipes.group_advantages import GroupAdvantages
from flow_dpo.recipes.policy_gradient import ClippedPolicyGradient
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

LORA = LoraSettings(lora_r=8, lora_alpha=8)
"""Of the papers' presets: these papers train all weights, and state no adapter."""
NUM_ROLLOUTS = 8
"""Answers to a question at the three sizes of model: groups of 64 are for machines that can afford them."""


def of_group(credit: GroupAdvantages, objective: ClippedPolicyGradient, flow: Single, explore: Group) -> Recipe:
    """One recipe of the family."""
    return Recipe(flow=flow, explore=explore, credit=credit, objective=objective)


def fitted(
    credit: GroupAdvantages, objective: ClippedPolicyGradient, *, num_rollouts: int = NUM_ROLLOUTS, **learner: Any
) -> dict[str, Preset]:
    """The presets of three sizes of model, with what the recipe's learner has of its own."""
    chat = Group(num_rollouts=num_rollouts)
    small = Group(num_rollouts=num_rollouts, temperature=SMALL_TEMPERATURE)
    seed = Group(num_rollouts=num_rollouts, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P)
    return {
        "chat": CHAT.preset(of_group(credit, objective, Single(max_tokens=1024), chat), **learner),
        # Logits over the temperature of sampling, as TRL, verl and OpenRLHF have it.
        "small": SMALL.preset(
            of_group(credit, objective, SMALL_SINGLE, small), logit_temperature=SMALL_TEMPERATURE, **learner
        ),
        "seed": SEED.preset(of_group(credit, objective, SEED_SINGLE, seed), **learner),
    }
