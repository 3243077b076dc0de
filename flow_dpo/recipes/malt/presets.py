"""MALT's presets: a tree of three roles, and what each of them did well (arXiv 2412.01928).

Abstract and summaries of the paper could be read, no code of the authors is known. The method is theirs: a full tree of
the three roles' turns, values by the mean of those after them, a threshold. Its numbers are unchecked, those of "paper"
too: three completions of every turn (27 answers a question), the threshold of 0.5, temperatures, lengths, rates and
batches, the weight of DPO, and which roles learn by pairs.
"""

from __future__ import annotations

from flow_dpo.core.recipe import Recipe
from flow_dpo.data.seed import REOPEN_WORDS, STOP_PREFIX, STOP_SUFFIX
from flow_dpo.learner.settings import LearnerSettings, LoraSettings
from flow_dpo.recipes.full_tree import FullTree
from flow_dpo.recipes.malt.credit import ThresholdedValues
from flow_dpo.recipes.malt.flow import GenerateVerifyRefine, RefinePrompts
from flow_dpo.recipes.malt.objective import DpoAndLikelihood
from flow_dpo.recipes.scales import (
    CHAT,
    SEED,
    SEED_TEMPERATURE,
    SEED_TOKENS,
    SEED_TOP_P,
    SMALL,
    SMALL_TEMPERATURE,
    SMALL_TOKENS,
    WORKED_EXAMPLES,
    Preset,
)


def _recipe(flow: GenerateVerifyRefine, explore: FullTree) -> Recipe:
    return Recipe(flow=flow, explore=explore, credit=ThresholdedValues(), objective=DpoAndLikelihood())


PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=_recipe(GenerateVerifyRefine(), FullTree(branch_factors=(3, 3, 3))),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(learning_rate=5e-6, examples_per_update=32),
        problems_per_batch=32,
    ),
    "chat": CHAT.preset(_recipe(GenerateVerifyRefine(), FullTree(branch_factors=(3, 3, 3)))),
    "small": SMALL.preset(
        _recipe(
            GenerateVerifyRefine(
                max_tokens=SMALL_TOKENS, critique_tokens=64, prompts=RefinePrompts(examples=WORKED_EXAMPLES)
            ),
            FullTree(branch_factors=(3, 3, 3), temperature=SMALL_TEMPERATURE),
        )
    ),
    "seed": SEED.preset(
        _recipe(
            GenerateVerifyRefine(
                max_tokens=SEED_TOKENS,
                critique_tokens=4,
                # Its critique is a word; what it knows of refinement is a second attempt behind the first.
                prompts=RefinePrompts(
                    generate_system="",
                    verify_system="",
                    verify_user=STOP_PREFIX + "{solution}" + STOP_SUFFIX,
                    refine_system="",
                    refine_user="{question}",
                    refine_start="{solution}" + REOPEN_WORDS,
                ),
            ),
            FullTree(branch_factors=(3, 3, 3), temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P),
        )
    ),
}
