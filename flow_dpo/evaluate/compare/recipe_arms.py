"""Arms of a comparison that test the package's recipes against each other, with the same budget, data and model.

Every arm is a recipe with its own preset (`recipes.presets`), trained until it has used `compare.tokens`, or the tokens
that the comparison's flow used on its problems; nothing is compiled. An arm names what it is compared with: the recipe
that it changes, or what its paper compares it with, so that the two differ only in that:

    dapo_same_tokens       against    grpo_same_tokens             two recipes, each by its own preset
    vineppo_same_tokens    against    grpo_as_vineppo_same_tokens  the same rollouts, loss and updates; other advantages
    rpo_same_tokens        against    reference_path_same_tokens   the same search for a right path; no branches
    cpl_same_tokens        against    cpl_no_margin_same_tokens    the same search and pairs; alpha 0
    cpl_value_same_tokens  against    cpl_same_tokens              new states valued by a role, not by rollouts

DOTS and ReGenesis search with instructions, which need a model that follows them; they are a group of their own,
compared with plain self-training: `self_training_same_tokens`, rejection-sampling fine-tuning with their batches.

Invariant: no arm sets a learning rate. All use the scale's, or one chosen for each in the same way (`compare.rates`).
"""

from __future__ import annotations

from collections.abc import Mapping

from flow_dpo.evaluate.compare.arms import SAME_TOKENS, Arm, Kind, Make, budgeted

_AHEAD = ("--problems_per_batch", "8")
"""Problems sampled with one version. One problem of a search costs as much as a batch of rollouts, and a run ends only
at the end of a batch, so small batches end close to the budget."""
_FEW = (*_AHEAD, "--examples_per_update", "8")
"""For recipes that sample much for few examples: with the 32 of a plain flow they would hardly leave the warm-up."""
_AS_VINEPPO = (
    *("--objective.kl_coef", "1e-4", "--objective.kl_reduction", "sum", "--objective.max_kl", "10"),
    *("--objective.max_ratio", "10", "--objective.reduction", "tokens", "--credit.scale", "false", "--credit.whiten"),
    *("--examples_per_update", "0", "--learner.passes.minibatches", "8", "--learner.passes.short_batch", "wait"),
)
"""GRPO with everything of VinePPO except its advantages: loss, whitening, and eight updates per batch."""
_PATHS = (*_FEW, "--num_rollouts", "8")
"""Rollouts in search of a right one: equally many with and without branches on it."""

_VALUED = ("--flow.value_role", "--explore.valued_by", "value", "--credit.valued_by", "value")
"""CPL with a role that states the value of a new state, and learns to do so."""


def _arm(name: str, kind: Kind, what: str, make: Make, *against: str) -> Arm:
    return Arm(name=name, kind=kind, what=f"{what} {SAME_TOKENS}", make=make, against=against)


def _own(recipe: str, what: str, *against: str, few: bool = False, kind: Kind = "single") -> Arm:
    """A recipe with its own preset, with `few` examples per update if wished."""
    name = f"{recipe.replace('-', '_')}_same_tokens"
    make = budgeted(recipe, "tokens", *(_FEW if few else _AHEAD), mode="flow" if kind == "flow" else "single")
    return _arm(name, kind, what, make, *against)


