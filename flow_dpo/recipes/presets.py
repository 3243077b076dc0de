"""Which methods can be run, and with which values?

A recipe is a value: a flow, how it is explored, what the trees are credited with, and the loss. `PAPERS` holds each
with the numbers of its paper; a `Scale` fits any of them to a size of model. Adding a recipe is an entry here and, at
most, one dataclass in each of `flows`, `explore`, `credit` and `objectives`; no loop, learner or engine knows any of
them by name.

    preset("grpo", "seed")      GRPO's flow, groups, credit and loss, with the embedded seed's chunks, prompts and rates
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from flow_dpo.core.answer_stop import AnswerStop, AnswerStopPrompts, WorkedExample
from flow_dpo.core.credit import OutcomePairs
from flow_dpo.core.dpo import Dpo
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.explore import Group, Siblings
from flow_dpo.core.flow import Flow
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.single import Single
from flow_dpo.data.seed import MAX_CHUNKS, NUM_CHUNK_TOKENS, REOPEN_WORDS, STOP_PREFIX, STOP_SUFFIX
from flow_dpo.learner.learner import LearnerSettings, ReferenceSettings, ScheduleSettings
from flow_dpo.learner.policy import LoraSettings
from flow_dpo.recipes.cpl.flow import VALUE, PlanSolve, PlanSolvePrompts, ValuedPlanSolve
from flow_dpo.recipes.cpl.mcts import Mcts
from flow_dpo.recipes.cpl.rounds import SftThenPairs
from flow_dpo.recipes.cpl.sft_then_dpo import SftThenDpo
from flow_dpo.recipes.cpl.value_pairs import ValuePairs
from flow_dpo.recipes.cpl.value_targets import ValuesThenPairs
from flow_dpo.recipes.dots.credit import BestTrajectory
from flow_dpo.recipes.dots.explore import TrajectorySearch
from flow_dpo.recipes.dots.flow import ModuleWords, Planned
from flow_dpo.recipes.grpo.advantages import GroupAdvantages
from flow_dpo.recipes.grpo.policy_gradient import ClippedPolicyGradient
from flow_dpo.recipes.regenesis.credit import CorrectFinals
from flow_dpo.recipes.regenesis.explore import GuidelineRollouts
from flow_dpo.recipes.regenesis.flow import GuidedWords
from flow_dpo.recipes.rejection_sampling.credit import CorrectRollouts
from flow_dpo.recipes.rejection_sampling.objective import Nll
from flow_dpo.recipes.rpo.credit import BranchPairs
from flow_dpo.recipes.rpo.explore import ReferencePath
from flow_dpo.recipes.rpo.objective import OddsRatio
from flow_dpo.recipes.vineppo.credit import StepAdvantages
from flow_dpo.recipes.vineppo.explore import StepRollouts


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A recipe with the values of its adapters and updates."""

    recipe: Recipe
    lora: LoraSettings
    learner: LearnerSettings
    problems_per_batch: int
    """Problems played under one policy version."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What a size of model wants of any recipe."""

    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """By the name of a setting, for whichever part of a recipe has one of that name. Groups of settings, such as
    prompts, are listed in a tuple: each part takes that of its own kind."""
    unstated: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The same, but only for a part that has the setting at its default: a recipe keeps its own value, its paper's."""
    max_rollouts: int = 8
    """Independent plays of a problem at most: groups of 64 are for machines that can afford them."""
    max_completions: int = 4
    """Completions from one state at most, where a recipe draws such."""
    lora: LoraSettings
    learner: LearnerSettings
    problems_per_batch: int


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

