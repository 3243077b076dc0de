"""RLOO (arXiv 2402.14740): REINFORCE on whole answers, each against the mean reward of the question's others.

The ratio is that of an answer's probabilities, a product over its tokens, as TRL's `RLOOTrainer` has it (1.16.0): on
policy its gradient is REINFORCE's, and beyond the first update of a batch it is clipped at 0.2. The paper's values are
those of its appendix C as huggingface/trl 0167b7d states them (docs/source/paper_index.md): 1,024 answers in two
updates, 4 to a question (2 in others of its runs), KL coefficient 0.03, rate 1e-6. Length and temperature are not given
there, and the paper's text was not read. The paper takes the divergence from the reward; here it is a term of the loss,
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
        learner=LearnerSettings(learning_rate=1e-6, examples_per_update=512, passes=PassSettings(short_batch="learn")),
        problems_per_batch=256,
    ),
    **fitted(_CREDIT, _OBJECTIVE, passes=PassSettings(short_batch="learn")),
}
