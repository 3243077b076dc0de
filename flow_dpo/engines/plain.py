"""The plain engine: one request at a time, one forward per token, through transformers' own KV cache.

No batching, no prefix cache, no kernels of our own: every other engine can be compared with it, and it is the one to
read first. With a prompt of 5 6, from which 7 and 8 are drawn, a request takes these steps:

    forward 5 6 -> draw 7      the prompt is read, excluded first tokens are left out
    forward 7   -> draw 8      keys and values of 5 6 come from the cache
    ...                        until an end token, a stop string or `max_tokens`

A request with declared choices takes only the first forward, and its scores are renormalised over the choices.

    engine = PlainEngine(policy.model, role_model=policy.using, end_ids={2}, context_tokens=2048)
    [completion] = engine.sample([Request(role="answer", prompt_ids=(5, 6), max_tokens=32)], Sampling(), seeds=[7])

Invariant: tokens are drawn by `engines.sampling_rule`, so a seed gives the same tokens here as in the local engine, up
to rounding of sums.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from transformers import DynamicCache, PreTrainedModel

from flow_dpo.core.engine import Engine
from flow_dpo.core.types import Adapter, Completion, Request, Role, Sampling, TokenIds
from flow_dpo.engines.choices import choose
from flow_dpo.engines.request_checks import check_idle, check_request, check_vocabulary, nothing_left
from flow_dpo.engines.sampling_rule import Drawn, draw, uniform
from flow_dpo.engines.stop_strings import ToText, finish_reason
from flow_dpo.models.facts import steady_tokens, vocabulary_size
from flow_dpo.models.head import choice_logits, head_inputs


class _Queued(NamedTuple):
    ticket: int
    request: Request
    sampling: Sampling
    seed: int
    excluded: TokenIds


class PlainEngine(Engine):
    """transformers in this process, one request at a time.

    `role_model(role)` yields the model with the role's adapter on, without dropout; by default, the model as it is.
    Without `cached`, every token takes a forward over all tokens before it: for models that do not work with
    transformers' cache.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        role_model: Callable[[Role], AbstractContextManager[PreTrainedModel]] | None = None,
        end_ids: Collection[int],
        context_tokens: int,
        cached: bool = True,
        num_tokens: int | None = None,
        to_text: ToText | None = None,
    ) -> None:
        """Ids from `num_tokens` on, which pad the embedding and stand for no token, are never sampled. With `to_text` a
        completion also ends at its stop string; without it, only at its end token or length."""
        self._role_model = role_model or (lambda _: nullcontext(model))
        self._cached = cached
        self._few = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        self._end_ids = frozenset(end_ids)
        # Beyond some length, some models rotate all keys differently, cached ones too: no request may go that far.
        self._context_tokens = min(context_tokens, steady_tokens(model) or context_tokens)
        self._vocab_size = vocabulary_size(model)
        self._num_tokens, self._to_text = num_tokens, to_text
        self._queue: deque[_Queued] = deque()
        self._versions: dict[Role, int] = {}
        self._num_tickets = 0
        self._stats = {"sampled_tokens": 0.0, "prefilled_tokens": 0.0, "num_choices": 0.0, "num_forwards": 0.0}

    def submit(self, request: Request, sampling: Sampling, *, seed: int, excluded: TokenIds = ()) -> int:
        check_request(request, sampling, context_tokens=self._context_tokens)
        check_vocabulary(request, excluded, vocab_size=self._vocab_size)
        self._num_tickets += 1
        self._queue.append(_Queued(self._num_tickets, request, sampling, seed, tuple(excluded)))
        return self._num_tickets

    def poll(self) -> list[tuple[int, Completion]]:
        """The completion of the oldest request."""
        if not self._queue:
            return []
        queued = self._queue.popleft()
        with self._role_model(queued.request.role) as model, torch.inference_mode():
            answer = self._choose if queued.request.choices else self._write
            return [(queued.ticket, answer(model, queued))]

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        check_idle(len(self._queue))
        self._versions = {role: adapter.version for role, adapter in adapters.items()}

    def take_stats(self) -> dict[str, float]:
        stats, self._stats = self._stats, dict.fromkeys(self._stats, 0.0)
        return stats

    def _write(self, model: PreTrainedModel, queued: _Queued) -> Completion:
        """Draw one token after another."""
        request, sampling = queued.request, queued.sampling
        cache = DynamicCache(config=model.config) if self._cached else None
        unread, drawn, reason = request.prompt_ids, list[Drawn](), "length"
        while len(drawn) < request.max_tokens and reason == "length":
            # 1. read new tokens; the cache has the keys and values of the rest
            scores = dict(enumerate(self._forward(model, unread, cache)[0].double().tolist()))
            # 2. draw with the uniform number of this seed and position
            excluded = () if drawn else queued.excluded
            share = uniform(queued.seed, len(drawn))
            token = draw(scores, sampling, uniform=share, excluded=excluded, num_tokens=self._num_tokens)
            if token is None:
                raise nothing_left(request, sampling, excluded)
            drawn.append(token)
            ids, ended = [each.token for each in drawn], token.token in self._end_ids
            reason = finish_reason(ids, sampling, self._to_text, ended=ended)
            unread = (token.token,) if self._cached else (*unread, token.token)
        self._stats["sampled_tokens"] += len(drawn)
        return Completion(
            token_ids=tuple(each.token for each in drawn),
            logprobs=tuple(each.logprob for each in drawn),
            sampled_logprobs=tuple(each.sampled_logprob for each in drawn),
            finish_reason=reason,
            policy_version=self._versions.get(request.role, 0),
        )

    def _choose(self, model: PreTrainedModel, queued: _Queued) -> Completion:
        """Score the declared choices with one forward, and draw one of them."""
        request = queued.request
        with head_inputs(model) as kept:
            logits_1V = self._forward(model, request.prompt_ids, None)
        self._stats["num_choices"] += 1
        return choose(
            choice_logits(model, kept, logits_1V, [0], [request.choices])[0],
            request,
            queued.sampling,
            seed=queued.seed,
            excluded=queued.excluded,
            policy_version=self._versions.get(request.role, 0),
        )

    def _forward(self, model: PreTrainedModel, token_ids: TokenIds, cache: DynamicCache | None) -> torch.Tensor:
        """The next token's logits, 1V."""
        ids_1T = torch.tensor([token_ids], device=model.device)
        memory = {} if cache is None else {"past_key_values": cache}
        found = model(input_ids=ids_1T, use_cache=cache is not None, **memory, **self._few)
        self._stats["num_forwards"] += 1
        self._stats["prefilled_tokens"] += len(token_ids) if len(token_ids) > 1 else 0
        return found.logits[0, -1:]
