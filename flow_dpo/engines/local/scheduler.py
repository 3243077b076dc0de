"""Scheduler of one role's rows: the requests that wait, and the rows of those under way.

The rows under way occupy the first places of the KV cache without gaps, so a decode step reads them in memory order;
the last row moves into the place of a row that finishes. Invariant: `active[i]` is at place i, and the keys and values
of its first `length` tokens are there.

    row_inputs = scheduler.admit(cache, max_rows=64, max_tokens=4096, max_bytes=1 << 30)    # admitted after the rest
    scheduler.remove({0, 5})                                        # the last two rows move to places 0 and 5
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from flow_dpo.core.types import Request, Role, Sampling, TokenIds
from flow_dpo.engines.local.flat_batch import RowInput
from flow_dpo.engines.local.kv_rows import KvRows
from flow_dpo.engines.local.prefill_sharing import CopiedSpan, PrefillPlan, plan_prefill
from flow_dpo.engines.local.prefix_cache import Found, PrefixCache, Segment


@dataclass(slots=True, eq=False)
class RequestState:
    """One request, waiting or under way, with what has been sampled for it."""

    ticket: int
    request: Request
    sampling: Sampling
    seed: int
    stream: int
    """Random-number stream made from the seed (`sampling_rule.stream`)."""
    excluded: TokenIds
    """Token ids that the first sampled token must not be."""
    length: int = 0
    """Tokens whose keys and values are in the row."""
    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    sampled_logprobs: list[float] = field(default_factory=list[float])

    found: Found | None = None
    """The place of its tokens in the prefix cache, as far as they were cached at the last look-up."""
    max_length: int = field(init=False)
    """Maximum number of tokens in the row: all but the last sampled one, which is never an input."""

    def __post_init__(self) -> None:
        self.max_length = len(self.request.prompt_ids) + (0 if self.request.choices else self.request.max_tokens - 1)


@dataclass(slots=True, eq=False)
class RoleScheduler:
    """One role's queue of requests and its rows of the KV cache."""

    role: Role
    rows: KvRows
    waiting: deque[RequestState] = field(default_factory=deque[RequestState])
    active: list[RequestState] = field(default_factory=list[RequestState])
    wait_cost: int = 0
    """Sum over the steps of other roles, while no row was under way here, of the number of waiting requests."""
    wait_steps: int = 0

    @property
    def peak_bytes(self) -> int:
        """Bytes that the rows take now, or can take before those under way are finished, whichever is more."""
        max_length = max((row.max_length for row in self.active), default=0)
        return max(self.rows.num_bytes, KvRows.num_bytes_of(self.rows.shapes, len(self.active), max_length))

    def admit(self, cache: PrefixCache | None, *, max_rows: int, max_tokens: int, max_bytes: int) -> list[RowInput]:
        """Move requests from the queue into rows, as many as fit, and load what is cached of their prompts.

        Returns their inputs in the order that `FlatBatch` needs: single tokens first, then by ascending number of
        tokens. Afterwards every row has room for its inputs of this step.
        """
        # 1. Choose requests, and find how many tokens of each prompt are cached (never the last).
        picked = self._pick(cache, max_rows, max_tokens, max_bytes)
        known = [min(found[-1].end, len(row.request.prompt_ids) - 1) if found else 0 for row, found in picked]
        prompts = [row.request.prompt_ids for row, _ in picked]
        # 2. Share prefill between the prompts that begin alike.
        plans = [PrefillPlan(0)] * len(picked) if cache is None else plan_prefill(prompts, known)
        # 3. Assign places after the rows under way, fewest tokens to compute first.
        order = sorted(range(len(picked)), key=lambda index: len(prompts[index]) - plans[index].start)
        place_of = {index: len(self.active) + at for at, index in enumerate(order)}
        # 4. Make room, then load the cached keys and values.
        rows = [*self.active, *(row for row, _ in picked)]
        needed = max([*(row.length + 1 for row in self.active), *map(len, prompts)])
        self.rows.reserve(len(rows), needed, max(row.max_length for row in rows), max_bytes)
        row_inputs: list[RowInput] = []
        for index in order:
            row, found = picked[index]
            self.rows.load(place_of[index], found, known[index])
            copies = tuple(CopiedSpan(place_of[copy.source], copy.begin, copy.end) for copy in plans[index].copies)
            row_inputs.append(RowInput(plans[index].start, len(prompts[index]), copies))
            self.active.append(row)
        return row_inputs

    def remove(self, places: Collection[int]) -> None:
        """Drop the rows at these places and close the gaps by moving the last rows into them."""
        targets: list[int] = []
        sources: list[int] = []
        for place in sorted(places):
            while len(self.active) - 1 in places and len(self.active) - 1 > place:
                self.active.pop()
            if place >= len(self.active):
                break
            last = self.active.pop()
            if place < len(self.active):
                targets.append(place)
                sources.append(len(self.active))
                self.active[place] = last
        self.rows.move(targets, sources, [self.active[target].length for target in targets])

    def _pick(
        self, cache: PrefixCache | None, max_rows: int, max_tokens: int, max_bytes: int
    ) -> list[tuple[RequestState, list[Segment]]]:
        """Requests in arrival order, while rows, tokens and memory last; at least one if nothing is under way."""
        picked: list[tuple[RequestState, list[Segment]]] = []
        max_length = max((row.max_length for row in self.active), default=0)
        num_tokens = 0
        while self.waiting and len(self.active) + len(picked) < max_rows:
            row = self.waiting[0]
            found: list[Segment] = []
            if cache is not None:
                found, row.found = cache.search(self.role, row.request.prompt_ids)
            max_length = max(max_length, row.max_length)
            num_tokens += len(row.request.prompt_ids) - (found[-1].end if found else 0)
            num_rows = len(self.active) + len(picked) + 1
            if num_rows > 1 and KvRows.num_bytes_of(self.rows.shapes, num_rows, max_length) > max_bytes:
                break
            if picked and num_tokens > max_tokens:
                break
            picked.append((self.waiting.popleft(), found))
        return picked
