"""Measures how far an engine with 8-bit integers is from the model: when it is opened, before anything is sampled.

    report(engine, Subject.of(policy, context_tokens=2048), prompts)     logs "... differ by 0.046 nats on average"

Invariant: recorded log-probabilities are compared with the model's own forward, as in the drift check.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from flow_dpo.core.engine import Engine
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.types import Request, Sampling, TokenIds
from flow_dpo.engines.local.engine import LocalEngine
from flow_dpo.engines.local.int8 import why_not
from flow_dpo.engines.model_check import Subject
from flow_dpo.models.drift_causes import distance

_logger = logging.getLogger(__name__)
_TOKENS = 32
"""Tokens sampled after each prompt."""
MOST = 0.2
"""Mean difference in nats per token above which the engine is refused; the same as a run's `max_logprob_drift`."""


def refuse(device: torch.device) -> None:
    """Raise `ConfigError` if this process cannot multiply 8-bit integers."""
    reason = "the model is on a GPU" if device.type != "cpu" else why_not()
    if reason:
        raise ConfigError(
            f"expected a processor that multiplies 8-bit integers for --engine.int8, found that {reason}; leave int8 "
            "out (--engine.int8 false)"
        )


def report(engine: Engine, subject: Subject, prompts: Sequence[TokenIds]) -> None:
    """Log the mean difference in nats between recorded and recomputed log-probabilities of sampled tokens."""
    if not isinstance(engine, LocalEngine):
        raise ConfigError(
            "expected a model that the local engine supports for --engine.int8, found one that it does not"
        )
    role = subject.roles[0]
    tokens = min(_TOKENS, subject.context_tokens // 2)
    room = subject.context_tokens - tokens
    requests = [Request(role=role, prompt_ids=ids[:room], max_tokens=tokens) for ids in prompts]
    completions = engine.sample(requests, Sampling(), seeds=list(range(len(requests))))
    with subject.using(role) as model:
        found = distance(model, list(zip(requests, completions, strict=True)))
    if not found <= MOST:
        raise ConfigError(
            f"expected log-probabilities within {MOST} nats of the model's own with --engine.int8, found {found:.2g} a "
            "token on average: 8-bit integers are too coarse for this model; leave int8 out (--engine.int8 false)"
        )
    count = sum(len(completion.token_ids) for completion in completions)
    _logger.info("8-bit integers: log-probabilities of %d sampled tokens differ by %.2g nats on average", count, found)
