"""How does a model in this process answer many requests at once?

With continuous batching over keys and values that are computed once. Requests wait in their role's queue. A step is
one forward of one role: it reads whatever prompts have been admitted and decodes one token of every row under way, in
one flat row of tokens (`stepping`). Rows that finish leave at once, and the next step admits others in their place.
What was computed for a prompt or a completion is kept by role and prefix (`prefix`) until the adapters change.

    engine = LocalEngine(model, speaking=policy.speaking, end_ids={2}, context_tokens=2048)
    ticket = engine.submit(Request(role="answer", prompt_ids=(1, 5, 6), max_tokens=32), Sampling(), seed=7)
    [(ticket, completion)] = engine.poll()

Invariant: what is drawn for a request depends on its own tokens and seed; batching and reuse change it by no more than
the rounding of sums. The last sampled token has not been fed, so no keys of it exist: it is fed with the next request.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel

from flow_dpo.core.engine import Engine
from flow_dpo.core.errors import EngineError
from flow_dpo.core.types import Adapter, Completion, Request, Role, Sampling, TokenIds
from flow_dpo.engines.choices import choose
from flow_dpo.engines.local.compatibility import probe, steady_tokens, vocabulary_size
from flow_dpo.engines.local.flat_batch import Fed, Step
from flow_dpo.engines.local.kv_rows import Rows, Shapes
from flow_dpo.engines.local.prefix_cache import PrefixStore
from flow_dpo.engines.local.sampling import draw_batch, uniforms
from flow_dpo.engines.local.scheduler import Lane, Row
from flow_dpo.engines.request_checks import check_idle, check_request, check_words, nothing_left
from flow_dpo.engines.sampling_rule import stream
from flow_dpo.engines.settings import LocalSettings
from flow_dpo.models import attention

_FIXED_COST = 0.4
"""What a forward costs however few tokens it has (reading the weights), as a share of a full decode step: measured .43
on a 0.5B model at 64 rows in bf16, .3 on one of a million weights."""
_LONGEST_WAIT = 8
"""Steps of others that a role without rows under way waits at most for company."""


@dataclass(slots=True)
class _Work:
    """What was done since last asked."""

    sampled_tokens: int = 0
    prefilled_tokens: int = 0
    """Prompt tokens that went through the model, those of choices included."""
    reused_tokens: int = 0
    """Prompt tokens that did not: their keys and values were known, or computed in another row of the step."""
    evicted_tokens: int = 0
    num_choices: int = 0
    num_forwards: int = 0
    decode_s: float = 0.0
    """Of forwards alone, which are shared out by tokens. A GPU works on while this counts on: there a forward's time
    shows where its result is first needed, in `draw_s`."""
    prefill_s: float = 0.0
    choice_s: float = 0.0
    draw_s: float = 0.0
    """Of drawing tokens from logits."""


class LocalEngine(Engine):
    """transformers in this process. `speaking(role)` gives the model as it speaks for the role, without dropout."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        speaking: Callable[[Role], AbstractContextManager[PreTrainedModel]],
        end_ids: Collection[int],
        context_tokens: int,
        settings: LocalSettings | None = None,
    ) -> None:
        if model.config._attn_implementation != attention.NAME:
            attention.prepare(model)
        self._inputs_device = model.device
        self._speaking = speaking
        self._end_ids = frozenset(end_ids)
        self._context_tokens = min(context_tokens, steady_tokens(model) or context_tokens)
        self._settings = settings or LocalSettings()
        self._budget_bytes = int(self._settings.kv_budget_gib * 2**30)
        self._inputs = attention.layout_inputs(model.device)
        self._num_words = vocabulary_size(model)
        self._shapes: Shapes | None = None
        self._store = PrefixStore(self._budget_bytes)
        self._lanes: dict[Role, Lane] = {}
        self._versions: dict[Role, int] = {}
        self._finished: list[tuple[int, Completion]] = []
        self._failures: deque[EngineError] = deque()
        self._num_tickets = 0
        self._work = _Work()

    def submit(self, request: Request, sampling: Sampling, *, seed: int, excluded: TokenIds = ()) -> int:
        check_request(request, sampling, context_tokens=self._context_tokens)
        check_words(request, excluded, num_words=self._num_words)
        self._num_tickets += 1
        row = Row(self._num_tickets, request, sampling, seed, stream(seed), tuple(excluded))
        self._lane(request.role).queue.append(row)
        return self._num_tickets

    def poll(self) -> list[tuple[int, Completion]]:
        while not self._failures and not self._finished and (lane := self._next_lane()) is not None:
            self._step(lane)
        if self._finished:
            finished, self._finished = self._finished, []
            return finished
        if self._failures:
            raise self._failures.popleft()
        return []

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        check_idle(sum(len(lane.queue) + len(lane.active) for lane in self._lanes.values()) + len(self._finished))
        self._versions = {role: adapter.version for role, adapter in adapters.items()}
        # Lanes begin anew as well: their order and the size of their rows would carry rounding from one batch into the
        # next, and a resumed run would not be the uninterrupted one to the bit.
        self.close()

    def take_stats(self) -> dict[str, float]:
        work, self._work = self._work, _Work()
        work.evicted_tokens, self._store.evicted_tokens = self._store.evicted_tokens, 0
        return asdict(work)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values held: rows under way and the store."""
        return self._store.num_bytes + sum(lane.rows.num_bytes for lane in self._lanes.values())

    def close(self) -> None:
        self._lanes.clear()
        self._store.clear()

    def _lane(self, role: Role) -> Lane:
        if role not in self._lanes:
            if self._shapes is None:
                with self._speaking(role) as model:
                    self._shapes = probe(model)
            self._lanes[role] = Lane(role, Rows(self._shapes))
        return self._lanes[role]

    def _next_lane(self) -> Lane | None:
        """Whose step is due.

        A role with rows under way admits what waits for it in its own next step. For a role without, a step of its own
        costs the others `_FIXED_COST` of one of theirs, so it waits until waiting has cost as much.
        """
        decoding = [lane for lane in self._lanes.values() if lane.active]
        under_way = sum(len(lane.active) for lane in decoding)
        for lane in self._lanes.values():
            if lane.queue and not lane.active:
                if lane.waited >= _FIXED_COST * under_way or lane.waited_steps >= _LONGEST_WAIT:
                    return lane
                lane.waited += len(lane.queue)
                lane.waited_steps += 1
        if not decoding:
            return None
        # Roles that decode take turns: the one that goes now is the last to go again.
        self._lanes[decoding[0].role] = self._lanes.pop(decoding[0].role)
        return decoding[0]

    def _step(self, lane: Lane) -> None:
        """One forward of one role."""
        lane.waited = lane.waited_steps = 0
        num_decoding = len(lane.active)
        with self._speaking(lane.role) as model, torch.inference_mode():
            fed = [Fed(row.length, row.length + 1) for row in lane.active] + self._admit(lane)
            step = Step(lane.rows, fed)
            ids: list[int] = []
            for row, one in zip(lane.active, fed, strict=True):
                ids += row.tokens[-1:] or row.request.prompt_ids[one.begin :]
                row.length = one.end
            began = time.perf_counter()
            logits_AV = model(
                input_ids=torch.tensor([ids], device=self._inputs_device),
                position_ids=step.position_N[None],
                layout=step,
                logits_to_keep=0 if len(ids) == len(fed) else step.last_N,
                **self._inputs,
            ).logits[0]
            self._count(lane, fed, num_decoding, time.perf_counter() - began)
            if self._settings.reuse:
                # A prompt of which all but the last token was known adds nothing worth keeping before it finishes.
                for place in range(num_decoding, len(fed)):
                    if fed[place].begin + 1 < fed[place].end:
                        self._keep(lane, place)
            lane.leave(self._answer(lane, logits_AV))

    def _admit(self, lane: Lane) -> list[Fed]:
        """Let waiting requests in, as far as rows, tokens and memory last."""
        if not lane.queue and max(row.length for row in lane.active) < lane.rows.capacity:
            return []
        others = [other for other in self._lanes.values() if other is not lane]
        if sum(each.rows.num_bytes for each in self._lanes.values()) > self._budget_bytes:
            for other in others:
                if not other.active:
                    other.rows.release()
        held = sum(other.most_bytes for other in others)
        fed = lane.admit(
            self._store if self._settings.reuse else None,
            max_rows=self._settings.max_batch_size,
            max_tokens=self._settings.prefill_tokens,
            max_bytes=self._budget_bytes - held,
        )
        self._store.set_budget(max(0, self._budget_bytes - held - lane.rows.num_bytes))
        return fed

    def _answer(self, lane: Lane, logits_AV: torch.Tensor) -> set[int]:
        """Draw for every row; return the places of those that are finished."""
        choosing = [place for place, row in enumerate(lane.active) if row.request.choices]
        writing = [place for place, row in enumerate(lane.active) if not row.request.choices]
        done = set(choosing)
        if choosing:
            self._choose([lane.active[place] for place in choosing], logits_AV, choosing)
        if writing:
            rows = [lane.active[place] for place in writing]
            began = time.perf_counter()
            drawn = draw_batch(
                logits_AV[writing] if choosing else logits_AV,
                [row.sampling for row in rows],
                uniforms([row.stream for row in rows], [len(row.tokens) for row in rows]),
                {index: row.excluded for index, row in enumerate(rows) if row.excluded and not row.tokens},
            )
            self._work.draw_s += time.perf_counter() - began
            for place, row, token, logprob, sampled_logprob in zip(writing, rows, *drawn, strict=True):
                if self._take(row, token, logprob, sampled_logprob):
                    done.add(place)
                    if self._settings.reuse:
                        self._keep(lane, place)
        return done

    def _take(self, row: Row, token: int, logprob: float, sampled_logprob: float) -> bool:
        """Append one drawn token; whether the row is finished."""
        if token < 0:
            excluded = () if row.tokens else row.excluded
            self._failures.append(nothing_left(row.request, row.sampling, excluded))
            return True
        row.tokens.append(token)
        row.logprobs.append(logprob)
        row.sampled_logprobs.append(sampled_logprob)
        ended = token in self._end_ids
        if not ended and len(row.tokens) < row.request.max_tokens:
            return False
        completion = Completion(
            token_ids=tuple(row.tokens),
            logprobs=tuple(row.logprobs),
            sampled_logprobs=tuple(row.sampled_logprobs),
            finish_reason="stop" if ended else "length",
            policy_version=self._versions.get(row.request.role, 0),
        )
        self._finished.append((row.ticket, completion))
        return True

    def _choose(self, rows: Sequence[Row], logits_AV: torch.Tensor, places: Sequence[int]) -> None:
        """Draw a choice for each of these rows."""
        most = max(len(row.request.choices) for row in rows)
        padded = [row.request.choices + row.request.choices[:1] * (most - len(row.request.choices)) for row in rows]
        at = torch.tensor(places, device=logits_AV.device)[:, None]
        scores = logits_AV[at, torch.tensor(padded, device=logits_AV.device)].double().tolist()
        for row, row_scores in zip(rows, scores, strict=True):
            try:
                completion = choose(
                    row_scores[: len(row.request.choices)],
                    row.request,
                    row.sampling,
                    seed=row.seed,
                    excluded=row.excluded,
                    policy_version=self._versions.get(row.request.role, 0),
                )
            except EngineError as error:
                self._failures.append(error)
            else:
                self._finished.append((row.ticket, completion))

    def _keep(self, lane: Lane, place: int) -> None:
        """Remember the keys and values of a row's tokens so far."""
        row = lane.active[place]
        tokens = row.request.prompt_ids + tuple(row.tokens)
        self._store.insert(lane.role, tokens[: row.length], lambda begin, end: lane.rows.copy(place, begin, end))

    def _count(self, lane: Lane, fed: Sequence[Fed], num_decoding: int, seconds: float) -> None:
        """Add a step to the record; its time is shared out by tokens."""
        work = self._work
        rows = lane.active[num_decoding:]
        num_tokens = [one.end - one.begin for one in fed[num_decoding:]]
        choice_tokens = sum(count for row, count in zip(rows, num_tokens, strict=True) if row.request.choices)
        num_choices = sum(1 for row in rows if row.request.choices)
        token_s = seconds / (num_decoding + sum(num_tokens))
        work.num_forwards += 1
        work.num_choices += num_choices
        work.sampled_tokens += len(fed) - num_choices
        work.prefilled_tokens += sum(num_tokens)
        work.reused_tokens += sum(one.begin for one in fed[num_decoding:])
        work.decode_s += token_s * num_decoding
        work.choice_s += token_s * choice_tokens
        work.prefill_s += token_s * (sum(num_tokens) - choice_tokens)
