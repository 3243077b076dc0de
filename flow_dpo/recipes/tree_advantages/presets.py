"""Presets of SPO-chain, SPO-tree, TreeRPO and TreeRL: values of segments from a tree, and a policy gradient.

SPO (arXiv 2505.23564): the paper's are those of the authors' configurations for Rho-1.1B on GSM8K
(AIFrameResearch/SPO at b9fc6a2, `configs/polIter_rho1bSft2_spo_chain_GSM8K.jsonnet`, `..._spo_tree_GSM8K.jsonnet`, what
these import, and the README's `interval5`): temperature 0.6, top-p 0.9, at most 1,024 tokens, tokens of a probability
from 0.9 on masked, clip 0.2, k3 summed over an answer with 1e-4, rate 1e-6 for all weights, warm-up over 3 % of 1,000
iterations and then linear to 0. Chain: 64 questions with 8 answers each, 9 completions from a state, a cut at every
fifth unsure token, 2 epochs over mini-batches of 64 answers. Tree: 16 questions, 6-6-6 segments of 30 tokens, up to 32
segments a question, mini-batches of 128. LoRA: none.

TreeRL (arXiv 2506.11902): the authors' script for Qwen-2.5-14B (THUDM/TreeRL at f0edbea, `scripts/treerl-qw14b.sh`,
`train_reinforce_ray.py`, `openrlhf/models/loss.py`): M 6, N 2, L 1, T 2, 16 of the 30 leaves learned, temperature 1.2,
top-p 0.95, at most 8,192 tokens, no penalty, clip 0.2 below and 0.26 above, rate 1.5e-6 for all weights, 16 questions
an update (about 512 segments). LoRA: none.

TreeRPO (arXiv 2506.05183): that a step is so many tokens, that every node has as many children to a depth, that a
node's reward is its children's mean, and that advantages are GRPO's among siblings is the paper's; its numbers could
not be read, and its code was not to be had, so those of "paper" are unchecked.
"""

from __future__ import annotations

from flow_dpo.core.recipe import Recipe
from flow_dpo.learner.settings import LearnerSettings, LoraSettings, PassSettings
from flow_dpo.recipes.full_tree import FullTree
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
from flow_dpo.recipes.tree_advantages.objective import SegmentPolicyGradient

_LORA = LoraSettings(lora_r=8, lora_alpha=8)


def _spo_chain(flow: Single, explore: CutRollouts) -> Recipe:
    return Recipe(flow=flow, explore=explore, credit=SegmentAdvantages(), objective=SegmentPolicyGradient())


def _spo_tree(flow: Single, explore: FullTree) -> Recipe:
    return Recipe(flow=flow, explore=explore, credit=SiblingAdvantages(), objective=SegmentPolicyGradient())


def _treerpo(flow: Single, explore: FullTree) -> Recipe:
    return Recipe(
        flow=flow,
        explore=explore,
        credit=SiblingAdvantages(scale="deviation", whiten=False, by_tokens=False, mask_above=0.0, max_per_problem=0),
        objective=SegmentPolicyGradient(kl_coef=0.001, kl_reduction="mean", mask_above=0.0),
    )


def _treerl(flow: Single, explore: EntropyForks) -> Recipe:
    return Recipe(
        flow=flow,
        explore=explore,
        credit=LeafAdvantages(),
        objective=SegmentPolicyGradient(clip_high=0.26, kl_coef=0.0, mask_above=0.0),
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
        logit_temperature=0.6,
    ),
    "small": SMALL.preset(
        _spo_chain(SMALL_SINGLE, CutRollouts(num_rollouts=8, num_completions=4, temperature=0.6, top_p=0.9)),
        logit_temperature=0.6,
    ),
    "seed": SEED.preset(
        _spo_chain(
            SEED_SINGLE,
            CutRollouts(num_rollouts=8, num_completions=4, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P),
        )
    ),
}

SPO_TREE: dict[str, Preset] = {
    "paper": Preset(
        recipe=_spo_tree(Single(max_tokens=1024), FullTree(segment_tokens=30, temperature=0.6, top_p=0.9)),
        lora=_LORA,
        learner=LearnerSettings(
            learning_rate=1e-6,
            examples_per_update=128,
            warmup_updates=240,
            decay_after=8_000,
            schedule="linear",
            logit_temperature=0.6,
        ),
        problems_per_batch=16,
    ),
    "chat": CHAT.preset(
        _spo_tree(
            Single(max_tokens=1024),
            FullTree(branch_factors=(4, 4, 4), segment_tokens=100, temperature=0.6, top_p=0.9),
        ),
        logit_temperature=0.6,
    ),
    "small": SMALL.preset(
        _spo_tree(SMALL_SINGLE, FullTree(branch_factors=(4, 4, 4), segment_tokens=30, temperature=0.6, top_p=0.9)),
        logit_temperature=0.6,
    ),
    "seed": SEED.preset(
        _spo_tree(
            SEED_SINGLE,
            FullTree(branch_factors=(4, 4, 4), segment_tokens=16, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P),
        )
    ),
}

TREERPO: dict[str, Preset] = {
    "paper": Preset(
        recipe=_treerpo(Single(max_tokens=1152), FullTree(branch_factors=(8, 8, 8), segment_tokens=384)),
        lora=_LORA,
        learner=LearnerSettings(learning_rate=1e-6, examples_per_update=512),
        problems_per_batch=16,
    ),
    "chat": CHAT.preset(_treerpo(Single(max_tokens=1152), FullTree(branch_factors=(4, 4, 4), segment_tokens=384))),
    "small": SMALL.preset(
        _treerpo(SMALL_SINGLE, FullTree(branch_factors=(4, 4, 4), segment_tokens=54, temperature=SMALL_TEMPERATURE))
    ),
    "seed": SEED.preset(
        _treerpo(
            SEED_SINGLE,
            FullTree(branch_factors=(4, 4, 4), segment_tokens=16, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P),
        )
    ),
}

TREERL: dict[str, Preset] = {
    "paper": Preset(
        recipe=_treerl(Single(max_tokens=8192), EntropyForks(temperature=1.2, top_p=0.95)),
        lora=_LORA,
        learner=LearnerSettings(learning_rate=1.5e-6, examples_per_update=512),
        problems_per_batch=16,
    ),
    "chat": CHAT.preset(_treerl(Single(max_tokens=1024), EntropyForks(num_rollouts=3, temperature=1.0, top_p=0.95))),
    "small": SMALL.preset(
        _treerl(SMALL_SINGLE, EntropyForks(num_rollouts=3, temperature=SMALL_TEMPERATURE, top_p=0.95))
    ),
    "seed": SEED.preset(
        _treerl(SEED_SINGLE, EntropyForks(num_rollouts=3, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P))
    ),
}
