"""Checks that a vLLM server serves the model that is trained, with room for every role's adapter.

They run once, before anything is sampled, by comparing its replies with the model in this process:

    base = connect(client, expected)      # ServedModel(id="seed", root="...", max_model_len=512)

Invariant: a server that passes accepts and returns token ids, tokenizes as we do, has the same base weights, reports
log-probabilities of the unscaled distribution for as many tokens as are requested, and can load an adapter for every
role. Each error names the flag that fixes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flow_dpo.core.errors import ConfigError, EngineError
from flow_dpo.core.types import TokenIds
from flow_dpo.engines.vllm.client import ServedModel, Unknown, VllmClient, served_models
from flow_dpo.engines.vllm.requests import Reply, VllmRequest, plain_params

MOST_DIVERGENCE = 0.05
"""In nats. Half precision and other kernels cause less than 0.01; an 8-bit model a few hundredths."""
_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedModel:
    """What a server must reproduce: tokenization and next-token log-probabilities of the model in this process."""

    name: str
    """The model's name in messages."""
    encoded: Mapping[str, TokenIds]
    """Texts and their token ids, without special tokens at the ends."""
    logprobs: Mapping[TokenIds, Sequence[float]]
    """Log-probabilities of every next token after some prompts, by the base model."""
    num_roles: int


def connect(client: VllmClient, expected: ExpectedModel) -> ServedModel:
    """The server's base model. Raises `ConfigError` if it is not the expected one, or lacks a feature."""
    base = _base(client)
    try:
        _check_tokenizer(client, base, expected)
        check_base(lambda request: client.complete(base.id, request).reply, expected, where=client.url)
    except EngineError as error:
        raise ConfigError(str(error)) from error
    except Unknown as error:
        raise ConfigError(
            f"expected completions of {base.id} from {client.url}, which lists it, found that it does not "
            "complete; serve a model that generates text, with vLLM's own server at this address"
        ) from error
    num_loras = client.max_loras()
    if num_loras is not None and num_loras < expected.num_roles:
        raise ConfigError(
            f"expected {client.url} to serve the adapters of {expected.num_roles} roles together, found max_loras "
            f"{num_loras}; start it with --max-loras {expected.num_roles} or more"
        )
    return base


def _base(client: VllmClient) -> ServedModel:
    """The base model with the configured name, or the only one."""
    answer = client.answers()
    if answer.status in (401, 403):
        raise ConfigError(
            f"{client.url} refused the API key ({answer.status}); set the environment variable OPENAI_API_KEY"
        )
    try:
        bases = [one for one in served_models(answer, client.url) if not one.parent]
    except EngineError as error:
        raise ConfigError(str(error)) from error
    name = client.settings.served_model
    found = [one for one in bases if not name or one.id == name]
    if not found or (len(found) > 1 and len({(one.root, one.max_model_len) for one in found}) > 1):
        raise ConfigError(
            f"expected {'the model ' + name if name else 'one base model'} at {client.url}, found "
            f"{[one.id for one in bases]}; give one of them with --served_model"
        )
    return found[0]


def _check_tokenizer(client: VllmClient, base: ServedModel, expected: ExpectedModel) -> None:
    for text, ids in expected.encoded.items():
        found = client.tokenize(base.id, text)
        if found != ids:
            raise ConfigError(
                f"expected the tokenizer of {expected.name} at {client.url}, found one that encodes {text!r:.60} as "
                f"{found[:12]}, not as {ids[:12]}; serve the same model, or train the one that is served"
            )


def check_base(send: Callable[[VllmRequest], Reply], expected: ExpectedModel, *, where: str) -> None:
    """Raise `ConfigError` if the base model is not the expected one, or does not report the log-probabilities of the
    unscaled distribution. `send` sends it one request."""
    _check_weights(send, expected, where)
    _check_scale(send, expected, where)


def _check_weights(send: Callable[[VllmRequest], Reply], expected: ExpectedModel, where: str) -> None:
    divergences: list[float] = []
    for prompt_ids, logprobs in expected.logprobs.items():
        [top_logprobs] = send(VllmRequest(prompt_ids, plain_params(max_tokens=1, logprobs=-1))).top_logprobs
        if abs(math.fsum(math.exp(value) for value in top_logprobs.values()) - 1) > 0.01:
            raise ConfigError(
                f"expected log-probabilities of every token from {where}, found {len(top_logprobs)} that do not sum to "
                "one; start it with --max-logprobs -1 and --logprobs-mode raw_logprobs"
            )
        if not all(token in top_logprobs for token in range(len(logprobs))):
            raise ConfigError(
                f"expected the {len(logprobs)} tokens of {expected.name} at {where}, found a model of "
                f"{len(top_logprobs)}; serve the same model"
            )
        divergences.append(divergence(logprobs, top_logprobs))
    mean = math.fsum(divergences) / len(divergences)
    if not mean <= MOST_DIVERGENCE:
        raise ConfigError(
            f"expected the weights of {expected.name} at {where}, found a model whose next-token "
            f"distribution differs by {mean:.3g} nats (rounding is at most {MOST_DIVERGENCE}); serve the same model "
            "in a precision close to that of training"
        )


def divergence(expected: Sequence[float], found: Mapping[int, float] | Sequence[float]) -> float:
    """Kullback-Leibler divergence, in nats, of two next-token distributions that are given as log-probabilities."""
    return math.fsum(math.exp(value) * (value - found[token]) for token, value in enumerate(expected) if value > -700)


def _check_scale(send: Callable[[VllmRequest], Reply], expected: ExpectedModel, where: str) -> None:
    """Raise `ConfigError` if log-probabilities change with temperature."""
    params, prompt_ids = plain_params(max_tokens=1, logprobs=1), next(iter(expected.logprobs))
    replies = [
        send(VllmRequest(prompt_ids, params | {"temperature": temperature, "seed": 1})) for temperature in (1.0, 2.0)
    ]
    values = [max(one.top_logprobs[0].values()) for one in replies]
    if abs(values[0] - values[1]) > max(_ROUNDING, 0.01 * abs(values[0])):
        raise ConfigError(
            f"expected log-probabilities before temperature from {where}, found {values[0]:.4f} at 1 and "
            f"{values[1]:.4f} at 2; start it with --logprobs-mode raw_logprobs, the default"
        )
