"""DAPO (arXiv 2503.14476): GRPO with a higher upper clip, only groups of mixed rewards, and means over tokens.

All four parts are shared with GRPO; this file has their values. The paper's are those of section 4.1 and of the
authors' script (verl-project/verl-recipe 48ea0a7, dapo/run_dapo_qwen2.5_32b.sh): clip 0.2 below and 0.28 above, no KL
term, 16 answers to each of 512 questions, updates of 512 answers (so 16 per batch), rate 1e-6, gradients clipped at 1;
at most 20,480 tokens, with a reward that falls over the last 4,096 (a share of 0.2 here, at any length). Temperature 1,
top-p 1. Warm-up: the paper has 20 rollout steps, the script 10 updates; here the paper's, 20 steps of 16 updates.

Dynamic sampling is `short_batch` "fill": sampling continues with one version until groups with both right and wrong
answers hold as many answers as a batch takes; the rest is dropped. Invariant: an update holds answers of only one
version of the policy (with `run.lag` 0).
"""

from __future__ import annotations

from flow_dpo.core.explore import Group
from flow_dpo.learner.settings import LearnerSettings, PassSettings
from flow_dpo.recipes.group_advantages import GroupAdvantages
from flow_dpo.recipes.groups import LORA, fitted, of_group
from flow_dpo.recipes.policy_gradient import ClippedPolicyGradient
from flow_dpo.recipes.scales import Preset
from flow_dpo.recipes.single import Single

_CREDIT = GroupAdvantages(overlong_share=0.2)
_OBJECTIVE = ClippedPolicyGradient(clip_low=0.2, clip_high=0.28, reduction="tokens", kl_coef=0.0)

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=of_group(_CREDIT, _OBJECTIVE, Single(max_tokens=20_480), Group(num_rollouts=16)),
        lora=LORA,
        learner=LearnerSettings(
            learning_rate=1e-6,
            warmup_updates=320,
            examples_per_update=512,
            passes=PassSettings(minibatches=16, short_batch="fill"),
        ),
        problems_per_batch=512,
    ),
    **fitted(_CREDIT, _OBJECTIVE, passes=PassSettings(minibatches=4, short_batch="fill")),
}
