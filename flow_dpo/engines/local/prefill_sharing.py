"""What must be computed when several prompts are read together?

Each prompt's beginning may be known already; and prompts that are new may begin alike, with worked examples that
nobody has read yet. What is shared is computed in one row of the wave and copied to the others, layer by layer, inside
the same forward. Invariant: every token of every prompt is known, copied or computed, and the last one is computed,
because its logits are wanted.

    share([(1, 5, 6, 7), (1, 5, 6, 9)], known=[1, 1])
    # Reading(start=1)                                    computes 5 6 7
    # Reading(start=3, copies=(Copied(0, 1, 3),))         copies 5 6 from row 0, computes 9
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flow_dpo.core.types import TokenIds
from flow_dpo.engines.local.prefix_cache import common_prefix


@dataclass(frozen=True, slots=True)
class Copied:
    """The tokens [begin, end) are computed in another row of the wave."""

    source: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Reading:
    """How one prompt is read: what lies before `start` is known or copied, the rest computed."""

    start: int
    copies: tuple[Copied, ...] = ()


def share(prompts: Sequence[TokenIds], known: Sequence[int]) -> list[Reading]:
    """How each prompt is read, where `known` tokens of it are known (at most all but the last)."""
    readings = [Reading(count) for count in known]
    owners: tuple[Copied, ...] = ()
    """Which row computes what, of the prompt before."""
    before: TokenIds = ()
    # In the order of their tokens, whatever a prompt shares with any earlier one it shares with the one just before.
    for index in sorted(range(len(prompts)), key=lambda i: prompts[i]):
        prompt, start = prompts[index], known[index]
        shared = min(common_prefix(before, prompt, 0), len(prompt) - 1)
        copies: tuple[Copied, ...] = ()
        if shared > start:
            copies = tuple(
                Copied(owner.source, max(owner.begin, start), min(owner.end, shared))
                for owner in owners
                if owner.begin < shared and owner.end > start
            )
            start = shared
        readings[index] = Reading(start, copies)
        owners = (*(Copied(c.source, c.begin, c.end) for c in copies), Copied(index, start, len(prompt)))
        before = prompt
    return readings
