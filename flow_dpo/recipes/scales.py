"""Presets and scales: the values that suit a size of model, whatever the recipe.

A preset is a recipe with its adapter and update settings. A paper's values belong to its recipe. The other three
presets share LoRA, learner and batch settings, stated here once, with the prompts and lengths that go with them:

    SEED.preset(Recipe(flow=SEED_SINGLE, explore=Group(num_rollouts=8, top_p=SEED_TOP_P), credit=..., objective=...))

Invariant: nothing is looked up by a name. A recipe states every value in a constructor call, so a misspelled one is an
error when the recipe is imported, and a type checker finds it before that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from flow_dpo.core.answer_stop import AnswerStopPrompts, RolePrompts, WorkedExample
from flow_dpo.core.recipe import Recipe
from flow_dpo.data.seed import MAX_CHUNKS, NUM_CHUNK_TOKENS, REOPEN_WORDS, STOP_PREFIX, STOP_SUFFIX
from flow_dpo.learner.settings import LearnerSettings, LoraSettings, ReferenceSettings
from flow_dpo.recipes.single import Single


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A recipe with its adapter and update settings."""

    recipe: Recipe
    lora: LoraSettings
    learner: LearnerSettings
    problems_per_batch: int
    """Problems sampled with one version of the policy."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The adapter and update settings that suit a size of model, whatever the recipe."""

    lora: LoraSettings
    learner: LearnerSettings
    problems_per_batch: int
    """Problems sampled with one version of the policy."""

    def preset(self, recipe: Recipe, **learner: Any) -> Preset:
        """The recipe at this scale; `learner` holds the recipe's own learner settings."""
        own = replace(self.learner, **learner)
        return Preset(recipe=recipe, lora=self.lora, learner=own, problems_per_batch=self.problems_per_batch)


# ---- chat: runs of hundreds of problems, not of many thousands; the papers' rates would move nothing ----------------

CHAT = Scale(
    lora=LoraSettings(lora_r=8, lora_alpha=8),
    learner=LearnerSettings(learning_rate=2e-4, examples_per_update=16, warmup_updates=2),
    problems_per_batch=16,
)

# ---- small: chat models of about half a billion parameters, on a CPU -------------------------------------------------

SMALL = Scale(
    lora=LoraSettings(lora_r=8, lora_alpha=8),
    # At a constant rate Stop swings between its choices (docs/log.md).
    learner=LearnerSettings(learning_rate=2e-4, examples_per_update=16, warmup_updates=2, decay_after=8),
    problems_per_batch=32,
)
WORKED_EXAMPLES = (
    WorkedExample(
        question="A baker fills 4 trays with 6 rolls each and then drops 5 rolls. How many rolls are left?",
        solution="4 trays with 6 rolls each are 4 * 6 = 24 rolls.\nAfter 5 are dropped, 24 - 5 = 19 are left.\n"
        "Answer: 19",
    ),
    WorkedExample(
        question="Lena had 32 stickers. She gave 8 to her brother and shared the rest equally with 2 friends and "
        "herself. How many stickers does each of the three get?",
        solution="After giving 8 away she has 32 - 8 = 24 stickers.\nThree people share them: 24 / 3 = 8.\nAnswer: 8",
    ),
)
"""Two worked turns; without them a small model leaves most of its solutions without a final answer line."""
SMALL_PROMPTS = AnswerStopPrompts(examples=WORKED_EXAMPLES)
SMALL_CHUNK_TOKENS = 32
SMALL_MAX_CHUNKS = 5
SMALL_TOKENS = SMALL_CHUNK_TOKENS * SMALL_MAX_CHUNKS
"""Longest solution, in tokens."""
SMALL_TEMPERATURE = 0.8
"""For recipes whose paper states none: at temperature 1 a small model ends few solutions well."""
SMALL_SINGLE = Single(max_tokens=SMALL_TOKENS, prompts=RolePrompts(examples=WORKED_EXAMPLES))

# ---- seed: the embedded seed model -----------------------------------------------------------------------------------

SEED = Scale(
    lora=LoraSettings(lora_r=8, lora_alpha=8),
    # With a reference that is renewed every eight updates, margins keep growing; against the base they stop once
    # a misconception has become a coin toss (docs/log.md).
    learner=LearnerSettings(
        learning_rate=3e-3,
        examples_per_update=32,
        warmup_updates=8,
        decay_after=30,
        reference=ReferenceSettings(kind="snapshot", every=8),
    ),
    problems_per_batch=32,
)
SEED_PROMPTS = AnswerStopPrompts(
    answer_system="",
    stop_system="",
    stop_user=STOP_PREFIX + "{candidate}" + STOP_SUFFIX,
    reopen=REOPEN_WORDS,
)
SEED_CHUNK_TOKENS = NUM_CHUNK_TOKENS
SEED_MAX_CHUNKS = MAX_CHUNKS
SEED_TOKENS = NUM_CHUNK_TOKENS * MAX_CHUNKS
"""Longest solution, in tokens."""
SEED_PLAN_TOKENS = 2 * NUM_CHUNK_TOKENS
"""Room for a line of the seed's solutions: it knows no plans, so its plan is the beginning of its solution."""
SEED_TEMPERATURE = 1.0
"""For every recipe, whatever its paper says: at another one the seed's planted errors would have other rates."""
SEED_TOP_P = 0.97
SEED_SINGLE = Single(
    max_tokens=SEED_TOKENS,
    prompts=RolePrompts(
        answer_system=SEED_PROMPTS.answer_system, stop_system=SEED_PROMPTS.stop_system, stop_user=SEED_PROMPTS.stop_user
    ),
)

SCALES = {"chat": CHAT, "small": SMALL, "seed": SEED}
"""The scales, by the name of the preset that they make."""
