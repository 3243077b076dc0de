"""Prefill sharing: what the prompts of one batch have in common is computed once.

The beginning of a prompt can be cached already, and new prompts can share a beginning that is not cached yet, such as
worked examples. A shared stretch is computed in one row of the batch and copied to the others, layer by layer, inside
the same forward. Invariant: every token of every prompt is cached, copied or computed. The last one is always computed,
because its logits are needed.

    plan_prefill([(1, 5, 6, 7), (1, 5, 6, 9)], known=[1, 1])
    # PrefillPlan(start=1)                                      computes 5 6 7
    # PrefillPlan(start=3, copies=(CopiedSpan(0, 1, 3),))       copies 5 6 from row 0, computes 9
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flow_dpo.core.types import TokenIds
from flow_dpo.engines.local.prefix_cache import common_prefix


@dataclass(frozen=True, slots=True)
class CopiedSpan:
    """The tokens [begin, end) are copied from row `source` of the same batch, which computes them."""

    source: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """How one prompt is prefilled: the tokens before `start` are cached or copied, the rest is computed."""

    start: int
    copies: tuple[CopiedSpan, ...] = ()


def plan_prefill(prompts: Sequence[TokenIds], known: Sequence[int]) -> list[PrefillPlan]:
    """A plan for each prompt; `known` is how many of its first tokens are cached (at most all but the last)."""
    plans = [PrefillPlan(count) for count in known]
    owners: tuple[CopiedSpan, ...] = ()
    """Which rows compute which tokens of the previous prompt."""
    previous: TokenIds = ()
    # In sorted order, whatever a prompt shares with any earlier one it shares with the one just before it.
    for index in sorted(range(len(prompts)), key=lambda i: prompts[i]):
        prompt, start = prompts[index], known[index]
        # 1. The last token is never shared: its logits are needed.
        shared = min(common_prefix(previous, prompt, 0), len(prompt) - 1)
        # 2. Copy [start, shared) from the rows that compute it: a copied stretch has its first owners, not the copy.
        copies: tuple[CopiedSpan, ...] = ()
        if shared > start:
            copies = tuple(
                CopiedSpan(owner.source, max(owner.begin, start), min(owner.end, shared))
                for owner in owners
                if owner.begin < shared and owner.end > start
            )
            start = shared
        # 3. Compute the rest, and own it for the prompts that follow.
        plans[index] = PrefillPlan(start, copies)
        owners = (*(CopiedSpan(c.source, c.begin, c.end) for c in copies), CopiedSpan(index, start, len(prompt)))
        previous = prompt
    return plans