PAPERS: dict[str, Preset] = {
    # arXiv 2410.22304, table 3 (learning rate, batch, beta, clip, LoRA) and section 3.1 (chunk of 160, at most 6
    # chunks). Problems played under one version: not stated; each instance updates as it arrives.
    "flow-dpo": Preset(
        recipe=Recipe(flow=AnswerStop(), explore=Siblings(), credit=OutcomePairs(), objective=Dpo(beta=1.0)),
        lora=LoraSettings(lora_r=8, lora_alpha=8, lora_dropout=0.05),
        learner=LearnerSettings(learning_rate=5e-6, examples_per_update=32, max_grad_norm=1.0),
        problems_per_batch=1,
    ),
    # Whole-answer online DPO, the single-model control: two answers a question (OAIF, arXiv 2402.04792, section 3: beta
    # 0.1, temperature 0.9, rate 5e-7 for all weights), judged by the verifier. LoRA and its rate: not stated there.
    "online-dpo": Preset(
        recipe=Recipe(
            flow=Single(),
            explore=Group(num_rollouts=2, temperature=0.9),
            credit=OutcomePairs(),
            objective=Dpo(beta=0.1),
        ),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(learning_rate=5e-6, examples_per_update=32),
        problems_per_batch=32,
    ),
    # DeepSeekMath, arXiv 2402.03300, section 4.2: 64 answers a question of at most 1,024 tokens, KL coefficient 0.04,
    # rate 1e-6 for all weights, a batch of 1,024 answers, one update a batch. Clip range: not stated (PPO's 0.2).
    "grpo": Preset(
        recipe=Recipe(
            flow=Single(max_tokens=1024),
            explore=Group(num_rollouts=64),
            credit=GroupAdvantages(),
            objective=ClippedPolicyGradient(clip_range=0.2, kl_coef=0.04),
        ),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(learning_rate=1e-6, examples_per_update=1024),
        problems_per_batch=16,
    ),
    # VinePPO, arXiv 2410.01679, sections 4 and 5 and the authors' code (McGill-NLP/VinePPO, its configuration for
    # RhoMath-1.1B): 64 questions with 8 answers each an iteration, 9 completions from a state, temperature 0.6, top-p
    # 0.9, at most 1,024 tokens; clip 0.2, k3 in the loss with 1e-4 and cut at 10; rate 1e-6 for all weights, gradients
    # clipped at 1, 2 epochs over mini-batches of 64 answers (about 500 steps). LoRA: not stated.
    "vineppo": Preset(
        recipe=Recipe(
            flow=Single(max_tokens=1024),
            explore=StepRollouts(num_rollouts=8, num_completions=9, temperature=0.6, top_p=0.9),
            credit=StepAdvantages(),
            objective=ClippedPolicyGradient(clip_range=0.2, kl_coef=1e-4, max_kl=10.0),
        ),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(learning_rate=1e-6, examples_per_update=512, schedule=ScheduleSettings(passes=2)),
        problems_per_batch=64,
    ),
    # Reasoning Paths Optimization, arXiv 2410.10858, sections 3 and 4 and the authors' code
    # (DAMO-NLP-SG/reasoning-paths-optimization): 10 plays, 10 completions from a state, lambda 0.3 of 0.1 to 0.3, up to
    # 8 pairs of each question, 8 questions an update, rate 5e-5 after 100 updates, answers of at most 1,024 tokens in
    # all, LoRA on two projections of its library's default rank 8. Temperature: not stated in the script.
    "rpo": Preset(
        recipe=Recipe(
            flow=Single(max_tokens=1024),
            explore=ReferencePath(num_rollouts=10, num_completions=10),
            credit=BranchPairs(max_pairs=8),
            objective=OddsRatio(exploration_weight=0.3),
        ),
        lora=LoraSettings(lora_r=8, lora_alpha=16, lora_target_modules=("q_proj", "v_proj")),
        learner=LearnerSettings(
            learning_rate=5e-5, examples_per_update=0, schedule=ScheduleSettings(warmup_updates=100)
        ),
        problems_per_batch=8,
    ),
    # Critical Plan Step Learning, arXiv 2409.08642: 3 completions an expansion, PUCT constant 1.5, at most 6
    # turns, rewards of 1 and -1, beta 0.3, alpha 1. The number of plays, temperature, learning rate and batch: not
    # stated in what these values were taken from; the rate is that of "flow-dpo", the batch 32.
    "cpl": Preset(
        recipe=Recipe(
            flow=PlanSolve(),
            explore=Mcts(num_children=3, puct=1.5),
            credit=ValuePairs(),
            objective=Dpo(beta=0.3, margin_weight=1.0),
        ),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(learning_rate=5e-6, examples_per_update=32),
        problems_per_batch=32,
    ),
    # The same with values that a role of its own says, in place of a play to the end from every new state. The paper's
    # is a head on the policy, and how it is trained is not stated in what these values were taken from.
    "cpl-value": Preset(
        recipe=Recipe(
            flow=ValuedPlanSolve(),
            explore=Mcts(num_children=3, puct=1.5, valued_by=VALUE),
            credit=ValuesThenPairs(),
            objective=SftThenDpo(prefer=Dpo(beta=0.3, margin_weight=1.0)),
        ),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(learning_rate=5e-6, examples_per_update=32),
        problems_per_batch=32,
    ),
    # The same in rounds, each begun by fine-tuning on its right plays. Problems of a round, plays that are
    # said again and the reference of a round: not stated in what these values were taken from.
    "cpl-rounds": Preset(
        recipe=Recipe(
            flow=PlanSolve(),
            explore=Mcts(num_children=3, puct=1.5),
            credit=SftThenPairs(),
            objective=SftThenDpo(prefer=Dpo(beta=0.3, margin_weight=1.0)),
        ),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(learning_rate=5e-6, examples_per_update=32),
        problems_per_batch=1024,
    ),
    # Expert iteration, the plain control: say again what was right. Draws a question: STaR (arXiv 2203.14465) 1, RFT
    # (2308.01825) 100, at temperature 0.7 in the authors' code (OFA-Sys/gsm8k-ScRel), ReST-EM (2312.06585) 32; one
    # batch of the stream is one round. LoRA, its rate and the number of draws here: not stated there.
    "rejection-sampling": Preset(
        recipe=Recipe(flow=Single(), explore=Group(num_rollouts=4), credit=CorrectRollouts(), objective=Nll()),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(learning_rate=2e-5, examples_per_update=32),
        problems_per_batch=32,
    ),
    # ReGenesis, arXiv 2410.02108, sections 3.1 and 3.2.1, and the authors' code (SalesforceAIResearch/ReGenesis): 25
    # guidelines singly and 20 groups of two or three, at most 5 paths a question, 20 hinted ones, temperature 0.85 (1.2
    # for its Llama-3) and top-p 0.9, at most 2,048 tokens a turn; rate 1e-6 for all weights, batches of 64, 3 epochs
    # over what was collected, with a cosine decay (here one pass). LoRA: not stated.
    "regenesis": Preset(
        recipe=Recipe(
            flow=Single(max_tokens=2048),
            explore=GuidelineRollouts(num_hinted=20, plan_tokens=2048, temperature=0.85, top_p=0.9),
            credit=CorrectFinals(),
            objective=Nll(),
        ),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(learning_rate=1e-6, examples_per_update=64),
        problems_per_batch=32,
    ),
    # DOTS, arXiv 2410.03864: 12 ways (6 where programs are not asked for), each played 4 times at temperature 0.4, 2
    # rounds, 8 and then 3 kept; cross-entropy. Rates for LoRA, and the batch: not stated here.
    "dots": Preset(
        recipe=Recipe(
            flow=Planned(), explore=TrajectorySearch(temperature=0.4), credit=BestTrajectory(), objective=Nll()
        ),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(learning_rate=2e-5, examples_per_update=32),
        problems_per_batch=16,
    ),
}
RECIPES: dict[str, Recipe] = {name: paper.recipe for name, paper in PAPERS.items()}

