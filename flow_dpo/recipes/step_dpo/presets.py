"""Step-DPO's presets: pairs of steps at the first error (arXiv 2406.18629).

The paper's values are those of the authors' code (dvlab-research/Step-DPO at c4902fd, `data_pipeline/step1.sh` and
`step3.sh`, `eval_math.py`, `bash_scrips/qwen2_7b_step_dpo.sh`, `configs/config_full.yaml`): 2 solutions per problem, 20
completions from the state before the error, temperature 0.8, top-p 0.95, at most 2,048 tokens; beta 0.5 (0.4 for 72B),
rate 5e-7 for all weights with a warm-up over a tenth (about 67 of 675 updates) and a cosine to 0, 128 pairs per update,
8 epochs over 10,000 collected pairs (here one pass). LoRA: none.
"""

from __future__ import annotations

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.recipe import Recipe
from flow_dpo.learner.settings import LearnerSettings, LoraSettings
from flow_dpo.recipes.scales import CHAT, SEED, SEED_SINGLE, SEED_TEMPERATURE, SEED_TOP_P, SMALL, SMALL_SINGLE, Preset
from flow_dpo.recipes.single import Single
from flow_dpo.recipes.step_dpo.credit import FirstErrorPairs
from flow_dpo.recipes.step_dpo.explore import WrongRollouts


def _recipe(flow: Single, explore: WrongRollouts) -> Recipe:
    return Recipe(flow=flow, explore=explore, credit=FirstErrorPairs(), objective=Dpo(beta=0.5))


PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=_recipe(Single(max_tokens=2048), WrongRollouts(temperature=0.8, top_p=0.95)),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(
            learning_rate=5e-7, examples_per_update=128, warmup_updates=67, decay_after=675, schedule="cosine"
        ),
        problems_per_batch=64,
    ),
    "chat": CHAT.preset(
        _recipe(Single(max_tokens=2048), WrongRollouts(num_completions=8, temperature=0.8, top_p=0.95))
    ),
    "small": SMALL.preset(_recipe(SMALL_SINGLE, WrongRollouts(num_completions=8, temperature=0.8, top_p=0.95))),
    "seed": SEED.preset(
        _recipe(SEED_SINGLE, WrongRollouts(num_completions=8, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P))
    ),
}
