"""Critical Plan Step Learning's presets: a tree search over plan steps, and pairs of siblings ranked by value.

The paper's values are those of arXiv 2409.08642 and of the authors' code (keesh0410/CPL-Reasoning, commit 61b99b4):

    search     200 iterations in round one (100 in round two), 3 children, temperature 0.7, 1,500 tokens per turn, at
               most 6 levels, rewards 1 and -1 (mcts_plan/configs/mcts_round*.yaml); 5 children at the root
               (mcts/mcts_solver.py); PUCT 1.5 (mcts/mcts_node.py)
    pairs      all of plan steps, one of solutions at 0.3 (gen_data/gen_policy_model_round*_apo_data.py)
    rounds     5,000 problems, then 15,000 (mcts_plan/data/); up to 4 right paths of each (same path, _sft_data.py)
    updates    beta 0.3, alpha 1, rate 1e-6, 3 epochs, 4 times 2 examples per device, taken as 8 devices
               (apo/LLaMA-Factory-0.8.3/my_scripts/*_apo.yaml)
    value      squared error of a tanh head to every step's Q, rate 1e-5, 8 times 16 per device (README.md,
               sft_value_head/)

The other presets value by rollouts and learn only from pairs. Flags turn on the rest of the paper's method:

    --flow.value_role --explore.valued_by value --credit.valued_by value
    --credit.fine_tune --objective.rounds --learner.reference.kind snapshot
        --learner.reference.each_batch
"""

from __future__ import annotations

from flow_dpo.core.recipe import Recipe
from flow_dpo.learner.settings import LearnerSettings, LoraSettings, PassSettings, ReferenceSettings, RoleSettings
from flow_dpo.recipes.cpl.credit import ValuePairs
from flow_dpo.recipes.cpl.flow import VALUE, PlanSolve, PlanSolvePrompts, WorkedPlan
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
    SMALL_TOKENS,
    Preset,
)

TEMPERATURE = 0.7
EXAMPLES = (
    WorkedPlan(
        question="A baker fills 4 trays with 6 rolls each and then drops 5 rolls. How many rolls are left?",
        plan="Plan 1: Find how many rolls the full trays hold.\nPlan 2: Take away the rolls that were dropped.",
        solution="1. 4 trays with 6 rolls each are 4 * 6 = 24 rolls.\n2. After 5 are dropped, 24 - 5 = 19 are left.\n"
        "Answer: 19",
    ),
    WorkedPlan(
        question="Lena had 32 stickers. She gave 8 to her brother and shared the rest equally with 2 friends and "
        "herself. How many stickers does each of the three get?",
        plan="Plan 1: Subtract what she gave away from what she had.\nPlan 2: Count the shares, of which she keeps "
        "one herself.\nPlan 3: Divide what is left by the number of shares.",
        solution="1. After giving 8 away she has 32 - 8 = 24 stickers.\n2. Three people share them.\n"
        "3. Each gets 24 / 3 = 8.\nAnswer: 8",
    ),
)
PROMPTS = PlanSolvePrompts(examples=EXAMPLES)


def _recipe(flow: PlanSolve, explore: Mcts) -> Recipe:
    return Recipe(
        flow=flow, explore=explore, credit=ValuePairs(), objective=StepApo(beta=0.3, margin_weight=1.0)
    )  # fmt: skip


PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=Recipe(
            flow=PlanSolve(value_role=True, plan_tokens=1500, max_tokens=1500, prompts=PROMPTS),
            explore=Mcts(num_iterations=200, temperature=TEMPERATURE, valued_by=VALUE),
            credit=ValuePairs(fine_tune=True, valued_by=VALUE),
            objective=StepApo(beta=0.3, margin_weight=1.0, rounds=True),
        ),
        lora=LoraSettings(lora_r=8, lora_alpha=8),
        learner=LearnerSettings(
            learning_rate=1e-6,
            examples_per_update=64,
            passes=PassSettings(epochs_per_batch=3),
            reference=ReferenceSettings(kind="snapshot", each_batch=True),
            roles={VALUE: RoleSettings(learning_rate=1e-5, examples_per_update=1024)},
        ),
        problems_per_batch=5000,
    ),
    "chat": CHAT.preset(
        _recipe(PlanSolve(max_tokens=960, prompts=PROMPTS), Mcts(num_iterations=8, temperature=TEMPERATURE))
    ),
    "small": SMALL.preset(
        _recipe(
            PlanSolve(plan_tokens=SMALL_CHUNK_TOKENS, max_tokens=SMALL_TOKENS, prompts=PROMPTS),
            Mcts(num_iterations=8, temperature=TEMPERATURE),
        )
    ),
    "seed": SEED.preset(
        _recipe(
            PlanSolve(
                plan_tokens=SEED_PLAN_TOKENS,
                long_plan="solve",  # here a plan is the solution's beginning
                max_tokens=SEED_TOKENS,
                prompts=PlanSolvePrompts(
                    plan_system="",
                    solve_system="",
                    solve_user="",
                    value_system="",
                    value_user=SEED_PROMPTS.stop_user.replace("{candidate}", "{plan}"),
                ),
            ),
            # With one rollout per child nearly every margin is 2, because a confident policy makes small trees.
            Mcts(num_iterations=16, num_rollouts=4, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P),
        )
    ),
}
