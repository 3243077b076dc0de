"""Flow-DPO (arXiv 2410.22304): an incremental flow of Answer and Stop, and DPO on siblings of a trunk.

All four parts are the core's own; here are their values. Invariant: the paper's preset has the numbers of its table 3
(learning rate, batch, beta, clip, LoRA) and section 3.1 (chunks of 160 tokens, at most 6).
"""

from __future__ import annotations

from flow_dpo.core.answer_stop import AnswerStop
from flow_dpo.core.credit import OutcomePairs
from flow_dpo.core.dpo import Dpo
from flow_dpo.core.explore import Siblings
from flow_dpo.core.recipe import Recipe
from flow_dpo.learner.settings import LearnerSettings, LoraSettings
from flow_dpo.recipes.scales import (
    CHAT,
    SEED,
    SEED_CHUNK_TOKENS,
    SEED_MAX_CHUNKS,
    SEED_PROMPTS,
    SEED_TEMPERATURE,
    SEED_TOP_P,
    SMALL,
    SMALL_CHUNK_TOKENS,
    SMALL_MAX_CHUNKS,
    SMALL_PROMPTS,
    SMALL_TEMPERATURE,
    Preset,
)


def _recipe(flow: AnswerStop, explore: Siblings) -> Recipe:
    return Recipe(flow=flow, explore=explore, credit=OutcomePairs(), objective=Dpo(beta=1.0))


PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=_recipe(AnswerStop(chunk_tokens=160, max_chunks=6), Siblings()),
        lora=LoraSettings(lora_r=8, lora_alpha=8, lora_dropout=0.05),
        learner=LearnerSettings(learning_rate=5e-6, examples_per_update=32, max_grad_norm=1.0),
        # Problems sampled under one version: not stated in the paper; each instance updates as it arrives.
        problems_per_batch=1,
    ),
    "chat": CHAT.preset(_recipe(AnswerStop(chunk_tokens=160, max_chunks=6), Siblings())),
    "small": SMALL.preset(
        _recipe(
            AnswerStop(chunk_tokens=SMALL_CHUNK_TOKENS, max_chunks=SMALL_MAX_CHUNKS, prompts=SMALL_PROMPTS),
            Siblings(temperature=SMALL_TEMPERATURE),
        )
    ),
    "seed": SEED.preset(
        _recipe(
            AnswerStop(chunk_tokens=SEED_CHUNK_TOKENS, max_chunks=SEED_MAX_CHUNKS, prompts=SEED_PROMPTS),
            Siblings(temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P),
        )
    ),
}
