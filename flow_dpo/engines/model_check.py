"""Which engine in this process samples a model rightly, found by comparing what it samples with the model's own forward.

Several prompts in one step, tokens one by one, prompts that begin alike, a prompt that goes on from a sampled
completion, a choice: for every role's adapter, past every window, chunk or other length that the model's config names.

    engine = first_right(Subject.of(policy, context_tokens=2048), {"the local engine": make_local, "...": make_plain})

Invariant: an engine is returned only if all its log-probabilities are right up to rounding; the first that is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from flow_dpo.core.engine import Engine
from flow_dpo.core.errors import ModelError
from flow_dpo.core.types import Completion, Request, Role, Sampling
from flow_dpo.learner.check import small_policy
from flow_dpo.learner.policy import Policy
from flow_dpo.models import attention
from flow_dpo.models.own_forward import (
    FAULTS,
    FULL_TOLERANCE,
    IN_FLOAT32,
    REDUCED_TOLERANCE,
    Case,
    OwnForward,
    complaint_of,
    needs_reduced,
    probe_reach,
    probe_room,
    probe_tokens,
    reduced_model,
    stirred,
)

_MORE = 7
"""Tokens that are sampled one by one."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, and how it is used under each role: with adapters, or as it is."""

    model: PreTrainedModel
    roles: tuple[Role, ...]
    using: Callable[[Role], AbstractContextManager[PreTrainedModel]]
    """The role's model by its adapter's own layers, never merged."""
    context_tokens: int
    policy: Policy | None = None
    """None without adapters."""
    tolerance: float = FULL_TOLERANCE
    """Nats that the largest difference may have in float32."""

    @staticmethod
    def of(policy: Policy, *, context_tokens: int) -> Subject:
        return Subject(
            model=policy.model, roles=policy.roles, using=policy.using, context_tokens=context_tokens, policy=policy
        )  # fmt: skip

    @staticmethod
    def bare(model: PreTrainedModel, *, context_tokens: int) -> Subject:
        """A model without adapters."""
        attention.prepare(model)
        return Subject(model=model, roles=("model",), using=lambda _: nullcontext(model), context_tokens=context_tokens)

    def reduced(self) -> Subject:
        """The same over the model's reduced copy. Raises one of `FAULTS` where that cannot be built."""
        if self.policy is not None:
            small = Subject.of(small_policy(self.policy), context_tokens=1 << 20)
        else:
            small = Subject.bare(reduced_model(self.model), context_tokens=1 << 20)
            if self.model.config._attn_implementation == "eager":
                attention.give_up(small.model)
        room = min(small.context_tokens, probe_room(small.model))
        return replace(small, context_tokens=room, tolerance=REDUCED_TOLERANCE)


MakesEngine = Callable[[Subject], Engine]
"""An engine over this subject for which no token ends a completion."""


def first_right(subject: Subject, engines: Mapping[str, MakesEngine], *, exact: str = "") -> str:
    """The name of the first of these engines that samples rightly; warns where it is not the very first.

    `exact` is the engine to trust where the reduced copy cannot be built, for it forwards all tokens anew. Raises
    `ModelError`, with what was seen, where none is right.
    """
    name, seen = _first_right(subject, engines, exact)
    if not name and attention.give_up(subject.model):
        later = {each: make for each, make in engines.items() if each != next(iter(engines))} or dict(engines)
        name, again = _first_right(subject, later, exact)
        seen = {**seen, **again}
    first = next(iter(engines))
    if not name:
        raise ModelError(
            f"{type(subject.model).__name__} cannot be sampled from rightly: "
            + "; ".join(f"{each}: {what}" for each, what in seen.items())
            + ". Nothing computes its distribution token by token; use another model or engine (--engine)"
        )
    if name != first:
        warnings.warn(
            f"{type(subject.model).__name__} is sampled by {name}, one request at a time, right but much slower: "
            f"{first} is not right for it ({seen[first]})",
            stacklevel=2,
        )
    return name


def _first_right(subject: Subject, engines: Mapping[str, MakesEngine], exact: str) -> tuple[str, dict[str, str]]:
    """The first right engine's name, "" where there is none, and what was seen of those before it."""
    subjects, unseen = [subject], ""
    reason = needs_reduced(subject.model)
    if reason:
        try:
            subjects.append(subject.reduced())
        except FAULTS as error:
            unseen = f"it could not be tried {reason}: {type(error).__name__}: {error}"[:300]
    seen: dict[str, str] = {}
    for name, make in engines.items():
        seen[name] = unseen if name != exact and reason != IN_FLOAT32 else ""
        for each in [] if seen[name] else subjects:
            seen[name] = seen[name] or complaint_of(lambda make=make, each=each: _complaint(make, each))
        if not seen[name]:
            return name, seen
    return "", seen


def _complaint(make: MakesEngine, subject: Subject) -> str:
    """How the log-probabilities of what an engine samples are off; "" where they are right."""
    with ExitStack() as stack:
        if subject.policy is not None:
            for index, role in enumerate(subject.roles):
                stack.enter_context(stirred(subject.policy.parameters(role), seed=index))
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
    """Requests of all roles at once, and then some that begin with what was sampled for the first role."""
    # 1. Prompts that begin alike, of two lengths, and a choice; roles after the first have the first prompt alone.
    room = min(subject.context_tokens, probe_room(subject.model))
    long = min(2 * probe_reach(subject.model) + 5, room - _MORE - 3)
    prompt, other = (probe_tokens(subject.model, count, seed) for seed, count in ((10, long), (11, 9)))
    first, *others = subject.roles
    requests = [
        Request(role=first, prompt_ids=prompt, max_tokens=_MORE),
        Request(role=first, prompt_ids=prompt[: long // 2] + other[:4], max_tokens=3),
        Request(role=first, prompt_ids=prompt[:5], choices=other[:2]),
        *(Request(role=role, prompt_ids=prompt, max_tokens=3) for role in others),
    ]
    completions = engine.sample(requests, Sampling(), seeds=list(range(len(requests))))
    # 2. On from the first completion, and from the middle of its prompt.
    later = [
        Request(role=first, prompt_ids=prompt + completions[0].token_ids + other[:1], max_tokens=2),
        Request(role=first, prompt_ids=prompt[: long - 2] + other[4:6], max_tokens=3),
    ]
    return [
        *zip(requests, completions, strict=True),
        *zip(later, engine.sample(later, Sampling(), seeds=[7, 8]), strict=True),
    ]