SCALES: dict[str, Scale] = {
    # For runs of hundreds of problems rather than many thousands: the papers' rates move nothing in a few updates.
    "chat": Scale(
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(
            learning_rate=2e-4, examples_per_update=16, schedule=ScheduleSettings(warmup_updates=2)
        ),
        problems_per_batch=16,
    ),
    # For chat models of about half a billion parameters on a CPU.
    "small": Scale(
        values={
            "chunk_tokens": 32,
            "max_chunks": 5,
            "max_tokens": 160,
            "plan_tokens": 32,
            "prompts": (AnswerStopPrompts(examples=WORKED_EXAMPLES),),
            "explanation_tokens": 96,
            "num_rounds": 1,
        },
        unstated={"temperature": 0.8},
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        # At a constant rate Stop swings between its words (docs/log.md).
        learner=LearnerSettings(
            learning_rate=2e-4, examples_per_update=16, schedule=ScheduleSettings(warmup_updates=2, decay_after=8)
        ),
        problems_per_batch=32,
    ),
    # For the embedded seed model. A reference that follows every eight updates lets margins go on growing; against the
    # base they stand still where a misconception has become a coin toss (docs/log.md).
    "seed": Scale(
        values={
            "chunk_tokens": NUM_CHUNK_TOKENS,
            "max_chunks": MAX_CHUNKS,
            "max_tokens": NUM_CHUNK_TOKENS * MAX_CHUNKS,
            "on_early_yes": "close",
            # A line of the seed's solutions; it knows no plans, so its plan is the beginning of its solution.
            "plan_tokens": 2 * NUM_CHUNK_TOKENS,
            "prompts": (
                AnswerStopPrompts(
                    answer_system="",
                    stop_system="",
                    stop_user=STOP_PREFIX + "{candidate}" + STOP_SUFFIX,
                    reopen=REOPEN_WORDS,
                ),
                PlanSolvePrompts(
                    plan_system="",
                    solve_system="",
                    solve_user="",
                    value_system="",
                    value_user=STOP_PREFIX + "{plan}" + STOP_SUFFIX,
                ),
            ),
            # The seed knows no words for plans: what it is asked is always the bare question.
            "words": GuidedWords(adapt="{question}", structure="{question}", path="", hint=""),
            "module_words": ModuleWords(
                plan="{question}",
                choose="{question}",
                rewrite="{question}",
                decompose="{question}",
                rewritten="",
                parts="",
                program="{question}",
                verify="{question}",
            ),
            "labels": tuple("123456789"),
            "num_rounds": 1,
            "explanation_tokens": 8,
            "temperature": 1.0,
            "top_p": 0.97,
        },
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(
            learning_rate=3e-3,
            examples_per_update=32,
            schedule=ScheduleSettings(warmup_updates=8, decay_after=30),
            reference=ReferenceSettings(kind="snapshot", every=8),
        ),
        problems_per_batch=32,
    ),
}
PRESETS = ("paper", *SCALES)


