"""Presets of SPO-chain, SPO-tree, TreeRPO and TreeRL: values of segments from a tree, and a policy gradient.

SPO (arXiv 2505.23564): the values are those of the authors' configurations for Rho-1.1B on GSM8K (AIFrameResearch/SPO
at b9fc6a2, `configs/polIter_rho1bSft2_spo_chain_GSM8K.jsonnet`, `..._spo_tree_GSM8K.jsonnet`, their imports, and the
README's `interval5`): temperature 0.6, top-p 0.9, at most 1,024 tokens, tokens of a probability from 0.9 on masked,
clip 0.2, k3 summed over an answer with 1e-4 (a token's at most 10), mini-batches with a mean ratio above 10 skipped,
rate 1e-6 for all weights, warm-up over 3 % of 1,000 iterations and then linear to 0. Chain: 64 questions with 8 answers
each, 9 completions per state, a cut at every fifth unsure token, 2 epochs over mini-batches of 64 answers. Tree: 16
questions, 6-6-6 segments of 30 tokens, up to 32 segments per question, mini-batches of 128. LoRA: none.

TreeRL (arXiv 2506.11902): the authors' script for Qwen-2.5-14B (THUDM/TreeRL at f0edbea, `scripts/treerl-qw14b.sh`,
`train_reinforce_ray.py`, `openrlhf/models/loss.py`, `openrlhf/trainer/ray/reinforce_actor.py`): M 6, N 2, L 1, T 2, 16
of the 30 leaves learned, temperature 1.2, top-p 0.95, at most 8,192 tokens, no penalty, clip 0.2 below and 0.26 above,
one update per batch of 16 questions, rate 1.5e-6 for all weights, constant (its cosine falls to 1 times the rate) after
a warm-up over 5 % of the 234 updates that its scheduler counts in 2 passes over 30,000 questions. LoRA: none.

TreeRPO (arXiv 2506.05183): the paper's are steps of a fixed number of tokens, the same number of children at every node
down to a depth, a node's reward as the mean of its children's, and GRPO's advantages among siblings. Its text beyond
the abstract could not be read and its code was not available: 8 children, depth 3 and steps of 384 tokens are what the
reviews of its submission state (OpenReview, ICLR 2026); rate, batch and penalty of "paper" are unchecked.
"""

from __future__ import annotations

from typing import Any

from flow_dpo.core.recipe import Recipe
from flow_dpo.learner.settings import LearnerSettings, LoraSettings, PassSettings
from flow_dpo.recipes.full_tree import FullTree
from flow_dpo.recipes.policy_gradient import ClippedPolicyGradient
from flow_dpo.recipes.scales import (
    CHAT,
    SEED,
    SEED_SINGLE,
    SEED_TEMPERATURE,
    SEED_TOP_P,
    SMALL,
    SMALL_SINGLE,
    SMALL_TEMPERATURE,
    Preset,
)
from flow_dpo.recipes.single import Single
from flow_dpo.recipes.tree_advantages.credit import LeafAdvantages, SegmentAdvantages, SiblingAdvantages
from flow_dpo.recipes.tree_advantages.cuts import CutRollouts
from flow_dpo.recipes.tree_advantages.forks import EntropyForks

_LORA = LoraSettings(lora_r=8, lora_alpha=8)
_PARTS: dict[str, Any] = {"passes": PassSettings(problems_per_update=4, short_batch="learn")}
"""For the three sizes of model. Segments are examples, from a few to a hundred per problem: by them an update would
cover one or two problems. Four have about as many answers as GRPO's, and no segment waits for another version's."""

_SPO = ClippedPolicyGradient(
    reduction="completion", kl_coef=1e-4, kl_reduction="sum", max_kl=10.0, max_ratio=10.0, mask_above=0.9
)  # fmt: skip


def _spo_chain(flow: Single, explore: CutRollouts) -> Recipe:
    return Recipe(flow=flow, explore=explore, credit=SegmentAdvantages(), objective=_SPO)


def _spo_tree(flow: Single, explore: FullTree) -> Recipe:
    return Recipe(flow=flow, explore=explore, credit=SiblingAdvantages(), objective=_SPO)


def _treerpo(flow: Single, explore: FullTree) -> Recipe:
    return Recipe(
        flow=flow,
        explore=explore,
        credit=SiblingAdvantages(scale="deviation", whiten=False, by_tokens=False, mask_above=0.0, max_per_problem=0),
        objective=ClippedPolicyGradient(reduction="completion", kl_coef=0.001),
    )


def _treerl(flow: Single, explore: EntropyForks) -> Recipe:
    return Recipe(
        flow=flow,
        explore=explore,
        credit=LeafAdvantages(),
        objective=ClippedPolicyGradient(reduction="completion", clip_high=0.26, kl_coef=0.0),
    )


