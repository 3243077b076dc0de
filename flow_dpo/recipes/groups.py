"""Presets shared by the recipes that sample a group of whole answers per question and credit them by their rewards.

These recipes share their flow, exploration and scales. Each one states its credit, its objective, and how its learner
cuts a batch into updates:

    fitted(GroupAdvantages(), ClippedPolicyGradient(kl_coef=0.04), passes=PassSettings(short_batch="learn"))

Invariant: this file states values for the sizes of model, and nothing that belongs to a method.
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
"""For the papers' presets: these papers train all weights and state no adapter."""
NUM_ROLLOUTS = 8
"""Answers per question for the three sizes of model; groups of 64 are for machines that can afford them."""


def of_group(credit: GroupAdvantages, objective: ClippedPolicyGradient, flow: Single, explore: Group) -> Recipe:
    """A recipe of this family."""
    return Recipe(flow=flow, explore=explore, credit=credit, objective=objective)


def fitted(
    credit: GroupAdvantages, objective: ClippedPolicyGradient, *, num_rollouts: int = NUM_ROLLOUTS, **learner: Any
) -> dict[str, Preset]:
    """The presets for the three sizes of model; `learner` holds the recipe's own learner settings."""
    chat = Group(num_rollouts=num_rollouts)
    small = Group(num_rollouts=num_rollouts, temperature=SMALL_TEMPERATURE)
    seed = Group(num_rollouts=num_rollouts, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P)
    return {
        "chat": CHAT.preset(of_group(credit, objective, Single(max_tokens=1024), chat), **learner),
        # Logits are divided by the sampling temperature, as in TRL, verl and OpenRLHF.
        "small": SMALL.preset(
            of_group(credit, objective, SMALL_SINGLE, small), logit_temperature=SMALL_TEMPERATURE, **learner
        ),
        "seed": SEED.preset(of_group(credit, objective, SEED_SINGLE, seed), **learner),
    }
