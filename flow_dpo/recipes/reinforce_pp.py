"""REINFORCE++ (arXiv 2501.03262): advantages that are standard scores over the whole batch, not within a group.

`PRESETS` is REINFORCE++: one answer per question, and the batch's mean as the only baseline. `BASELINE` is its variant
for reasoning, which subtracts the group's mean first. The paper preset of `BASELINE` has the values of the authors'
script (OpenRLHF/OpenRLHF 3c3be623, examples/scripts/train_reinforce_baseline_hybrid_engine.sh) and the defaults of the
command that it calls (openrlhf/cli/train_ppo_ray.py): 8 answers of at most 64,000 tokens to each of 128 questions, one
update, groups that are all right or all wrong replaced, KL 1e-5 as k2 in the loss, rate 5e-7 after a warm-up over 3 %
of the updates that 128,000 questions make, clip 0.2, means over tokens (openrlhf/models/loss.py). That of `PRESETS` has
the same, except for 1,024 questions and a KL term of 0.01 (that code's default). The paper subtracts this term from the
rewards of single tokens; here it is in the loss.
"""

from __future__ import annotations

from dataclasses import replace

from flow_dpo.core.explore import Group
from flow_dpo.learner.settings import LearnerSettings, PassSettings
from flow_dpo.recipes.group_advantages import GroupAdvantages
from flow_dpo.recipes.groups import LORA, fitted, of_group
from flow_dpo.recipes.policy_gradient import ClippedPolicyGradient
from flow_dpo.recipes.scales import Preset
from flow_dpo.recipes.single import Single

_MAX_TOKENS = 64_000
_ALONE = GroupAdvantages(baseline="none", scale=False, whiten=True, drop_tied=False)
_GROUP = GroupAdvantages(scale=False, whiten=True)
_OBJECTIVE = ClippedPolicyGradient(reduction="tokens", kl_coef=1e-5, kl_estimator="k2")
_OBJECTIVE_ALONE = replace(_OBJECTIVE, kl_coef=0.01)

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=of_group(_ALONE, _OBJECTIVE_ALONE, Single(max_tokens=_MAX_TOKENS), Group(num_rollouts=1)),
        lora=LORA,
        learner=LearnerSettings(
            learning_rate=5e-7, warmup_updates=4, examples_per_update=1024, passes=PassSettings(short_batch="learn")
        ),
        problems_per_batch=1024,
    ),
    **fitted(_ALONE, _OBJECTIVE_ALONE, num_rollouts=1, passes=PassSettings(short_batch="learn")),
}
BASELINE: dict[str, Preset] = {
    "paper": Preset(
        recipe=of_group(_GROUP, _OBJECTIVE, Single(max_tokens=_MAX_TOKENS), Group(num_rollouts=8)),
        lora=LORA,
        learner=LearnerSettings(
            learning_rate=5e-7, warmup_updates=30, examples_per_update=1024, passes=PassSettings(short_batch="fill")
        ),
        problems_per_batch=128,
    ),
    **fitted(_GROUP, _OBJECTIVE, passes=PassSettings(minibatches=4, short_batch="fill")),
}
