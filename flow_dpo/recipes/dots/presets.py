"""DOTS' presets: a planner that learns which way of solving suits a problem (arXiv 2410.03864).

The paper's values: 12 ways (6 without programs), each sampled 4 times at temperature 0.4, 2 rounds, 8 and then 3 ways
kept; what is verified as incorrect is answered again; cross-entropy, batches of 64. The authors' code (MurongYue/DOTS
at 239e7de, training_config/config_llama3_8b_sft_v2.yaml): 2e-5 for all weights, 60 warm-up updates, cosine down to
2e-6, 2 epochs, batches of 32; it samples each way twice at 0.8 and the last 3 ways once more
(src/LLM_reasoning_workflow_general.py). LoRA: not stated. The presets "small" and "seed" search one round.
"""

from __future__ import annotations

from flow_dpo.core.recipe import Recipe
from flow_dpo.learner.settings import LearnerSettings, LoraSettings
from flow_dpo.recipes.dots.credit import BestTrajectory
from flow_dpo.recipes.dots.explore import TrajectorySearch
from flow_dpo.recipes.dots.flow import ModuleWords, Planned
from flow_dpo.recipes.likelihood import Nll
from flow_dpo.recipes.scales import (
    CHAT,
    SEED,
    SEED_PROMPTS,
    SEED_TEMPERATURE,
    SEED_TOKENS,
    SEED_TOP_P,
    SMALL,
    SMALL_PROMPTS,
    SMALL_TOKENS,
    Preset,
)


def _recipe(flow: Planned, explore: TrajectorySearch) -> Recipe:
    return Recipe(flow=flow, explore=explore, credit=BestTrajectory(), objective=Nll())


PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=_recipe(Planned(), TrajectorySearch(temperature=0.4)),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(learning_rate=2e-5, examples_per_update=64, warmup_updates=60),
        problems_per_batch=16,
    ),
    "chat": CHAT.preset(_recipe(Planned(), TrajectorySearch(temperature=0.4))),
    "small": SMALL.preset(
        _recipe(
            Planned(max_tokens=SMALL_TOKENS, explanation_tokens=96, prompts=SMALL_PROMPTS),
            TrajectorySearch(num_rounds=1, temperature=0.4),
        )
    ),
    "seed": SEED.preset(
        _recipe(
            Planned(
                max_tokens=SEED_TOKENS,
                explanation_tokens=8,
                labels=tuple("123456789"),
                verdicts=("Yes", "No"),
                prompts=SEED_PROMPTS,
                # The seed was not trained on prompts for ways: its prompt is always the bare question.
                module_words=ModuleWords(
                    plan="{question}",
                    choose="{question}",
                    rewrite="{question}",
                    decompose="{question}",
                    rewritten="",
                    parts="",
                    program="{question}",
                    verify="{question}",
                    verdict="{question}",
                    again="{question}",
                ),
            ),
            TrajectorySearch(num_rounds=1, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P),
        )
    ),
}
