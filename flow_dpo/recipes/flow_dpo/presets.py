"""The values of Flow-DPO (arXiv 2410.22304): the paper's own, and those of a flow whose Stop judges whole attempts.

    preset("flow-dpo", "paper")          the paper's flow, pairs and numbers
    preset("flow-dpo", "seed")           attempts, verdicts and a judgement, at the scale of the embedded seed model
    preset("flow-dpo-paper", "seed")     the paper's flow and pairs at that scale, for comparison
    preset("flow-dpo-paper", "gpu")      the paper's numbers, but batches of 512 problems

Invariant: under either name the preset "paper" has the numbers of the paper's table 3 (learning rate, batch, beta,
clip, LoRA) and of section 3.1 (chunks of 160 tokens, at most 6).
"""

from __future__ import annotations

from dataclasses import replace

from flow_dpo.core.answer_stop import STOP, AnswerStop
from flow_dpo.core.credit import OutcomePairs
from flow_dpo.core.dpo import Dpo
from flow_dpo.core.explore import Siblings
from flow_dpo.core.recipe import Recipe
from flow_dpo.learner.settings import LearnerSettings, LoraSettings, RoleSettings
from flow_dpo.recipes.flow_dpo.attempts import Attempts, AttemptsPrompts
from flow_dpo.recipes.flow_dpo.credit import AttemptCredit
from flow_dpo.recipes.flow_dpo.explore import AttemptSiblings
from flow_dpo.recipes.flow_dpo.objective import DpoAndVerdicts
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
    Scale,
)

_FULL = 512
"""Problems per batch, which keep 265 to 454 sequences under way on average (tests/recipes/test_gpu_preset.py): one
problem has at most 13 and on average fewer than 2, since a trunk is written chunk after chunk. The whole batch is
sampled with one version, so its last pairs are learned some hundred updates later."""


def _incremental(flow: AnswerStop, explore: Siblings) -> Recipe:
    """The paper's method."""
    return Recipe(flow=flow, explore=explore, credit=OutcomePairs(), objective=Dpo(beta=1.0))


PAPER: dict[str, Preset] = {
    "paper": Preset(
        recipe=_incremental(AnswerStop(chunk_tokens=160, max_chunks=6), Siblings()),
        lora=LoraSettings(lora_r=8, lora_alpha=8, lora_dropout=0.05),
        learner=LearnerSettings(learning_rate=5e-6, examples_per_update=32, max_grad_norm=1.0),
        # Not stated in the paper, where each instance updates the policy as it arrives.
        problems_per_batch=1,
    ),
    "chat": CHAT.preset(_incremental(AnswerStop(chunk_tokens=160, max_chunks=6), Siblings())),
    "small": SMALL.preset(
        _incremental(
            AnswerStop(chunk_tokens=SMALL_CHUNK_TOKENS, max_chunks=SMALL_MAX_CHUNKS, prompts=SMALL_PROMPTS),
            Siblings(temperature=SMALL_TEMPERATURE),
        )
    ),
    "seed": SEED.preset(
        _incremental(
            AnswerStop(chunk_tokens=SEED_CHUNK_TOKENS, max_chunks=SEED_MAX_CHUNKS, prompts=SEED_PROMPTS),
            Siblings(temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P),
        )
    ),
}
"""The paper's method at every scale: the recipe "flow-dpo-paper"."""
PAPER["gpu"] = replace(PAPER["paper"], problems_per_batch=_FULL)


def _judged(scale: Scale, flow: Attempts, explore: AttemptSiblings, num_answer: int, stop: RoleSettings) -> Preset:
    """Attempts that Stop judges, at a scale. Stop has its own pool of examples, so the shared one holds only Answer's,
    and `--examples_per_update` is its size."""
    found = scale.preset(Recipe(flow=flow, explore=explore, credit=AttemptCredit(), objective=DpoAndVerdicts()))
    learner = replace(found.learner, examples_per_update=num_answer, roles={STOP: stop})
    return replace(found, learner=learner)


_STOP = RoleSettings(constant_rate=True, examples_per_update=32, window=1024, updates_per_batch=2)

PRESETS: dict[str, Preset] = {
    "paper": PAPER["paper"],
    "chat": _judged(CHAT, Attempts(chunk_tokens=160, max_chunks=6), AttemptSiblings(), 16, _STOP),
    "small": _judged(
        SMALL,
        Attempts(
            chunk_tokens=SMALL_CHUNK_TOKENS,
            max_chunks=SMALL_MAX_CHUNKS,
            prompts=AttemptsPrompts(examples=SMALL_PROMPTS.examples),
        ),
        AttemptSiblings(temperature=SMALL_TEMPERATURE),
        16,
        _STOP,
    ),
    "seed": _judged(
        SEED,
        Attempts(
            chunk_tokens=SEED_CHUNK_TOKENS,
            max_chunks=SEED_MAX_CHUNKS,
            prompts=AttemptsPrompts(
                answer_system=SEED_PROMPTS.answer_system,
                stop_system=SEED_PROMPTS.stop_system,
                stop_user=SEED_PROMPTS.stop_user,
            ),
        ),
        AttemptSiblings(temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P),
        12,
        RoleSettings(
            learning_rate=5e-4,
            constant_rate=True,
            examples_per_update=48,
            window=1024,
            updates_per_batch=2,
            by_problem=True,
        ),
    ),
}
"""The recipe "flow-dpo", by the name of the preset."""
# As many updates per verdict as at "chat", where a batch has 16 problems.
_FULL_STOP = replace(_STOP, window=4096, updates_per_batch=2 * _FULL // CHAT.problems_per_batch)
PRESETS["gpu"] = replace(
    _judged(CHAT, Attempts(chunk_tokens=160, max_chunks=6), AttemptSiblings(), 32, _FULL_STOP), problems_per_batch=_FULL
)
