"""Drift check: are a learner's log-probabilities those that the engine recorded when it sampled, and if not, why?

Both sides compute log-probabilities of the same tokens under the same weights, so they should differ only by rounding.
Comparing takes no extra forward if the learner makes one anyway, without dropout and with the weights that sampled.
With dropout, or under earlier weights that were kept, a few completions are recomputed without dropout. Completions of
other versions are only counted:

    version 4, reference the base (version 0), 3 kept    those of 4 and 0 are compared, a few of 3, none of 2

If they differ too much, `explain` measures every cause that can be told apart and names the one that fits.

Invariant: a completion is compared only under the weights that sampled it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

import torch
from transformers import PreTrainedModel

from flow_dpo.models.drift_causes import PromptedCompletion, distance, measure_causes

SAMPLE = 8
"""Number of completions that are recomputed: for each version with dropout or lag, and to explain a drift."""
Held = str | None | tuple[str, int]
"""Weights that a model can hold: an adapter by name, as it is now or as it was at a version; None for the base."""


@dataclass(slots=True)
class Drift:
    """The comparisons of one role's update."""

    completions: list[PromptedCompletion] = field(default_factory=list[PromptedCompletion])
    found: list[torch.Tensor] = field(default_factory=list[torch.Tensor])
    """The learner's log-probabilities of each, on the CPU."""
    adapters: list[Held] = field(default_factory=list[Held])
    """The weights that they were computed under: those of the version that sampled."""
    num_tokens: int = 0
    """Number of tokens in all completions of the update, compared or not."""

    def add(self, completion: PromptedCompletion, found: torch.Tensor, adapter: Held) -> None:
        self.completions.append(completion)
        self.found.append(found.detach().cpu())
        self.adapters.append(adapter)

    def differences(self) -> list[torch.Tensor]:
        """Recorded minus found, in nats, by completion."""
        return [torch.tensor(c.logprobs) - f for (_, c), f in zip(self.completions, self.found, strict=True)]

    def measures(self) -> dict[str, float]:
        """The mean and the largest difference, if anything was compared, and the share of tokens that was."""
        if not self.completions:
            return {"compared_share": 0.0}
        away = torch.cat(self.differences()).abs()
        share = len(away) / self.num_tokens
        return {
            "logprob_drift": float(away.mean()), "max_logprob_drift": float(away.max()), "compared_share": share
        }  # fmt: skip

    def explain(
        self,
        model: PreTrainedModel,
        using: Callable[[Held], AbstractContextManager[object]],
        weights: Mapping[Held, str],
        limit: float,
    ) -> str:
        """The cause that fits best, with what was measured.

        `using` puts any of `weights` on the model, or none; the values of `weights` name them in the message.
        """
        # 1. The completions that differ most, and the adapter that they were computed under.
        differences = self.differences()
        away = [float(d.abs().mean()) for d in differences]
        worst = sorted((i for i in range(len(away)) if away[i] >= max(away) / 4), key=lambda i: -away[i])[:SAMPLE]
        used = self.adapters[worst[0]]
        sample = [self.completions[i] for i in worst if self.adapters[i] == used]
        prompts = list(dict.fromkeys(request.prompt_ids for request, _ in self.completions))
        # 2. What each cause would have given.
        named: dict[Held, str] = {None: "the base without an adapter", **weights}
        others = {name: partial(using, held) for held, name in named.items() if held != used}
        causes = measure_causes(model, sample, prompts, lambda: using(used), others)
        measured = ", ".join(f"{name} {nats:.2g}" for name, nats in list(causes.items())[:4])
        with using(used):
            own = distance(model, sample)
        # 3. The one that fits; else which side is off, and what the differences look like.
        cause, nearest = next(iter(causes.items()))
        if own <= limit / 4:
            return f"the model's own logits fit what was recorded to within {own:.2g} nats: the learner is at fault"
        if nearest <= limit / 4:
            return f"what was recorded fits {cause} to within {nearest:.2g} nats: the engine sampled with that"
        return f"{_shape(differences, limit)} (the model's own logits are {own:.2g} nats away, {measured})"


def spread(completions: Sequence[PromptedCompletion]) -> list[PromptedCompletion]:
    """A few of the completions, evenly spread."""
    return list(completions[:: max(1, -(-len(completions) // SAMPLE))])


def _shape(differences: Sequence[torch.Tensor], limit: float) -> str:
    """What differences that no cause explains look like: only at the first tokens, or as even as rounding."""
    first, rest = (torch.cat([part(d) for d in differences]).abs() for part in (lambda d: d[:4], lambda d: d[4:]))
    if len(rest) and float(rest.mean()) < limit / 2 and float(first.mean()) > limit:
        return (
            f"the first four tokens differ by {float(first.mean()):.2g} nats and the rest by {float(rest.mean()):.2g}, "
            "as with another prompt"
        )
    every = torch.cat(list(differences))
    size, bias = float(every.abs().mean()), abs(float(every.mean()))
    by_chance = 2 * float(every.std()) / len(every) ** 0.5
    if len(every) >= 20 and float(every.abs().max()) < 5 * size and bias < max(size / 4, by_chance):
        return "the differences are even and cancel, as rounding in a coarser precision does"
    return "no known cause fits: the engine computes another distribution, or had another prompt or adapter"