def preset(recipe: str, name: str, *, flow: Flow[Any] | None = None) -> Preset:
    """A recipe with its paper's numbers, or fitted to a scale, and with another flow where one is given.

    Raises `ConfigError` for a name that is none.
    """
    if recipe not in PAPERS:
        raise ConfigError(f"unknown recipe {recipe!r}; there are {', '.join(PAPERS)}")
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    paper = PAPERS[recipe]
    if flow is not None:
        paper = replace(paper, recipe=replace(paper.recipe, flow=flow))
    if name == "paper":
        return paper
    scale = SCALES[name]
    return Preset(
        recipe=_fitted(paper.recipe, scale),
        lora=scale.lora,
        learner=scale.learner,
        problems_per_batch=scale.problems_per_batch,
    )


def load_recipe(recipe: str = "flow-dpo", preset: str = "paper", flow: Flow[Any] | None = None) -> Recipe:
    """A recipe by its name and preset, with another flow where one is given. Raises `ConfigError` for other names."""
    found = _preset(recipe, preset).recipe
    return found if flow is None else replace(found, flow=flow)


def _fitted(recipe: Recipe, scale: Scale) -> Recipe:
    """The recipe with the scale's values in whichever of its parts has a setting of that name."""

    def fit(part: Any) -> Any:
        values: dict[str, Any] = {}
        for name, value in scale.values.items():
            if not hasattr(part, name):
                continue
            several = isinstance(value, tuple) and all(map(is_dataclass, value))
            kinds = value if several else (value,)
            same = [one for one in kinds if not is_dataclass(one) or type(one) is type(getattr(part, name))]
            if same:
                values[name] = same[0]
        defaults = {f.name: f.default for f in fields(part)}
        for name, value in scale.unstated.items():
            if hasattr(part, name) and getattr(part, name) == defaults[name]:
                values[name] = value
        for name, most in _most(scale).items():
            if hasattr(part, name):
                values[name] = min(getattr(part, name), most)
        return replace(part, **values)

    return Recipe(**{f.name: fit(getattr(recipe, f.name)) for f in fields(recipe)})


def _most(scale: Scale) -> dict[str, int]:
    """The largest values of the settings that make a recipe dear."""
    return {
        "num_rollouts": scale.max_rollouts,
        "num_hinted": scale.max_rollouts,
        "num_completions": scale.max_completions,
    }


_preset = preset  # load_recipe has an argument of that name


def default_preset(model_name_or_path: str) -> str:
    """The preset taken where none is named: "seed" for the embedded model, "chat" for any other."""
    return "seed" if model_name_or_path == "seed" else "chat"
