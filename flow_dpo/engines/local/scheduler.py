"""Which requests of one role are under way, and where do they lie?

A lane is a role's queue and its rows. Rows under way lie without gaps at the first places of the tensors, so a decode
step reads them as they lie: a row that finishes is overwritten by the last one. Invariant: `active[i]` lies at place i,
and the keys and values of its first `length` tokens are there.

    fed = lane.admit(store, max_rows=64, max_tokens=4096, max_bytes=1 << 30)    # the admitted lie behind the rest
    lane.leave({0, 5})                                                          # the last two rows move to 0 and 5
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from flow_dpo.core.types import Request, Role, Sampling, TokenIds
from flow_dpo.engines.local.flat_batch import Fed
from flow_dpo.engines.local.kv_rows import Rows
from flow_dpo.engines.local.prefill_sharing import Copied, Reading, share
from flow_dpo.engines.local.prefix_cache import PrefixStore, Segment


@dataclass(slots=True, eq=False)
class Row:
    """One request, waiting or under way."""

    ticket: int
    request: Request
    sampling: Sampling
    seed: int
    stream: int
    excluded: TokenIds
    length: int = 0
    """Tokens whose keys and values lie in the row."""
    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    sampled_logprobs: list[float] = field(default_factory=list[float])

    @property
    def most(self) -> int:
        """Tokens that the row will hold at most: all but the last sampled one, which is never fed."""
        return len(self.request.prompt_ids) + (0 if self.request.choices else self.request.max_tokens - 1)


@dataclass(slots=True, eq=False)
class Lane:
    """All that one role has to do."""

    role: Role
    rows: Rows
    queue: deque[Row] = field(default_factory=deque[Row])
    active: list[Row] = field(default_factory=list[Row])
    waited: int = 0
    """Steps that other roles made while requests waited here and nothing was under way, times the requests."""
    waited_steps: int = 0

    @property
    def most_bytes(self) -> int:
        """What the rows take, or may come to take before those under way are finished."""
        most = max((row.most for row in self.active), default=0)
        return max(self.rows.num_bytes, Rows.num_bytes_of(self.rows.shapes, len(self.active), most))

    def admit(self, store: PrefixStore | None, *, max_rows: int, max_tokens: int, max_bytes: int) -> list[Fed]:
        """Take requests from the queue, as many as fit; write what is known of their prompts into their places.

        Returns what is to be fed of each: single tokens first, then in the order of their number, as `Step` wants it.
        Afterwards every row has room for what it is fed in this step.
        """
        picked = self._pick(store, max_rows, max_tokens, max_bytes)
        known = [min(found[-1].end, len(row.request.prompt_ids) - 1) if found else 0 for row, found in picked]
        prompts = [row.request.prompt_ids for row, _ in picked]
        readings = [Reading(0)] * len(picked) if store is None else share(prompts, known)
        order = sorted(range(len(picked)), key=lambda index: len(prompts[index]) - readings[index].start)
        place_of = {index: len(self.active) + at for at, index in enumerate(order)}
        rows = [*self.active, *(row for row, _ in picked)]
        needed = max([*(row.length + 1 for row in self.active), *map(len, prompts)])
        self.rows.reserve(len(rows), needed, max(row.most for row in rows), max_bytes)
        fed: list[Fed] = []
        for index in order:
            row, found = picked[index]
            self.rows.load(place_of[index], found, known[index])
            copies = tuple(Copied(place_of[copy.source], copy.begin, copy.end) for copy in readings[index].copies)
            fed.append(Fed(readings[index].start, len(prompts[index]), copies))
            self.active.append(row)
        return fed

    def leave(self, places: Collection[int]) -> None:
        """Forget the rows at these places and close the gaps."""
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
        self.rows.move(targets, sources)

    def _pick(
        self, store: PrefixStore | None, max_rows: int, max_tokens: int, max_bytes: int
    ) -> list[tuple[Row, list[Segment]]]:
        """Requests in their order, while rows, tokens and memory last; one at least where nothing is under way."""
        picked: list[tuple[Row, list[Segment]]] = []
        most = max((row.most for row in self.active), default=0)
        num_tokens = 0
        while self.queue and len(self.active) + len(picked) < max_rows:
            row = self.queue[0]
            found = store.find(self.role, row.request.prompt_ids) if store is not None else []
            most = max(most, row.most)
            num_tokens += len(row.request.prompt_ids) - (found[-1].end if found else 0)
            num_rows = len(self.active) + len(picked) + 1
            if num_rows > 1 and Rows.num_bytes_of(self.rows.shapes, num_rows, most) > max_bytes:
                break
            if picked and num_tokens > max_tokens:
                break
            picked.append((self.queue.popleft(), found))
        return picked