_FLOW = "answer_adapter"
"""The trained flow's Answer in one pass: Flow-DPO compared with recipes that train whole answers."""
_GRPO, _DPO = "grpo_same_tokens", "whole_dpo_same_tokens"
_NEIGHBOURS = (
    _arm(
        "flow_dpo_same_tokens",
        "flow",
        "the flow whose Stop judges whole attempts, as its own flow,",
        budgeted("flow-dpo", "tokens", mode="flow"),  # how often its Stop learns per batch is part of its preset
        "flow_itself",
    ),
    _arm(
        "flow_dpo_paper_same_tokens",
        "flow",
        "the paper's flow, whose Stop judges every chunk,",
        budgeted("flow-dpo-paper", "tokens", mode="flow"),
        "flow_dpo_same_tokens",
    ),
    _arm(_DPO, "single", "whole-answer online DPO", budgeted("online-dpo", "tokens", *_FEW, name="whole_dpo"), _FLOW),
    _arm(
        "iterative_rpo_same_tokens",
        "single",
        "Iterative RPO",
        budgeted("iterative-rpo", "tokens"),  # its reference is renewed with each batch, as its preset says
        _DPO,
        _FLOW,
    ),
    _own("step-dpo", "Step-DPO", _DPO, _FLOW, few=True),
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
    _own("grpo", "GRPO", _FLOW),
    _own("dapo", "DAPO", _GRPO, _FLOW),
    _own("dr-grpo", "Dr. GRPO", _GRPO, _FLOW),
    _own("gspo", "GSPO", _GRPO, _FLOW),
    _own("cispo", "CISPO", "dapo_same_tokens", _FLOW),
    _own("rloo", "RLOO", _GRPO, _FLOW),
    _arm(
        "reinforce_pp_same_tokens",
        "single",
        "REINFORCE++",
        budgeted("reinforce-pp", "tokens"),  # its baseline is the mean of a batch, whose size is its preset's
        _GRPO,
        _FLOW,
    ),
    _own("reinforce-baseline", "REINFORCE++ with a group's mean as its baseline", _GRPO, _FLOW),
    _arm(
        "grpo_as_vineppo_same_tokens",
        "single",
        "VinePPO's loss and updates with the advantages of whole answers",
        budgeted("grpo", "tokens", *_AHEAD, *_AS_VINEPPO, name="grpo_as_vineppo"),
        _GRPO,
    ),
    _own("vineppo", "VinePPO", "grpo_as_vineppo_same_tokens", _FLOW),
    _own("spo-chain", "SPO's chains", _GRPO, _FLOW),
    _own("spo-tree", "SPO's trees", _GRPO, _FLOW),
    _own("treerpo", "TreeRPO", _GRPO, _FLOW),
    _own("treerl", "TreeRL", _GRPO, _FLOW),
    _arm(
        "cpl_no_margin_same_tokens",
        "flow",
        "Critical Plan Step Learning with alpha 0, sampled as its own flow,",
        budgeted("cpl", "tokens", *_FEW, "--objective.margin_weight", "0", name="cpl_no_margin", mode="flow"),
        "flow_itself",
    ),
    _own(
        "cpl",
        "Critical Plan Step Learning, sampled as its own flow,",
        "cpl_no_margin_same_tokens",
        "flow_itself",
        few=True,
        kind="flow",
    ),
    _arm(
        "cpl_value_same_tokens",
        "flow",
        "Critical Plan Step Learning with values that a role predicts, sampled as its own flow,",
        budgeted("cpl", "tokens", *_FEW, *_VALUED, name="cpl_value", mode="flow"),
        "cpl_same_tokens",
        "flow_itself",
    ),
    _own("malt", "MALT, sampled as its own flow,", "flow_itself", few=True, kind="flow"),
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
    _own("dots", "DOTS, sampled as its own flow,", _SELF_TRAINED, few=True, kind="flow"),
    _own("regenesis", "ReGenesis", _SELF_TRAINED, few=True),
)
ARMS: Mapping[str, Arm] = {arm.name: arm for arm in (*_NEIGHBOURS, *_INSTRUCTED)}
_BESIDE = ("zero_shot", "answer_adapter", "flow_itself")
_PAPER_FLOW = "flow_dpo_paper_same_tokens"
CONTRASTS = (*_BESIDE, *(arm.name for arm in _NEIGHBOURS if arm.name != _PAPER_FLOW))
"""The recipes, together with the base and Flow-DPO."""
INSTRUCTED = ("zero_shot", *(arm.name for arm in _INSTRUCTED))
"""The recipes for models that follow instructions, together with the base and plain self-training."""
COST = ("zero_shot", "flow_dpo_same_tokens", _PAPER_FLOW, _DPO, _GRPO, "rejection_sampling_same_tokens")
"""The practical alternatives; their accuracies at several budgets make a curve."""
