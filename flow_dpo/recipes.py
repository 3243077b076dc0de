"""Which methods can be run, and with which values?

A recipe is a value: a flow, how it is explored, what the trees are credited with, and the loss. A preset is a recipe
with the learning values that go with it. Adding one is an entry here and, at most, one dataclass in each of `flows`,
`explore`, `credit` and `objectives`; no loop, learner or engine knows any of them by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from flow_dpo.credit import OutcomePairs
from flow_dpo.explore import Siblings
from flow_dpo.flows.answer_stop import AnswerStop, AnswerStopPrompts, WorkedExample
from flow_dpo.flows.base import Flow
from flow_dpo.learner import LearnerSettings, ReferenceSettings, ScheduleSettings
from flow_dpo.objectives import Dpo
from flow_dpo.policy import LoraSettings
from flow_dpo.seed import MAX_CHUNKS, NUM_CHUNK_TOKENS, REOPEN_WORDS, STOP_PREFIX, STOP_SUFFIX


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method, as the four choices that make it."""

    flow: Flow[Any]
    """Who speaks when."""
    explore: Siblings
    """Which plays are made on a problem."""
    credit: OutcomePairs
    """What the graded plays teach."""
    objective: Dpo
    """The loss of what they teach."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A recipe with the values of its adapters and updates."""

    recipe: Recipe
    lora: LoraSettings
    learner: LearnerSettings
    explore_ahead: int
    """Problems played under one policy version."""


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
"""Two worked turns: without them a small model leaves most of its solutions without a final line."""

_FLOW_DPO = Recipe(flow=AnswerStop(), explore=Siblings(), credit=OutcomePairs(), objective=Dpo(beta=1.0))

PAPER = Preset(
    recipe=_FLOW_DPO,
    lora=LoraSettings(lora_r=8, lora_alpha=8, lora_dropout=0.05),
    learner=LearnerSettings(learning_rate=5e-6, pairs_per_update=32, max_grad_norm=1.0),
    explore_ahead=1,
)
"""arXiv 2410.22304, table 3 (learning rate, batch, beta, clip, LoRA) and section 3.1 (chunk of 160, at most 6 chunks).
Problems played under one version: not stated in the paper; each instance updates as it arrives."""

CHAT = replace(
    PAPER,
    lora=LoraSettings(lora_r=8, lora_alpha=8),
    learner=LearnerSettings(learning_rate=2e-4, pairs_per_update=16, schedule=ScheduleSettings(warmup_updates=2)),
    explore_ahead=16,
)
"""For runs of hundreds of problems rather than many thousands: the paper's rate moves nothing in a few updates."""

SMALL = replace(
    CHAT,
    recipe=replace(
        _FLOW_DPO,
        flow=AnswerStop(chunk_tokens=32, max_chunks=5, prompts=AnswerStopPrompts(examples=WORKED_EXAMPLES)),
        explore=Siblings(temperature=0.8),
    ),
    learner=LearnerSettings(learning_rate=2e-4, pairs_per_update=12, schedule=ScheduleSettings(warmup_updates=2)),
    explore_ahead=32,
)
"""For chat models of about half a billion parameters on a CPU."""

SEED = Preset(
    recipe=replace(
        _FLOW_DPO,
        flow=AnswerStop(
            chunk_tokens=NUM_CHUNK_TOKENS,
            max_chunks=MAX_CHUNKS,
            on_early_yes="close",
            prompts=AnswerStopPrompts(
                answer_system="",
                stop_system="",
                stop_user=STOP_PREFIX + "{candidate}" + STOP_SUFFIX,
                reopen=REOPEN_WORDS,
            ),
        ),
        explore=Siblings(top_p=0.97),
    ),
    lora=LoraSettings(lora_r=8, lora_alpha=8),
    learner=LearnerSettings(
        learning_rate=3e-3,
        pairs_per_update=32,
        schedule=ScheduleSettings(warmup_updates=8, decay_after=30),
        reference=ReferenceSettings(kind="snapshot", every=8),
    ),
    explore_ahead=32,
)
"""For the embedded seed model. A reference that follows every eight updates lets margins go on growing; against the
base they stand still where a misconception has become a coin toss (docs/log.md)."""

PRESETS: dict[str, Preset] = {"paper": PAPER, "chat": CHAT, "small": SMALL, "seed": SEED}
RECIPES: dict[str, Recipe] = {"flow-dpo": _FLOW_DPO}


def default_preset(model_name_or_path: str) -> str:
    """The preset taken where none is named: "seed" for the embedded model, "chat" for any other."""
    return "seed" if model_name_or_path == "seed" else "chat"
