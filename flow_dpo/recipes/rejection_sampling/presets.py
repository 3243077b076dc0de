"""Rejection-sampling fine-tuning's presets: expert iteration, the plain control.

The paper's values are RFT's (arXiv 2308.01825; the authors' code, OFA-Sys/gsm8k-ScRel: train_7b.sh,
group_sample_7b_13b.sh, single_inference_7b_13b.py): 100 solutions per question at temperature 0.7 and of at most 256
tokens, every distinct right one kept, rate 2e-5 for all weights, batches of 4 x 4 x 8. LoRA: none. STaR (2203.14465)
draws one solution; ReST-EM (2312.06585) draws 32 and keeps 10. The other presets draw 4 and keep one: the plain
control, with as many tokens as other recipes.
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


def _recipe(flow: Single, explore: Group, max_per_problem: int = 1) -> Recipe:
    return Recipe(flow=flow, explore=explore, credit=CorrectRollouts(max_per_problem=max_per_problem), objective=Nll())


PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=_recipe(Single(max_tokens=256), Group(num_rollouts=100, temperature=0.7), max_per_problem=0),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(learning_rate=2e-5, examples_per_update=128),
        problems_per_batch=32,
    ),
    "chat": CHAT.preset(_recipe(Single(), Group(num_rollouts=4))),
    "small": SMALL.preset(_recipe(SMALL_SINGLE, Group(num_rollouts=4, temperature=SMALL_TEMPERATURE))),
    "seed": SEED.preset(_recipe(SEED_SINGLE, Group(num_rollouts=4, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P))),
}
