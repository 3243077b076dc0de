"""Rejection-sampling fine-tuning's presets: expert iteration, the plain control.

Draws a question: STaR (arXiv 2203.14465) 1, RFT (2308.01825) 100, at temperature 0.7 in the authors' code
(OFA-Sys/gsm8k-ScRel), ReST-EM (2312.06585) 32; one batch of the stream is one round. LoRA, its rate and the 4 draws
here: not stated there.
"""

from __future__ import annotations

from flow_dpo.core.explore import Group
from flow_dpo.core.recipe import Recipe
from flow_dpo.learner.settings import LearnerSettings, LoraSettings
from flow_dpo.recipes.likelihood import Nll
from flow_dpo.recipes.rejection_sampling.credit import CorrectRollouts
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
    return Recipe(flow=flow, explore=explore, credit=CorrectRollouts(), objective=Nll())


PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=_recipe(Single(), Group(num_rollouts=4)),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(learning_rate=2e-5, examples_per_update=32),
        problems_per_batch=32,
    ),
    "chat": CHAT.preset(_recipe(Single(), Group(num_rollouts=4))),
    "small": SMALL.preset(_recipe(SMALL_SINGLE, Group(num_rollouts=4, temperature=SMALL_TEMPERATURE))),
    "seed": SEED.preset(_recipe(SEED_SINGLE, Group(num_rollouts=4, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P))),
}
