"""Finds an engine in this process that samples a model correctly, by comparing it with the model's own forward.

The cases: several prompts in one step, tokens one by one, prompts that begin alike, a prompt that continues a sampled
completion, a choice; for every role's adapter, and past every window, chunk or other length in the model's config.

    name = choose_engine(Subject.of(policy, context_tokens=2048), {"the local engine": (make, "layout"), ...})

Invariant: the engine chosen is the first whose log-probabilities are all right up to rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from transformers import PreTrainedModel

from flow_dpo.core.engine import Engine
from flow_dpo.core.errors import ModelError
from flow_dpo.core.types import Completion, Request, Role, Sampling
from flow_dpo.learner.check import small_policy
from flow_dpo.learner.policy import Policy
from flow_dpo.models import attention
from flow_dpo.models.own_forward import FULL_TOLERANCE, REDUCED_TOLERANCE, Case, OwnForward, stirred
from flow_dpo.models.probes import REACH, Way, first_right, probe_reach, probe_room, probe_tokens, reduced_model

_MORE, _FEWER = 16, 6
"""Number of tokens sampled one by one with a small model, and with a large one."""
_UNLIMITED = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, and how it is used under each role: with adapters or without."""

    model: PreTrainedModel
    roles: tuple[Role, ...]
    using: Callable[[Role], AbstractContextManager[PreTrainedModel]]
    """Yields the role's model, with the adapter's own layers, never merged."""
    context_tokens: int
    policy: Policy | None = None
    """None without adapters."""
    tolerance: float = FULL_TOLERANCE
    """Largest difference allowed in float32, in nats."""

    @staticmethod
    def of(policy: Policy, *, context_tokens: int) -> Subject:
        """A model with its adapters."""
        bare = Subject.bare(policy.model, context_tokens=context_tokens)
        return replace(bare, roles=policy.roles, using=policy.using, policy=policy)

    @staticmethod
    def bare(model: PreTrainedModel, *, context_tokens: int) -> Subject:
        """A model without adapters."""
        return Subject(model=model, roles=("model",), using=lambda _: nullcontext(model), context_tokens=context_tokens)

    def reduced(self) -> Subject:
        """The same for the model's reduced copy. Raises one of `own_forward.FAULTS` if that cannot be built."""
        if self.policy is not None:
            small = Subject.of(small_policy(self.policy), context_tokens=_UNLIMITED)
        else:
            small = Subject.bare(reduced_model(self.model), context_tokens=_UNLIMITED)
            attention.prepare(small.model)
            if self.model.config._attn_implementation == "eager":
                attention.give_up(small.model)
        room = probe_room(small.model)
        return replace(small, context_tokens=room, tolerance=REDUCED_TOLERANCE)


MakesEngine = Callable[[Subject], Engine]
"""Creates an engine for this subject, without end tokens."""
Kind = Literal["layout", "cached", "whole"]
"""Whether an engine needs the registered attention, uses transformers' own cache, or recomputes all tokens."""


def choose_engine(subject: Subject, engines: Mapping[str, tuple[MakesEngine, Kind]], *, settings: object = None) -> str:
    """The name of the first of these engines that samples correctly; warns if it is not the very first. With the first
    engine's `settings`, a check that passed before in this process is not repeated (`probes.first_right`).

    Raises `ModelError`, with the differences found, if no engine is correct.
    """
    ways = {
        name: Way[Subject](complaint=partial(_complaint, make), layout=kind == "layout", whole=kind == "whole")
        for name, (make, kind) in engines.items()
    }
    adapters = subject.policy and subject.policy.settings
    key = settings and (settings, subject.roles, subject.context_tokens, adapters)
    name, seen = first_right(ways, subject, subject.reduced, subject.model, key=key)
    first, family = next(iter(engines)), type(subject.model).__name__
    if not name:
        raise ModelError(
            f"{family} cannot be sampled from token by token: "
            + "; ".join(f"{each}: {what}" for each, what in seen.items())
            + ". Use another model"
        )
    if name != first:
        warnings.warn(
            f"{family} is sampled by {name}, correctly but one request at a time and much slower: {first} is not "
            f"correct for it ({seen[first]})",
            stacklevel=2,
        )
    return name


def _complaint(make: MakesEngine, subject: Subject) -> str:
    """What is wrong with the log-probabilities of the tokens that an engine samples; "" if they are right."""
    with ExitStack() as stack:
        if subject.policy is not None:
            for index, role in enumerate(subject.roles):
                stack.enter_context(stirred(subject.policy.parameters(role), index, subject.model))
        engine = stack.enter_context(closing(make(subject)))
        sampled = _sample(engine, subject)
        for role in subject.roles:
            pairs = [(request, completion) for request, completion in sampled if request.role == role]
            with torch.no_grad(), subject.using(role) as model:
                cases = [Case(r.prompt_ids, c.token_ids, r.choices) for r, c in pairs]
                own = OwnForward(model, cases, tolerance=subject.tolerance)
            if found := own.complaint([completion.logprobs for _, completion in pairs]):
                return found
    return ""


def _sample(engine: Engine, subject: Subject) -> Sequence[tuple[Request, Completion]]:
    """Sample requests of all roles at once, then some that begin with what was sampled for the first role."""
    # 1. Prompts that begin alike, of two lengths, and a choice; other roles than the first get only the first prompt.
    room = min(subject.context_tokens, probe_room(subject.model))
    reach = probe_reach(subject.model)
    more = min(_MORE if reach == REACH else _FEWER, room // 4)
    long = max(2, min(2 * reach + 5, room - 2 * more - 1))
    prompt, other = (probe_tokens(subject.model, count, seed) for seed, count in ((10, long), (11, 9)))
    first, *others = subject.roles
    requests = [
        Request(role=first, prompt_ids=prompt, max_tokens=more),
        Request(role=first, prompt_ids=prompt[: long // 2] + other[:4], max_tokens=3),
        Request(role=first, prompt_ids=prompt[:5], choices=(min(other), max(other))),
        *(Request(role=role, prompt_ids=prompt, max_tokens=3) for role in others),
    ]
    completions = engine.sample(requests, Sampling(), seeds=list(range(len(requests))))
    # 2. Continue from the first completion, and from inside its prompt.
    later = [
        Request(role=first, prompt_ids=prompt + completions[0].token_ids + other[:1], max_tokens=more),
        Request(role=first, prompt_ids=prompt[: long - 2] + other[4:6], max_tokens=3),
    ]
    return [
        *zip(requests, completions, strict=True),
        *zip(later, engine.sample(later, Sampling(), seeds=[7, 8]), strict=True),
    ]
