"""Local engine: continuous batching over a prefix cache, with transformers in this process.

Requests wait in their role's queue. A step is one forward: it prefills the prompts that were admitted and decodes one
token of every row under way, in one flat batch (`flat_batch`). It computes one role, or all roles if the forward can.
Finished rows leave at once, and the next step admits others in their place. Keys and values of prompts and completions
are kept by role and prefix (`prefix_cache`) until the adapters change.

    engine = LocalEngine(model, role_model=policy.using, end_ids={2}, context_tokens=2048)
    ticket = engine.submit(Request(role="answer", prompt_ids=(1, 5, 6), max_tokens=32), Sampling(), seed=7)
    [(ticket, completion)] = engine.poll()

Invariant: what is sampled for a request depends on its own tokens and seed; batching and reuse change it by no more
than rounding of sums. The last sampled token has not been an input, so it has no keys and values yet: they are computed
with the next request that begins with this completion.

Shapes: A rows under way, V tokens of the vocabulary.
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
from flow_dpo.engines.local.compatibility import choose_forward, probe
from flow_dpo.engines.local.flat_batch import FlatBatch, JoinedBatch, RowInput
from flow_dpo.engines.local.forward import Forward, PlainForward, RoleSlice, StepOutput
from flow_dpo.engines.local.kv_rows import KvRows, Shapes
from flow_dpo.engines.local.prefix_cache import PrefixCache
from flow_dpo.engines.local.sampling import draw_batch, uniforms
from flow_dpo.engines.local.scheduler import RequestState, RoleScheduler
from flow_dpo.engines.request_checks import check_idle, check_request, check_vocabulary, nothing_left
from flow_dpo.engines.sampling_rule import stream
from flow_dpo.engines.settings import LocalSettings
from flow_dpo.engines.stop_strings import ToText, finish_reason
from flow_dpo.models import attention
from flow_dpo.models.facts import steady_tokens, vocabulary_size

_FIXED_COST = 0.4
"""Cost of a forward with hardly any tokens (reading the weights), as a share of a full decode step: measured 0.43 on a
0.5B model at 64 rows in bf16, 0.3 on a model with a million weights."""
_LONGEST_WAIT = 8
"""Maximum number of steps of other roles for which a role without rows under way waits for more requests to batch."""

_SHORT_WAIT, _ENOUGH = 3, 16
"""The same if roles share a step, and the number of requests from which a role no longer waits: on the seed model 4 per
cent faster than not waiting, the mean of three alternating runs."""


@dataclass(slots=True)
class _Stats:
    """Counts and seconds since `take_stats` was last called."""

    sampled_tokens: int = 0
    prefilled_tokens: int = 0
    """Prompt tokens that were computed, including those of choice requests."""
    reused_tokens: int = 0
    """Prompt tokens that were not computed: they were cached, or computed in another row of the step."""
    evicted_tokens: int = 0
    num_choices: int = 0
    num_forwards: int = 0
    decode_s: float = 0.0
    """Seconds of the forwards only, attributed by tokens. On a GPU, which works asynchronously, the time of a forward
    shows up where its result is first needed, in `draw_s`."""
    prefill_s: float = 0.0
    choice_s: float = 0.0
    draw_s: float = 0.0
    """Seconds of sampling tokens from logits."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One role's share of a step."""

    scheduler: RoleScheduler
    row_inputs: Sequence[RowInput]
    num_decoding: int
    """The number of rows that decode, which come first; the others were admitted in this step."""


