"""Causes of a drift: which weights, prompt or temperature explain log-probabilities that were recorded elsewhere.

Each cause that can be told apart is tried on a few completions by the model's own forward, one at a time, and measured
by its distance from what was recorded, in nats per token:

    {"the adapter of 'stop'": 0.0003, "a temperature of 0.70": 0.41, "the base without an adapter": 0.52, ...}

Invariant: only the model's own logits are used, none of the package's ways of computing them, and the log-probabilities
are those recorded at temperature 1, whatever a learner's `logit_temperature` made of them.

Shapes: T tokens of a completion, V tokens of the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from flow_dpo.core.types import Completion, Request, TokenIds

PromptedCompletion = tuple[Request, Completion]
"""A completion with the request that it answers: the unit for which token log-probabilities are computed."""
_FIT_COMPLETIONS, _FIT_TOKENS = 2, 64
"""Number of completions, and of first tokens of each, whose full distributions are kept to find a temperature."""
_SAME_TEMPERATURE = 0.02
"""Temperatures this close to 1 count as 1."""
_MAX_PROMPTS = 8
"""Number of other requests' prompts that are tried."""


def inputs(prompted: PromptedCompletion) -> TokenIds:
    """The input token ids: prompt and completion without its last token."""
    request, completion = prompted
    return request.prompt_ids + completion.token_ids[:-1]


@torch.no_grad()
def own_logits(model: PreTrainedModel, request: Request, completion: Completion) -> torch.Tensor:
    """The model's own logits for a completion's tokens, TV in float32; only those of the choices if there are any."""
    ids = inputs((request, completion))
    count = len(completion.token_ids)
    few = {"logits_to_keep": count} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    found = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False, **few)
    logits_TV = found.logits[0, -count:].float()
    return logits_TV[:, list(request.choices)] if request.choices else logits_TV


def labels_of(request: Request, completion: Completion) -> list[int]:
    """For each token of a completion, its column in `own_logits`."""
    return [request.choices.index(i) for i in completion.token_ids] if request.choices else list(completion.token_ids)


def own_logprobs(model: PreTrainedModel, request: Request, completion: Completion) -> torch.Tensor:
    """The log-probability of each token by the model's own logits, T."""
    labels = labels_of(request, completion)
    return own_logits(model, request, completion).log_softmax(-1)[range(len(labels)), labels]


def distance(model: PreTrainedModel, sample: Sequence[PromptedCompletion]) -> float:
    """Mean absolute difference between recorded log-probabilities and the model's own, in nats per token."""
    pieces = [own_logprobs(model, r, c).cpu() - torch.tensor(c.raw_logprobs or c.logprobs) for r, c in sample]
    return float(torch.cat(pieces).abs().mean())


def measure_causes(
    model: PreTrainedModel,
    sample: Sequence[PromptedCompletion],
    prompts: Sequence[TokenIds],
    used: Callable[[], AbstractContextManager[object]],
    others: Mapping[str, Callable[[], AbstractContextManager[object]]],
) -> dict[str, float]:
    """The distance under each cause, nearest first.

    `used` puts on the model the weights that the completions should have been sampled with, `others` other weights, by
    name; `prompts` are the prompts of other requests, with which an engine could have confused these.
    """
    causes: dict[str, float] = {}
    for name, weights in others.items():
        with weights():
            causes[name] = distance(model, sample)
    with used():
        for name, changed in _ENDS.items():
            start = model.config.get_text_config().bos_token_id
            made = [(replace(r, prompt_ids=changed(r.prompt_ids, start)), c) for r, c in sample]
            if all(request.prompt_ids and type(request.prompt_ids[0]) is int for request, _ in made):
                causes[name] = distance(model, made)
        if len(prompts[:_MAX_PROMPTS]) > 1:
            nearest = [
                min(
                    distance(model, [(replace(r, prompt_ids=ids), c)])
                    for ids in prompts[:_MAX_PROMPTS]
                    if ids != r.prompt_ids
                )
                for r, c in sample
            ]
            causes["the prompt of another request"] = sum(nearest) / len(nearest)
        temperature, away = _nearest_temperature(model, sample[:_FIT_COMPLETIONS])
    if abs(temperature - 1) > _SAME_TEMPERATURE:
        causes[f"a temperature of {temperature:.2f}"] = away
    return dict(sorted(causes.items(), key=lambda item: item[1]))


_ENDS: dict[str, Callable[[TokenIds, Any], TokenIds]] = {
    "a prompt without its first token": lambda ids, _: ids[1:],
    "a prompt without its last token": lambda ids, _: ids[:-1],
    "a prompt that begins with one more token": lambda ids, start: (start, *ids),
}
"""Prompts that an engine could get by mistake, with one token more or less at an end."""


def _nearest_temperature(model: PreTrainedModel, sample: Sequence[PromptedCompletion]) -> tuple[float, float]:
    """The temperature at which the model's logits best fit what was recorded, and the distance that remains."""
    kept: list[tuple[torch.Tensor, list[int], torch.Tensor]] = []
    for request, completion in sample:
        short = replace(completion, token_ids=completion.token_ids[:_FIT_TOKENS])
        recorded = torch.tensor((completion.raw_logprobs or completion.logprobs)[:_FIT_TOKENS])
        kept.append((own_logits(model, request, short), labels_of(request, short), recorded))

    def away(temperature: float) -> float:
        pieces = [(z / temperature).log_softmax(-1)[range(len(ids)), ids].cpu() - r for z, ids, r in kept]
        return float(torch.cat(pieces).abs().mean())

    tried = {float(t): away(float(t)) for t in torch.logspace(-2, 2, 41, base=2.0)}
    best = min(tried, key=tried.__getitem__)
    finer = {float(t): away(float(t)) for t in torch.linspace(best / 1.08, best * 1.08, 41)}
    best = min(finer, key=finer.__getitem__)
    return best, finer[best]
