"""Reasoning Paths Optimization's presets: branches on the first right path (arXiv 2410.10858).

The paper's values are those of sections 3 and 4 and of the authors' code (DAMO-NLP-SG/reasoning-paths-optimization,
commit 94c0fdd): temperature 0.5 and answers of 512 tokens (inference.py: `make_kwargs`, `max_output_length`), 10
rollouts and 10 completions per state (branching.py: `num_sample`), up to 8 pairs per question, pairs of 0.9 times 1,024
tokens or more left out (run_orpo.py: `ReasonPathsCollator`), 8 questions with pairs per update, rate 5e-5 after 100
updates, then a cosine to 0 over 3 epochs (2,803 updates if all of GSM8K's 7,473 questions have pairs), LoRA on two
projections of its library's default rank 8 (scripts/train_reason_paths.sh), lambda 0.3 of 0.1 to 0.3. The other presets
have 8 rollouts and draw 4 completions per state; their updates count pairs.
"""

from __future__ import annotations

from flow_dpo.core.recipe import Recipe
from flow_dpo.learner.settings import LearnerSettings, LoraSettings, PassSettings
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
    Preset,
)
from flow_dpo.recipes.single import Single

TEMPERATURE = 0.5


def _recipe(flow: Single, explore: ReferencePath) -> Recipe:
    credit = BranchPairs(max_pairs=8, max_pair_tokens=922)
    return Recipe(flow=flow, explore=explore, credit=credit, objective=OddsRatio(exploration_weight=0.3))


PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=_recipe(
            Single(max_tokens=512), ReferencePath(num_rollouts=10, num_completions=10, temperature=TEMPERATURE)
        ),
        lora=LoraSettings(lora_r=8, lora_alpha=16, lora_target_modules=("q_proj", "v_proj")),
        learner=LearnerSettings(
            learning_rate=5e-5,
            passes=PassSettings(problems_per_update=8),
            warmup_updates=100,
            decay_after=2_803,
            schedule="cosine",
        ),
        problems_per_batch=8,
    ),
    "chat": CHAT.preset(
        _recipe(Single(max_tokens=512), ReferencePath(num_rollouts=8, num_completions=4, temperature=TEMPERATURE))
    ),
    "small": SMALL.preset(
        _recipe(SMALL_SINGLE, ReferencePath(num_rollouts=8, num_completions=4, temperature=TEMPERATURE))
    ),
    "seed": SEED.preset(
        _recipe(
            SEED_SINGLE,
            ReferencePath(num_rollouts=8, num_completions=4, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P),
        )
    ),
}
