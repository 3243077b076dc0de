"""Iterative RPO's presets (Pang et al., arXiv 2404.19733): mostly settings of existing parts.

`Group` samples, `Dpo` with `sft_weight` is the loss, `learner.reference.each_batch` renews the reference; only the
choice of pairs is its own. The paper's values are those of section 3.1, for GSM8K: 30 answers per question at
temperature 0.8 (1.3 in its third and fourth iteration), 10 pairs per question, beta 0.1, alpha 1, batches of 16 pairs,
rate 7e-7 for all weights. On MATH (section 3.3): 20 answers, 1.0 in the third iteration, 15 pairs; on ARC (section
3.2): 30, 1.3 and 20. Not stated: top-p, lengths, warm-up. Its iterations cover the whole training set, ours a batch.
"""

from __future__ import annotations

from dataclasses import replace

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.explore import Group
from flow_dpo.core.recipe import Recipe
from flow_dpo.learner.settings import LearnerSettings, LoraSettings, ReferenceSettings
from flow_dpo.recipes.iterative_rpo.credit import CycledPairs
from flow_dpo.recipes.scales import (
    CHAT,
    SEED,
    SEED_SINGLE,
    SEED_TEMPERATURE,
    SEED_TOP_P,
    SMALL,
    SMALL_SINGLE,
    Preset,
    Scale,
)
from flow_dpo.recipes.single import Single

TEMPERATURE = 0.8
RENEWED = ReferenceSettings(kind="snapshot", each_batch=True)


def _recipe(flow: Single, explore: Group) -> Recipe:
    return Recipe(
        flow=flow, explore=explore, credit=CycledPairs(num_pairs=10), objective=Dpo(beta=0.1, sft_weight=1.0)
    )  # fmt: skip


def _preset(scale: Scale, recipe: Recipe) -> Preset:
    """The recipe at a scale, with a reference that is renewed with each batch of problems."""
    return replace(scale.preset(recipe), learner=replace(scale.learner, reference=RENEWED))


PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=_recipe(Single(), Group(num_rollouts=30, temperature=TEMPERATURE)),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(learning_rate=7e-7, examples_per_update=16, reference=RENEWED),
        problems_per_batch=1024,
    ),
    "chat": _preset(CHAT, _recipe(Single(), Group(num_rollouts=8, temperature=TEMPERATURE))),
    "small": _preset(SMALL, _recipe(SMALL_SINGLE, Group(num_rollouts=8, temperature=TEMPERATURE))),
    "seed": _preset(SEED, _recipe(SEED_SINGLE, Group(num_rollouts=8, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P))),
}
