"""Reasoning Paths Optimization's presets: branches on the first right path (arXiv 2410.10858).

The paper's are those of sections 3 and 4 and the authors' code (DAMO-NLP-SG/reasoning-paths-optimization): 10 rollouts,
10 completions from a state, lambda 0.3 of 0.1 to 0.3, up to 8 pairs of each question, 8 questions an update, rate 5e-5
after 100 updates, answers of at most 1,024 tokens in all, LoRA on two projections of its library's default rank 8.
Temperature: not stated in the script. The other presets have 8 rollouts and draw 4 from a state.
"""

from __future__ import annotations

from flow_dpo.core.recipe import Recipe
from flow_dpo.learner.settings import LearnerSettings, LoraSettings
from flow_dpo.recipes.rpo.credit import BranchPairs
from flow_dpo.recipes.rpo.explore import ReferencePath
from flow_dpo.recipes.rpo.objective import OddsRatio
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


def _recipe(flow: Single, explore: ReferencePath) -> Recipe:
    return Recipe(
        flow=flow, explore=explore, credit=BranchPairs(max_pairs=8), objective=OddsRatio(exploration_weight=0.3)
    )  # fmt: skip


PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=_recipe(Single(max_tokens=1024), ReferencePath(num_rollouts=10, num_completions=10)),
        lora=LoraSettings(lora_r=8, lora_alpha=16, lora_target_modules=("q_proj", "v_proj")),
        learner=LearnerSettings(learning_rate=5e-5, examples_per_update=0, warmup_updates=100),
        problems_per_batch=8,
    ),
    "chat": CHAT.preset(_recipe(Single(max_tokens=1024), ReferencePath(num_rollouts=8, num_completions=4))),
    "small": SMALL.preset(
        _recipe(SMALL_SINGLE, ReferencePath(num_rollouts=8, num_completions=4, temperature=SMALL_TEMPERATURE))
    ),
    "seed": SEED.preset(
        _recipe(
            SEED_SINGLE,
            ReferencePath(num_rollouts=8, num_completions=4, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P),
        )
    ),
}
