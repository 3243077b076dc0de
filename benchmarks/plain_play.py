"""A baseline engine for the benchmarks: rollouts by transformers' `generate` alone.

One `generate` call serves all due requests of one role (up to a batch), left-padded. Keys and values are kept inside
the call and not between calls. A declared choice is one forward.

    engine = GenerateEngine(peer_model(loaded.model, ("answer", "stop"), rank=8), end_ids={2}, max_batch_size=64)

Invariant: completions are drawn from the same distribution as ours, at temperature 1 without truncation, and carry the
log-probabilities that exploration needs. These are gathered on the way, so logits do not pile up.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from flow_dpo.core.engine import Engine
from flow_dpo.core.types import Adapter, Completion, Request, Role, Sampling, TokenIds
from flow_dpo.engines.choices import choose


def peer_model(model: PreTrainedModel, roles: Sequence[Role], *, rank: int) -> PeftModel:
    """The model under transformers' own attention, with an adapter for each role as ours has."""
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, config, adapter_name=roles[0], autocast_adapter_dtype=False)
    assert isinstance(wrapped, PeftModel)
    for role in roles[1:]:
        wrapped.add_adapter(role, config)
    return wrapped.eval()


class _Asked(NamedTuple):
    ticket: int
    request: Request
    sampling: Sampling
    seed: int
    excluded: TokenIds


class GenerateEngine(Engine):
    """transformers' `generate`, one call for all due requests of a role."""

    def __init__(self, model: PeftModel, *, end_ids: Collection[int], max_batch_size: int) -> None:
        self._model, self._end_ids, self._max_batch_size = model, frozenset(end_ids), max_batch_size
        self._queues: dict[Role, list[_Asked]] = {}
        self._num_tickets = 0
        self._stats = {"sampled_tokens": 0.0, "computed_tokens": 0.0, "calls": 0.0, "choice_s": 0.0}

    def submit(self, request: Request, sampling: Sampling, *, seed: int, excluded: TokenIds = ()) -> int:
        assert request.choices or (sampling.temperature == 1 and sampling.top_p == 1 and not sampling.greedy)
        self._num_tickets += 1
        asked = _Asked(self._num_tickets, request, sampling, seed, excluded)
        self._queues.setdefault(request.role, []).append(asked)
        return self._num_tickets

    def poll(self) -> list[tuple[int, Completion]]:
        role = max(self._queues, key=lambda role: len(self._queues[role]), default=None)
        if role is None or not self._queues[role]:
            return []
        # Prompts of like length together: the least padding.
        due = sorted(self._queues[role], key=lambda asked: len(asked.request.prompt_ids))
        batch, self._queues[role] = due[: self._max_batch_size], due[self._max_batch_size :]
        self._model.set_adapter(role)
        self._stats["calls"] += 1
        with torch.inference_mode():
            return self._choices(batch) if batch[0].request.choices else self._writes(batch)

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        return

    def take_stats(self) -> dict[str, float]:
        stats, self._stats = self._stats, dict.fromkeys(self._stats, 0.0)
        return stats

    def _choices(self, batch: Sequence[_Asked]) -> list[tuple[int, Completion]]:
        started = time.perf_counter()
        ids, mask = left_padded([asked.request.prompt_ids for asked in batch], self._model.device)
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        found = self._model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1)
        logits = found.logits[:, -1].double()
        self._stats["computed_tokens"] += mask.sum().item()
        self._stats["choice_s"] += time.perf_counter() - started
        return [
            (a.ticket, choose(row[list(a.request.choices)].tolist(), a.request, a.sampling, seed=a.seed))
            for a, row in zip(batch, logits, strict=True)
        ]

    def _writes(self, batch: Sequence[_Asked]) -> list[tuple[int, Completion]]:
        ids, mask = left_padded([asked.request.prompt_ids for asked in batch], self._model.device)
        noted = _Noted()
        excluded = _FirstTokens([asked.excluded for asked in batch], ids.shape[1])
        longest = max(asked.request.max_tokens for asked in batch)
        sequences = generate(self._model, ids, mask, longest, self._end_ids, [noted, excluded])
        logprobs = noted.finish(sequences)
        written = sequences[:, ids.shape[1] :].tolist()
        done: list[tuple[int, Completion]] = []
        for asked, tokens, values in zip(batch, written, logprobs, strict=True):
            tokens = tokens[: asked.request.max_tokens]
            end = next((i + 1 for i, token in enumerate(tokens) if token in self._end_ids), None)
            tokens, kept = tuple(tokens[:end]), tuple(values[: end or len(tokens)])
            self._stats["sampled_tokens"] += len(tokens)
            self._stats["computed_tokens"] += len(asked.request.prompt_ids) + len(tokens)
            completion = Completion(
                token_ids=tokens,
                logprobs=kept,
                sampled_logprobs=kept,
                finish_reason="stop" if end else "length",
                policy_version=0,
            )
            done.append((asked.ticket, completion))
        return done


def left_padded(prompts: Sequence[TokenIds], device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of a batch."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def generate(
    model: PeftModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    max_tokens: int,
    end_ids: Collection[int] = (),
    processors: Sequence[LogitsProcessor] = (),
) -> torch.Tensor:
    """One call, sampling at temperature 1 without truncation. Without `end_ids` nothing ends early."""
    inner = model.get_base_model()
    assert isinstance(inner, PreTrainedModel)
    # A checkpoint's own generation config would change the sampling unnoticed.
    inner.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=sorted(end_ids) or None)
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_tokens,
        pad_token_id=0,
        eos_token_id=sorted(end_ids) or None,
    )
    sampler: Any = inner
    return sampler.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=settings,
        logits_processor=LogitsProcessorList(processors),
    )


class _Noted(LogitsProcessor):
    """Gathers each token's log-probability when the next token is due."""

    def __init__(self) -> None:
        self._logits: torch.Tensor | None = None
        self._columns: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self._note(input_ids[:, -1])
        self._logits = scores
        return scores

    def finish(self, sequences: torch.Tensor) -> list[list[float]]:
        """Log-probabilities of every row's tokens."""
        self._note(sequences[:, -1])
        return torch.stack(self._columns, 1).tolist()

    def _note(self, tokens: torch.Tensor) -> None:
        if self._logits is not None:
            picked = self._logits.gather(1, tokens[:, None])[:, 0]
            self._columns.append(picked - self._logits.logsumexp(-1))


class _FirstTokens(LogitsProcessor):
    """Strikes tokens out of each row's first draw."""

    def __init__(self, excluded: Sequence[TokenIds], num_prompt_tokens: int) -> None:
        self._excluded, self._num_prompt_tokens = excluded, num_prompt_tokens

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if input_ids.shape[1] > self._num_prompt_tokens or not any(self._excluded):
            return scores
        excluded_ids = scores.clone()
        for row, tokens in enumerate(self._excluded):
            excluded_ids[row, list(tokens)] = -torch.inf
        return excluded_ids  # pyright: ignore[reportReturnType]