class LocalEngine(Engine):
    """transformers in this process. `role_model(role)` yields the model with the role's adapter on, without dropout."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        role_model: Callable[[Role], AbstractContextManager[PreTrainedModel]],
        end_ids: Collection[int],
        context_tokens: int,
        settings: LocalSettings | None = None,
        num_tokens: int | None = None,
        to_text: ToText | None = None,
    ) -> None:
        """Ids from `num_tokens` on, which pad the embedding and stand for no token, are never sampled. With `to_text` a
        completion also ends at its stop string; without it, only at its end token or length."""
        if model.config._attn_implementation != attention.NAME:
            attention.prepare(model)
        self._role_model = role_model
        self._forward: Forward = PlainForward(role_model, model.device)  # replaced at the first request
        self._steady_tokens = steady_tokens(model)
        self._end_ids = frozenset(end_ids)
        self._context_tokens = min(context_tokens, self._steady_tokens or context_tokens)
        self._settings = settings or LocalSettings()
        self._budget_bytes = self._settings.kv_bytes
        self._vocab_size = vocabulary_size(model)
        self._num_tokens, self._to_text = num_tokens, to_text
        self._shapes: Shapes | None = None
        self._prefix_cache = PrefixCache(self._budget_bytes)
        self._schedulers: dict[Role, RoleScheduler] = {}
        self._idle_rows: dict[Role, KvRows] = {}
        """Rows of roles without requests since the last refresh, whose memory is kept."""
        self._diverged = False
        """Whether a request has failed since the last refresh because its logits were not finite."""
        self._versions: dict[Role, int] = {}
        self._finished: list[tuple[int, Completion]] = []
        self._failures: deque[EngineError] = deque()
        self._num_tickets = 0
        self._stats = _Stats()
        self.num_sampled = 0
        """Tokens sampled since the engine was opened, including those of unfinished completions: a sign of life."""

    def submit(self, request: Request, sampling: Sampling, *, seed: int, excluded: TokenIds = ()) -> int:
        check_request(request, sampling, context_tokens=self._context_tokens)
        check_vocabulary(request, excluded, vocab_size=self._vocab_size)
        self._num_tickets += 1
        row = RequestState(self._num_tickets, request, sampling, seed, stream(seed), tuple(excluded))
        self._scheduler(request.role).waiting.append(row)
        return self._num_tickets

    def poll(self) -> list[tuple[int, Completion]]:
        while not self._failures and not self._finished and (due := self._due_schedulers()):
            self._step(due)
        if self._finished:
            finished, self._finished = self._finished, []
            return finished
        if self._failures:
            raise self._failures.popleft()
        return []

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        check_idle(
            sum(len(scheduler.waiting) + len(scheduler.active) for scheduler in self._schedulers.values())
            + len(self._finished)
        )
        self._versions = {role: adapter.version for role, adapter in adapters.items()}
        self._forward.refresh()
        # Schedulers are dropped as well: their order and the size of their rows would carry rounding from one batch
        # into the next, and a resumed run would not match the uninterrupted one to the bit. Memory carries nothing
        # over, unless non-finite values were written to it.
        rows = {} if self._diverged else {role: scheduler.rows for role, scheduler in self._schedulers.items()}
        self.close()
        self._idle_rows = rows
        for each in rows.values():
            each.empty()

    def take_stats(self) -> dict[str, float]:
        stats, self._stats = self._stats, _Stats()
        stats.evicted_tokens, self._prefix_cache.evicted_tokens = self._prefix_cache.evicted_tokens, 0
        return asdict(stats)

    @property
    def kv_bytes(self) -> int:
        """Bytes held by keys and values: rows under way and prefix cache."""
        rows = [*(scheduler.rows for scheduler in self._schedulers.values()), *self._idle_rows.values()]
        return self._prefix_cache.num_bytes + sum(each.num_bytes + each.idle_bytes for each in rows)

    def close(self) -> None:
        self._schedulers.clear()
        self._idle_rows.clear()
        self._diverged = False
        self._prefix_cache.clear()

    def _scheduler(self, role: Role) -> RoleScheduler:
        if role not in self._schedulers:
            if self._shapes is None:
                with self._role_model(role) as model:
                    self._shapes = probe(model)
                self._forward = choose_forward(
                    self._role_model, role, self._shapes, self._settings, most_positions=self._steady_tokens
                )
            rows = self._idle_rows.pop(role, None)
            most = self._settings.max_batch_size * self._context_tokens
            self._schedulers[role] = RoleScheduler(role, rows or KvRows(self._shapes, most=most))
        return self._schedulers[role]

    def _due_schedulers(self) -> list[RoleScheduler]:
        """The roles that take part in the next step; empty if there is nothing to do.

        If one forward takes all roles: all roles that have enough to do. Otherwise only one: a role with rows under way
        admits its waiting requests in its own next step. For a role without such rows, a step of its own costs the
        others `_FIXED_COST` of one of their steps, so it waits until waiting has cost as much.
        """
        busy = [scheduler for scheduler in self._schedulers.values() if scheduler.active or scheduler.waiting]
        if len(busy) <= self._forward.max_roles:
            return self._joined(busy)
        # 1. Roles that only wait: if a wait has cost enough, that role goes first.
        decoding = [scheduler for scheduler in self._schedulers.values() if scheduler.active]
        num_running = sum(len(scheduler.active) for scheduler in decoding)
        for scheduler in self._schedulers.values():
            if scheduler.waiting and not scheduler.active:
                if scheduler.wait_cost >= _FIXED_COST * num_running or scheduler.wait_steps >= _LONGEST_WAIT:
                    return [scheduler]
                scheduler.wait_cost += len(scheduler.waiting)
                scheduler.wait_steps += 1
        # 2. Roles that decode take turns: the role of this step moves to the end.
        self._schedulers[decoding[0].role] = self._schedulers.pop(decoding[0].role)
        return decoding[:1]

    def _joined(self, busy: Sequence[RoleScheduler]) -> list[RoleScheduler]:
        """The roles that share the next step: a role without rows under way waits a little for more requests."""
        due: list[RoleScheduler] = []
        for scheduler in busy:
            if scheduler.active or scheduler.wait_steps >= _SHORT_WAIT or len(scheduler.waiting) >= _ENOUGH:
                due.append(scheduler)
            else:
                scheduler.wait_steps += 1
        return due or list(busy)

    def _step(self, schedulers: Sequence[RoleScheduler]) -> None:
        """One forward: prefill what is admitted, decode the rest, sample, and drop what is finished."""
        with torch.inference_mode():
            # 1. The flat batch, role after role: the last sampled token of decoding rows, then what is not cached of
            #    the new prompts.
            parts: list[_Part] = []
            batches: list[FlatBatch] = []
            ids: list[int] = []
            slices: list[RoleSlice] = []
            for scheduler in schedulers:
                scheduler.wait_cost = scheduler.wait_steps = 0
                num_decoding = len(scheduler.active)
                row_inputs = [RowInput(row.length, row.length + 1) for row in scheduler.active]
                row_inputs += self._admit(scheduler)
                parts.append(_Part(scheduler, row_inputs, num_decoding))
                batches.append(FlatBatch(scheduler.rows, row_inputs))
                begin = len(ids)
                for row, row_input in zip(scheduler.active, row_inputs, strict=True):
                    ids += row.tokens[-1:] or row.request.prompt_ids[row_input.begin :]
                    row.length = row_input.end
                slices.append(RoleSlice(scheduler.role, begin, len(ids)))
            # 2. One forward; logits of each row's last token only.
            started = time.perf_counter()
            output = self._forward(
                ids,
                batches[0] if len(batches) == 1 else JoinedBatch(batches),
                slices,
                wants_choices=any(row.request.choices for part in parts for row in part.scheduler.active),
            )
            self._count(parts, time.perf_counter() - started)
            # 3. Cache the new prompts. Those that were cached already except for the last token are cached when they
            #    finish.
            if self._settings.reuse:
                for part in parts:
                    for place in range(part.num_decoding, len(part.row_inputs)):
                        if part.row_inputs[place].begin + 1 < part.row_inputs[place].end:
                            self._cache_row(part.scheduler, place)
            # 4. Sample, and remove the rows that are finished.
            self._sample([part.scheduler for part in parts], output)

    def _admit(self, scheduler: RoleScheduler) -> list[RowInput]:
        """Move waiting requests into rows while rows, tokens and memory last; return their inputs."""
        if not scheduler.waiting and max(row.length for row in scheduler.active) < scheduler.rows.capacity:
            return []
        # 1. If over the budget, free what is kept from before the refresh, then the rows of roles without rows under
        #    way.
        other_schedulers = [other for other in self._schedulers.values() if other is not scheduler]
        if self.kv_bytes > self._budget_bytes:
            for rows in (*self._idle_rows.values(), *(each.rows for each in self._schedulers.values())):
                rows.drop_idle()
        if sum(each.rows.num_bytes for each in self._schedulers.values()) > self._budget_bytes:
            for other in other_schedulers:
                if not other.active:
                    other.rows.release()
        # 2. Admit within what the other roles leave at their peak, and give the prefix cache the rest.
        reserved_bytes = sum(other.peak_bytes for other in other_schedulers)
        row_inputs = scheduler.admit(
            self._prefix_cache if self._settings.reuse else None,
            max_rows=self._settings.max_batch_size,
            max_tokens=self._settings.prefill_tokens,
            max_bytes=self._budget_bytes - reserved_bytes,
        )
        self._prefix_cache.set_budget(max(0, self._budget_bytes - reserved_bytes - scheduler.rows.num_bytes))
        return row_inputs

    def _sample(self, schedulers: Sequence[RoleScheduler], output: StepOutput) -> None:
        """Sample a token or a choice for every row, and remove the rows that are finished."""
        rows = [row for scheduler in schedulers for row in scheduler.active]
        choice_places = [place for place, row in enumerate(rows) if row.request.choices]
        text_places = [place for place, row in enumerate(rows) if not row.request.choices]
        finished = set(choice_places)
        if choice_places:
            choices = [rows[place].request.choices for place in choice_places]
            self._sample_choices([rows[place] for place in choice_places], output.choice_logits(choice_places, choices))
        if text_places:
            text_rows = [rows[place] for place in text_places]
            started = time.perf_counter()
            drawn = draw_batch(
                output.logits_AV[text_places] if choice_places else output.logits_AV,
                [row.sampling for row in text_rows],
                uniforms([row.stream for row in text_rows], [len(row.tokens) for row in text_rows]),
                {index: row.excluded for index, row in enumerate(text_rows) if row.excluded and not row.tokens},
                self._num_tokens,
            )
            self._stats.draw_s += time.perf_counter() - started
            for place, row, token, logprob, sampled_logprob in zip(text_places, text_rows, *drawn, strict=True):
                if self._append_token(row, token, logprob, sampled_logprob):
                    finished.add(place)
        first = 0
        for scheduler in schedulers:
            places = {place - first for place in range(first, first + len(scheduler.active)) if place in finished}
            first += len(scheduler.active)
            for place in sorted(places) if self._settings.reuse else ():
                if not scheduler.active[place].request.choices:
                    self._cache_row(scheduler, place)
            scheduler.remove(places)

    def _append_token(self, row: RequestState, token: int, logprob: float, sampled_logprob: float) -> bool:
        """Append a sampled token to a row; returns whether the row is finished. A token below 0 means none was left."""
        if token < 0:
            excluded = () if row.tokens else row.excluded
            self._diverged = True
            self._failures.append(nothing_left(row.request, row.sampling, excluded))
            return True
        row.tokens.append(token)
        row.logprobs.append(logprob)
        row.sampled_logprobs.append(sampled_logprob)
        ended, full = token in self._end_ids, len(row.tokens) >= row.request.max_tokens
        if not (ended or full or row.sampling.stop_strings):
            return False
        reason = finish_reason(row.tokens, row.sampling, self._to_text, ended=ended)
        if reason == "length" and not full:
            return False
        completion = Completion(
            token_ids=tuple(row.tokens),
            logprobs=tuple(row.logprobs),
            sampled_logprobs=tuple(row.sampled_logprobs),
            finish_reason=reason,
            policy_version=self._versions.get(row.request.role, 0),
        )
        self._finished.append((row.ticket, completion))
        return True

    def _sample_choices(self, rows: Sequence[RequestState], logits: Sequence[Sequence[float]]) -> None:
        """Sample a choice for each of these rows, given the logits of its choices."""
        for row, scores in zip(rows, logits, strict=True):
            try:
                completion = choose(
                    scores,
                    row.request,
                    row.sampling,
                    seed=row.seed,
                    excluded=row.excluded,
                    policy_version=self._versions.get(row.request.role, 0),
                )
            except EngineError as error:
                self._diverged = True
                self._failures.append(error)
            else:
                self._finished.append((row.ticket, completion))

    def _cache_row(self, scheduler: RoleScheduler, place: int) -> None:
        """Put the keys and values of all of a row's tokens so far into the prefix cache."""
        row = scheduler.active[place]
        tokens = row.request.prompt_ids + tuple(row.tokens)
        row.found = self._prefix_cache.insert(
            scheduler.role, tokens[: row.length], lambda begin, end: scheduler.rows.copy(place, begin, end), row.found
        )

    def _count(self, parts: Sequence[_Part], seconds: float) -> None:
        """Add a step to the stats; its time is attributed by tokens."""
        stats = self._stats
        token_s = seconds / sum(each.end - each.begin for part in parts for each in part.row_inputs)
        stats.num_forwards += 1
        for part in parts:
            rows = part.scheduler.active[part.num_decoding :]
            row_inputs = part.row_inputs[part.num_decoding :]
            num_tokens = [row_input.end - row_input.begin for row_input in row_inputs]
            choice_tokens = sum(count for row, count in zip(rows, num_tokens, strict=True) if row.request.choices)
            num_choices = sum(1 for row in rows if row.request.choices)
            stats.num_choices += num_choices
            stats.sampled_tokens += len(part.row_inputs) - num_choices
            self.num_sampled += len(part.row_inputs)
            stats.prefilled_tokens += sum(num_tokens)
            stats.reused_tokens += sum(row_input.begin for row_input in row_inputs)
            stats.decode_s += token_s * part.num_decoding
            stats.choice_s += token_s * choice_tokens
            stats.prefill_s += token_s * (sum(num_tokens) - choice_tokens)