SPO_CHAIN: dict[str, Preset] = {
    "paper": Preset(
        recipe=_spo_chain(
            Single(max_tokens=1024), CutRollouts(num_rollouts=8, num_completions=9, temperature=0.6, top_p=0.9)
        ),
        lora=_LORA,
        learner=LearnerSettings(
            learning_rate=1e-6,
            warmup_updates=480,
            decay_after=16_000,
            schedule="linear",
            logit_temperature=0.6,
            examples_per_update=0,
            passes=PassSettings(minibatches=8, epochs_per_batch=2),
        ),
        problems_per_batch=64,
    ),
    "chat": CHAT.preset(
        _spo_chain(
            Single(max_tokens=1024),
            CutRollouts(num_rollouts=8, num_completions=4, cut_interval=10, temperature=0.6, top_p=0.9),
        ),
        **_PARTS,
        logit_temperature=0.6,
    ),
    "small": SMALL.preset(
        _spo_chain(SMALL_SINGLE, CutRollouts(num_rollouts=8, num_completions=4, temperature=0.6, top_p=0.9)),
        **_PARTS,
        logit_temperature=0.6,
    ),
    "seed": SEED.preset(
        _spo_chain(
            SEED_SINGLE,
            CutRollouts(num_rollouts=8, num_completions=4, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P),
        ),
        **_PARTS,
    ),
}

SPO_TREE: dict[str, Preset] = {
    "paper": Preset(
        recipe=_spo_tree(Single(max_tokens=1024), FullTree(segment_tokens=30, temperature=0.6, top_p=0.9)),
        lora=_LORA,
        learner=LearnerSettings(
            learning_rate=1e-6,
            warmup_updates=240,
            decay_after=8_000,
            schedule="linear",
            examples_per_update=128,
            passes=PassSettings(short_batch="learn"),
            logit_temperature=0.6,
        ),
        problems_per_batch=16,
    ),
    "chat": CHAT.preset(
        _spo_tree(
            Single(max_tokens=1024),
            FullTree(branch_factors=(4, 4, 4), segment_tokens=100, temperature=0.6, top_p=0.9),
        ),
        **_PARTS,
        logit_temperature=0.6,
    ),
    "small": SMALL.preset(
        _spo_tree(SMALL_SINGLE, FullTree(branch_factors=(4, 4, 4), segment_tokens=30, temperature=0.6, top_p=0.9)),
        **_PARTS,
        logit_temperature=0.6,
    ),
    "seed": SEED.preset(
        _spo_tree(
            SEED_SINGLE,
            FullTree(branch_factors=(4, 4, 4), segment_tokens=16, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P),
        ),
        **_PARTS,
    ),
}

TREERPO: dict[str, Preset] = {
    "paper": Preset(
        recipe=_treerpo(Single(max_tokens=1152), FullTree(branch_factors=(8, 8, 8), segment_tokens=384)),
        lora=_LORA,
        learner=LearnerSettings(learning_rate=1e-6, examples_per_update=512, passes=PassSettings(short_batch="learn")),
        problems_per_batch=16,
    ),
    "chat": CHAT.preset(
        _treerpo(Single(max_tokens=1152), FullTree(branch_factors=(4, 4, 4), segment_tokens=384)), **_PARTS
    ),
    "small": SMALL.preset(
        _treerpo(SMALL_SINGLE, FullTree(branch_factors=(4, 4, 4), segment_tokens=54, temperature=SMALL_TEMPERATURE)),
        **_PARTS,
    ),
    "seed": SEED.preset(
        _treerpo(
            SEED_SINGLE,
            FullTree(branch_factors=(4, 4, 4), segment_tokens=16, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P),
        ),
        **_PARTS,
    ),
}

TREERL: dict[str, Preset] = {
    "paper": Preset(
        recipe=_treerl(Single(max_tokens=8192), EntropyForks(temperature=1.2, top_p=0.95)),
        lora=_LORA,
        learner=LearnerSettings(learning_rate=1.5e-6, examples_per_update=0, warmup_updates=12),
        problems_per_batch=16,
    ),
    "chat": CHAT.preset(
        _treerl(Single(max_tokens=1024), EntropyForks(num_rollouts=3, temperature=1.0, top_p=0.95)), **_PARTS
    ),
    "small": SMALL.preset(
        _treerl(SMALL_SINGLE, EntropyForks(num_rollouts=3, temperature=SMALL_TEMPERATURE, top_p=0.95)), **_PARTS
    ),
    "seed": SEED.preset(
        _treerl(SEED_SINGLE, EntropyForks(num_rollouts=3, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P)), **_PARTS
    ),
}
