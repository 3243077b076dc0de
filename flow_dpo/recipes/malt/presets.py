"""MALT's presets: a tree of turns by three roles, and what each role did well (arXiv 2412.01928).

The paper's values are those of sections 4 and 5.1 and of appendix A.9; no code by the authors is known. They are 3
completions of every turn (27 answers per question), a threshold of 0.5, temperature 0.3 for Llama-3.1-8B-Instruct,
likelihood for all roles and pairs for those that verify and refine, LoRA, batches of 8 for the likelihood, beta 0.2.
Not stated: rates (except for a "multiplier" of 0.1), rank, lengths, DPO's batch, top-p.
"""

from __future__ import annotations

from flow_dpo.core.recipe import Recipe
from flow_dpo.data.seed import REOPEN_WORDS, STOP_PREFIX, STOP_SUFFIX
from flow_dpo.learner.settings import LearnerSettings, LoraSettings
from flow_dpo.recipes.full_tree import FullTree
from flow_dpo.recipes.malt.credit import ThresholdedValues
from flow_dpo.recipes.malt.flow import GenerateVerifyRefine, RefinePrompts
from flow_dpo.recipes.pair_objectives import SmoothedDpo
from flow_dpo.recipes.scales import (
    CHAT,
    SEED,
    SEED_TEMPERATURE,
    SEED_TOKENS,
    SEED_TOP_P,
    SMALL,
    SMALL_TOKENS,
    WORKED_EXAMPLES,
    Preset,
)

TEMPERATURE = 0.3


def _recipe(flow: GenerateVerifyRefine, explore: FullTree) -> Recipe:
    return Recipe(flow=flow, explore=explore, credit=ThresholdedValues(), objective=SmoothedDpo(beta=0.2))


PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=_recipe(GenerateVerifyRefine(), FullTree(branch_factors=(3, 3, 3), temperature=TEMPERATURE)),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(learning_rate=5e-6, examples_per_update=8),
        problems_per_batch=32,
    ),
    "chat": CHAT.preset(_recipe(GenerateVerifyRefine(), FullTree(branch_factors=(3, 3, 3), temperature=TEMPERATURE))),
    "small": SMALL.preset(
        _recipe(
            GenerateVerifyRefine(
                max_tokens=SMALL_TOKENS, critique_tokens=64, prompts=RefinePrompts(examples=WORKED_EXAMPLES)
            ),
            FullTree(branch_factors=(3, 3, 3), temperature=TEMPERATURE),
        )
    ),
    "seed": SEED.preset(
        _recipe(
            GenerateVerifyRefine(
                max_tokens=SEED_TOKENS,
                critique_tokens=4,
                # The seed's critique is a word; the only refinement that it knows is a second attempt after the first.
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
