"""VinePPO's presets: paths, and Monte-Carlo values of the states on them (arXiv 2410.01679).

The values of sections 4 and 5 and of the authors' code (McGill-NLP/VinePPO efe7228) for RhoMath-1.1B on MATH:

- configs/polIter_rho1bSft2_ppo_MATH.jsonnet: 512 episodes per iteration, 8 for each of 64 questions, 1,000 iterations;
  temperature 0.6, top-p 0.9, at most 1,024 tokens; episode_generators/9rolls.jsonnet: 9 completions per state
- configs/trainers/ppo_MATH.jsonnet: updates of 64 episodes, 2 epochs, so 16 per iteration and 16,000 in all; rate 1e-6,
  warm-up over 0.03 of them, then linear to 0 (configs/deepspeed/lr_scheduler.jsonnet); gradients clipped at 1; clip 0.2
- src/treetune/trainers/ppo_trainer.py: the policy term is a mean over all tokens, KL (k3 with 1e-4, a token's at most
  10) a sum over an episode's; a mini-batch whose mean ratio is above 10 is skipped; the logits of
  new, old and reference policy are divided by the temperature
- src/treetune/tasks/math_extract_steps_inplace.py: parts of more than 100 characters are cut

LoRA: not stated. The other presets draw 4 completions per state, and make 8 updates per batch.
"""

from __future__ import annotations

from typing import Any

from flow_dpo.core.recipe import Recipe
from flow_dpo.learner.settings import LearnerSettings, LoraSettings, PassSettings
from flow_dpo.recipes.policy_gradient import ClippedPolicyGradient
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

_OBJECTIVE = ClippedPolicyGradient(
    reduction="tokens", kl_coef=1e-4, kl_reduction="sum", max_kl=10.0, max_ratio=10.0
)  # fmt: skip
_PARTS: dict[str, Any] = {"examples_per_update": 0, "passes": PassSettings(minibatches=8)}
"""Steps are examples, and their number varies with the batch: an eighth of them is about an eighth of its answers."""


def _recipe(flow: Single, *, num_completions: int, temperature: float, top_p: float) -> Recipe:
    explore = StepRollouts(
        num_rollouts=8, num_completions=num_completions, temperature=temperature, top_p=top_p, max_step_chars=100
    )
    return Recipe(flow=flow, explore=explore, credit=StepAdvantages(), objective=_OBJECTIVE)


PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=_recipe(Single(max_tokens=1024), num_completions=9, temperature=0.6, top_p=0.9),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(
            learning_rate=1e-6,
            warmup_updates=480,
            decay_after=16_000,
            schedule="linear",
            logit_temperature=0.6,
            examples_per_update=0,
            passes=PassSettings(minibatches=8, epochs_per_batch=2),
        ),
        problems_per_batch=64,
    ),
    "chat": CHAT.preset(
        _recipe(Single(max_tokens=1024), num_completions=4, temperature=0.6, top_p=0.9),
        logit_temperature=0.6,
        **_PARTS,
    ),
    "small": SMALL.preset(
        _recipe(SMALL_SINGLE, num_completions=4, temperature=0.6, top_p=0.9), logit_temperature=0.6, **_PARTS
    ),
    "seed": SEED.preset(
        _recipe(SEED_SINGLE, num_completions=4, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P), **_PARTS
    ),
}
