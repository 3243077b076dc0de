"""RLOO (arXiv 2402.14740): REINFORCE on whole answers, with the mean reward of a question's other answers as baseline.

The ratio is that of an answer's probabilities, a product over its tokens, as in TRL's `RLOOTrainer` (1.16.0): on policy
its gradient is REINFORCE's, and after the first update of a batch it is clipped at 0.2. The paper's values are those of
its appendix C for Pythia-6.9B on TL;DR, as others quote them, since its text was not available: 512 answers in two
updates of 256, KL coefficient 0.03, rate 1e-6 after a warm-up over 3 % of 600 steps, 4 answers per question (2 in other
runs, section 5.1). huggingface/trl 0167b7d (docs/source/paper_index.md) has the same, except for updates of 512. The
paper does not state length and temperature. It subtracts the divergence from the reward; here it is a term of the loss,
k2 summed over an answer.
"""

from __future__ import annotations

from flow_dpo.core.explore import Group
from flow_dpo.learner.settings import LearnerSettings, PassSettings
from flow_dpo.recipes.group_advantages import GroupAdvantages
from flow_dpo.recipes.groups import LORA, fitted, of_group
from flow_dpo.recipes.policy_gradient import ClippedPolicyGradient
from flow_dpo.recipes.scales import Preset
from flow_dpo.recipes.single import Single

_CREDIT = GroupAdvantages(baseline="others", scale=False)
_OBJECTIVE = ClippedPolicyGradient(ratio_level="product", kl_coef=0.03, kl_reduction="sum", kl_estimator="k2")

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        recipe=of_group(_CREDIT, _OBJECTIVE, Single(), Group(num_rollouts=4)),
        lora=LORA,
        learner=LearnerSettings(
            learning_rate=1e-6, warmup_updates=18, examples_per_update=256, passes=PassSettings(short_batch="learn")
        ),
        problems_per_batch=128,
    ),
    **fitted(_CREDIT, _OBJECTIVE, passes=PassSettings(short_batch="learn")),
}
