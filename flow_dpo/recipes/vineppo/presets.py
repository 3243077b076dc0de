"""VinePPO's presets: paths, and Monte-Carlo values of the states on them (arXiv 2410.01679).

The paper's are those of sections 4 and 5 and the authors' code (McGill-NLP/VinePPO, its configuration for
RhoMath-1.1B): 64 questions with 8 answers each an iteration, 9 completions from a state, temperature 0.6, top-p 0.9, at
most 1,024 tokens; clip 0.2, k3 in the loss with 1e-4 and cut at 10; rate 1e-6 for all weights, gradients clipped at 1,
2 epochs over mini-batches of 64 answers (about 500 steps). LoRA: not stated. The other presets draw 4 from a state.
"""

from __future__ import annotations

from flow_dpo.core.recipe import Recipe
from flow_dpo.learner.settings import LearnerSettings, LoraSettings
from flow_dpo.recipes.grpo.policy_gradient import ClippedPolicyGradient
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
from flow_dpo.recipes.vineppo.credit import StepAdvantages
from flow_dpo.recipes.vineppo.explore import StepRollouts


def _recipe(flow: Single, explore: StepRollouts) -> Recipe:
    return Recipe(
        flow=flow,
        explore=explore,
        credit=StepAdvantages(),
        objective=ClippedPolicyGradient(clip_range=0.2, kl_coef=1e-4, max_kl=10.0),
    )


PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=_recipe(
            Single(max_tokens=1024), StepRollouts(num_rollouts=8, num_completions=9, temperature=0.6, top_p=0.9)
        ),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(learning_rate=1e-6, examples_per_update=512, epochs_per_batch=2),
        problems_per_batch=64,
    ),
    "chat": CHAT.preset(
        _recipe(Single(max_tokens=1024), StepRollouts(num_rollouts=8, num_completions=4, temperature=0.6, top_p=0.9))
    ),
    "small": SMALL.preset(
        _recipe(SMALL_SINGLE, StepRollouts(num_rollouts=8, num_completions=4, temperature=0.6, top_p=0.9))
    ),
    "seed": SEED.preset(
        _recipe(
            SEED_SINGLE,
            StepRollouts(num_rollouts=8, num_completions=4, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P),
        )
    ),
}
