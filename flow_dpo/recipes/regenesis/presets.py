"""ReGenesis' presets: paths from general guidelines, fine-tuning on those that end right (arXiv 2410.02108).

The paper's values are those of sections 3.1 and 3.2.1 and of the authors' code (SalesforceAIResearch/ReGenesis at
e07585e): 25 single guidelines and 20 groups of two or three, at most 5 paths per question, 20 hinted ones, temperature
0.85 (1.2 for its Llama-3) and top-p 0.9, at most 2,048 tokens per turn. Kept are paths of fewer than 800 tokens with
numbered steps and a boxed answer that the model itself calls right (src/reasoning/process_reason.py). Rate 1e-6 for all
weights, batches of 64, 3 epochs over what was collected, warm-up over 3 % and a cosine to 0
(src/finetune_code/ft_mistral.sh). Here it is one pass, at the rates of 1,752 updates: 3 epochs of 5 paths for each of
GSM8K's 7,473 questions. LoRA: not stated. The other presets try 8 of the 45 ways, and ask the model about no path.
"""

from __future__ import annotations

from flow_dpo.core.recipe import Recipe
from flow_dpo.learner.settings import LearnerSettings, LoraSettings
from flow_dpo.recipes.likelihood import Nll
from flow_dpo.recipes.regenesis.credit import CorrectFinals
from flow_dpo.recipes.regenesis.explore import GuidelineRollouts
from flow_dpo.recipes.regenesis.flow import GuidedWords
from flow_dpo.recipes.regenesis.kept import PathFilter
from flow_dpo.recipes.scales import (
    CHAT,
    SEED,
    SEED_PLAN_TOKENS,
    SEED_SINGLE,
    SEED_TEMPERATURE,
    SEED_TOP_P,
    SMALL,
    SMALL_CHUNK_TOKENS,
    SMALL_SINGLE,
    Preset,
)
from flow_dpo.recipes.single import Single


def _recipe(flow: Single, explore: GuidelineRollouts) -> Recipe:
    return Recipe(flow=flow, explore=explore, credit=CorrectFinals(max_per_problem=5), objective=Nll())


PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=_recipe(
            Single(max_tokens=2048),
            GuidelineRollouts(
                num_rollouts=45,
                num_hinted=20,
                plan_tokens=2048,
                temperature=0.85,
                top_p=0.9,
                keep=PathFilter(max_path_tokens=799, self_check=True),
            ),
        ),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(
            learning_rate=1e-6, examples_per_update=64, warmup_updates=53, decay_after=1_752, schedule="cosine"
        ),
        problems_per_batch=32,
    ),
    "chat": CHAT.preset(
        _recipe(
            Single(max_tokens=2048),
            GuidelineRollouts(num_rollouts=8, num_hinted=8, plan_tokens=2048, temperature=0.85, top_p=0.9),
        )
    ),
    "small": SMALL.preset(
        _recipe(
            SMALL_SINGLE,
            GuidelineRollouts(
                num_rollouts=8, num_hinted=8, plan_tokens=SMALL_CHUNK_TOKENS, temperature=0.85, top_p=0.9
            ),
        )
    ),
    "seed": SEED.preset(
        _recipe(
            SEED_SINGLE,
            GuidelineRollouts(
                num_rollouts=8,
                num_hinted=8,
                plan_tokens=SEED_PLAN_TOKENS,
                temperature=SEED_TEMPERATURE,
                top_p=SEED_TOP_P,
                # The seed was not trained on prompts for plans: its prompt is always the bare question.
                words=GuidedWords(
                    adapt="{question}", structure="{question}", path="", plan_hint="", hint="", check="{question}"
                ),
                # Its solutions have no numbered steps.
                keep=PathFilter(numbered_steps=False),
            ),
        )
    ),
}
