"""How is one round learned that holds what is said again and pairs?

Each kind by its own objective, in one loss: of a batch with a completion of loss 0.4 and a pair of loss 0.7

    loss 1.1    likelihood_loss 0.4    preference_loss 0.7    said_rate 1 of 2

Invariant: measures are over all examples, of both kinds, so that the two losses add up to the loss whatever a batch
holds; margins, which only pairs have, are not among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.objective import Loss, TokenLogprobs
from flow_dpo.core.types import Example, Pair, ScoredCompletion
from flow_dpo.recipes.rejection_sampling.objective import Nll


@dataclass(frozen=True, kw_only=True)
class SftThenDpo:
    """`Nll` of what is scored and `Dpo` of what is paired: the two losses of a round that begins by fine-tuning
    on right plays (Critical Plan Step Learning, arXiv 2409.08642)."""

    accepts: ClassVar[tuple[type, ...]] = (Pair, ScoredCompletion)

    say: Nll = field(default_factory=Nll)
    prefer: Dpo = field(default_factory=Dpo)

    @property
    def needs_reference(self) -> bool:
        return True

    def __call__(
        self, examples: Sequence[Example], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> Loss:
        said = [
            (example, mine)
            for example, mine in zip(examples, policy, strict=True)
            if isinstance(example, ScoredCompletion)
        ]
        pairs = [
            (example, mine, theirs)
            for example, mine, theirs in zip(examples, policy, reference, strict=True)
            if isinstance(example, Pair)
        ]
        nothing = torch.zeros((), device=policy[0][0].device)
        likelihood = self.say([e for e, _ in said], [p for _, p in said], []).total if said else nothing
        preference = (
            self.prefer([e for e, _, _ in pairs], [p for _, p, _ in pairs], [r for _, _, r in pairs]).total
            if pairs
            else nothing
        )
        measures = {
            "loss": (likelihood + preference).detach(),
            "likelihood_loss": likelihood.detach(),
            "preference_loss": preference.detach(),
            "said_rate": torch.tensor(float(len(said))),
        }
        return Loss(likelihood + preference, measures)
