"""Arms of a comparison that test what each related method claims, all with the same budget, data and model.

Every arm is a recipe of its own (`recipes.presets`), fitted by the comparison's preset and trained until it had
`compare.tokens`, or the tokens that the comparison's flow had on its problems; nothing is compiled. An arm names what
its paper compares it with, and the two differ in that alone:

    vineppo_same_tokens    against    grpo_same_tokens             the same rollouts and loss; other advantages
    rpo_same_tokens        against    reference_path_same_tokens   the same search for a right path; no branches
    cpl_same_tokens        against    cpl_no_margin_same_tokens    the same search and pairs; alpha 0
    cpl_value_same_tokens  against    cpl_same_tokens              new states valued by a role, not by rollouts

DOTS and ReGenesis search with instructions, which only a model that follows them understands; they are a group of their
own, against plain self-training: `self_training_same_tokens`, rejection-sampling fine-tuning with their batches.

Invariant: arms that are contrasted are given the same flags but the one that they are about.
"""

from __future__ import annotations

from collections.abc import Mapping

from flow_dpo.evaluate.compare.arms import SAME_TOKENS, Arm, Kind, Make, budgeted

_AHEAD = ("--problems_per_batch", "8")
"""Problems sampled under one version: one problem of a search costs as much as a batch of rollouts, and a run ends
only at the end of a batch, so that small ones end near the budget."""
_FEW = (*_AHEAD, "--examples_per_update", "8")
"""Of recipes that draw much for few examples: with the 32 of a plain flow they would hardly leave the warm-up."""
_CLIPPED = ("--objective.kl_coef", "1e-4", "--objective.max_kl", "10", "--objective.max_ratio", "10",
            "--objective.reduction", "tokens", "--objective.kl_reduction", "sum", "--short_batch", "learn")  # fmt: skip
"""The loss of VinePPO's paper, for GRPO too, which differ in their advantages alone. No update mixes two versions."""
_IN_STEPS = ("--examples_per_update", "128")
"""VinePPO's examples are steps, about four to an answer on the seed: those of as many answers as GRPO's 32."""
_PATHS = (*_FEW, "--num_rollouts", "8")
"""Rollouts in search of a right one: as many with branches on it as without."""

_VALUED = ("--flow.value_role", "--explore.valued_by", "value", "--credit.valued_by", "value")
"""CPL with a role that states the value of a new state, and learns to."""


def _arm(name: str, kind: Kind, what: str, make: Make, *against: str) -> Arm:
    return Arm(name=name, kind=kind, what=f"{what} {SAME_TOKENS}", make=make, against=against)


_FLOW = "answer_adapter"
"""The trained flow's Answer in one pass: Flow-DPO beside recipes that train whole answers."""
_NEIGHBOURS = (
    _arm("grpo_same_tokens", "single", "GRPO", budgeted("grpo", "tokens", *_AHEAD, *_CLIPPED), _FLOW),
    _arm(
        "vineppo_same_tokens",
        "single",
        "VinePPO",
        budgeted("vineppo", "tokens", *_AHEAD, *_CLIPPED, *_IN_STEPS),
        "grpo_same_tokens",
        _FLOW,
    ),
    _arm(
        "reference_path_same_tokens",
        "single",
        "fine-tuning on the first right path of eight rollouts, without branches on it,",
        budgeted("rejection-sampling", "tokens", *_PATHS, name="reference_path"),
        _FLOW,
    ),
    _arm(
        "rpo_no_contrast_same_tokens",
        "single",
        "Reasoning Paths Optimization with lambda 0, the likelihood of right branches alone,",
        budgeted("rpo", "tokens", *_PATHS, "--objective.exploration_weight", "0", name="rpo_no_contrast"),
        _FLOW,
    ),
    _arm(
        "rpo_same_tokens",
        "single",
        "Reasoning Paths Optimization",
        budgeted("rpo", "tokens", *_PATHS),
        "reference_path_same_tokens",
        "rpo_no_contrast_same_tokens",
        _FLOW,
    ),
    _arm(
        "cpl_no_margin_same_tokens",
        "flow",
        "Critical Plan Step Learning with alpha 0, sampled as its own flow,",
        budgeted("cpl", "tokens", *_FEW, "--objective.margin_weight", "0", name="cpl_no_margin", mode="flow"),
        "flow_itself",
    ),
    _arm(
        "cpl_same_tokens",
        "flow",
        "Critical Plan Step Learning, sampled as its own flow,",
        budgeted("cpl", "tokens", *_FEW, mode="flow"),
        "cpl_no_margin_same_tokens",
        "flow_itself",
    ),
    _arm(
        "cpl_value_same_tokens",
        "flow",
        "Critical Plan Step Learning with values that a role says, sampled as its own flow,",
        budgeted("cpl", "tokens", *_FEW, *_VALUED, name="cpl_value", mode="flow"),
        "cpl_same_tokens",
        "flow_itself",
    ),
)
_SELF_TRAINED = "self_training_same_tokens"
_INSTRUCTED = (
    _arm(
        _SELF_TRAINED,
        "single",
        "plain self-training, fine-tuning on the first right one of four rollouts,",
        budgeted("rejection-sampling", "tokens", *_FEW, name="self_training"),
        _FLOW,
    ),
    _arm(
        "dots_same_tokens",
        "flow",
        "DOTS, sampled as its own flow,",
        budgeted("dots", "tokens", *_FEW, mode="flow"),
        _SELF_TRAINED,
    ),
    _arm("regenesis_same_tokens", "single", "ReGenesis", budgeted("regenesis", "tokens", *_FEW), _SELF_TRAINED),
)
ARMS: Mapping[str, Arm] = {arm.name: arm for arm in (*_NEIGHBOURS, *_INSTRUCTED)}
_BESIDE = ("zero_shot", "answer_adapter", "flow_itself")
CONTRASTS = (*_BESIDE, *(arm.name for arm in _NEIGHBOURS))
"""The recipes, and beside them the base and Flow-DPO."""
INSTRUCTED = ("zero_shot", *(arm.name for arm in _INSTRUCTED))
"""The recipes for models that follow instructions, and beside them the base and plain self-training."""
