"""Critical Plan Step Learning's presets: a tree search over plan steps, and pairs of siblings by value (arXiv
2409.08642).

The paper's: 3 completions an expansion, PUCT constant 1.5, at most 6 turns, rewards of 1 and -1, beta 0.3, alpha 1. The
number of rollouts, temperature, learning rate and batch: not stated in what these values were taken from; the rate is
that of Flow-DPO, the batch 32. Off by default, each on by flags:

    --flow.value_role --explore.valued_by value --credit.valued_by value --objective.sft
        a role predicts a new state's value, and learns to: in place of a rollout to its end. The paper's is a value
        head on the policy, and how it is trained is not stated in what these values were taken from.
    --credit.fine_tune --objective.sft --problems_per_batch 1024
        rounds that begin by fine-tuning on their right rollouts. Problems of a round, rollouts that are learned and the
        reference of a round: not stated there.
"""

from __future__ import annotations

from flow_dpo.core.recipe import Recipe
from flow_dpo.learner.settings import LearnerSettings, LoraSettings
from flow_dpo.recipes.cpl.credit import ValuePairs
from flow_dpo.recipes.cpl.flow import PlanSolve, PlanSolvePrompts
from flow_dpo.recipes.cpl.mcts import Mcts
from flow_dpo.recipes.cpl.objective import StepApo
from flow_dpo.recipes.scales import (
    CHAT,
    SEED,
    SEED_PLAN_TOKENS,
    SEED_PROMPTS,
    SEED_TEMPERATURE,
    SEED_TOKENS,
    SEED_TOP_P,
    SMALL,
    SMALL_CHUNK_TOKENS,
    SMALL_TEMPERATURE,
    SMALL_TOKENS,
    Preset,
)


def _recipe(flow: PlanSolve, explore: Mcts) -> Recipe:
    return Recipe(
        flow=flow, explore=explore, credit=ValuePairs(), objective=StepApo(beta=0.3, margin_weight=1.0)
    )  # fmt: skip


PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=_recipe(PlanSolve(), Mcts(num_rollouts=32, num_children=3, puct=1.5)),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(learning_rate=5e-6, examples_per_update=32),
        problems_per_batch=32,
    ),
    "chat": CHAT.preset(_recipe(PlanSolve(), Mcts(num_rollouts=8, num_children=3, puct=1.5))),
    "small": SMALL.preset(
        _recipe(
            PlanSolve(plan_tokens=SMALL_CHUNK_TOKENS, max_tokens=SMALL_TOKENS),
            Mcts(num_rollouts=8, num_children=3, puct=1.5, temperature=SMALL_TEMPERATURE),
        )
    ),
    "seed": SEED.preset(
        _recipe(
            PlanSolve(
                plan_tokens=SEED_PLAN_TOKENS,
                max_tokens=SEED_TOKENS,
                prompts=PlanSolvePrompts(
                    plan_system="",
                    solve_system="",
                    solve_user="",
                    value_system="",
                    value_user=SEED_PROMPTS.stop_user.replace("{candidate}", "{plan}"),
                ),
            ),
            Mcts(num_rollouts=8, num_children=3, puct=1.5, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P),
        )
    ),
}
