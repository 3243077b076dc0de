"""Which way of computing log-probabilities is right for a model, found by comparing with its own forward.

    choose_way(policy, packed=True)     # (True, False): prefixes shared, this package's head
                                        # (False, True): each completion after its own prompt, the model's own head

Invariant: a way is chosen only if it is right for every role's adapter, past every length that the config names.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack

import torch

from flow_dpo.core.errors import ModelError
from flow_dpo.core.types import Completion, Request
from flow_dpo.learner.logprobs import PackedLogprobs, PlainLogprobs, PromptedCompletion
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

Way = tuple[bool, bool]
"""Whether prefixes are shared, and whether logits come from the model's own head."""


def choose_way(policy: Policy, *, packed: bool) -> Way:
    """The fastest way that is right; warns where prefixes cannot be shared. Raises `ModelError` where none is.

    Where no way is right under the registered attention, the model gets back its family's own.
    """
    ways: list[Way] = [(False, False), (False, True)]
    way, seen = _first_right(policy, [(True, False), (True, True)] * packed + ways)
    if way is None and attention.give_up(policy.model):
        way, again = _first_right(policy, ways)
        seen |= again
    if way is None:
        raise ModelError(
            f"{type(policy.model).__name__}'s log-probabilities cannot be computed: {seen[False, False]}; with its own "
            f"head {seen[False, True]}. This model cannot be trained here"
        )
    if packed and not way[0]:
        warnings.warn(
            f"prefixes are not shared in learning, for this model does not allow it ({seen[True, False]}): each "
            f"completion is computed after its own prompt, exact but several times slower",
            stacklevel=2,
        )
    return way


def _first_right(policy: Policy, ways: Sequence[Way]) -> tuple[Way | None, dict[Way, str]]:
    """The first of these ways that is right, and what was seen of those before it."""
    seen: dict[Way, str] = {}
    with ExitStack() as stack:
        probes = [_Probe(policy, stack)]
        reason, unseen = needs_reduced(policy.model), ""
        if reason:
            try:
                probes.append(_Probe(small_policy(policy), stack, tolerance=REDUCED_TOLERANCE))
            except FAULTS as error:
                unseen = f"it could not be tried {reason}: {type(error).__name__}: {error}"[:300]
        for way in ways:
            seen[way] = unseen if way[0] and reason != IN_FLOAT32 else ""
            seen[way] = seen[way] or next(filter(None, (probe.complaint(way) for probe in probes)), "")
            if not seen[way]:
                return way, seen
    return None, seen


def small_policy(policy: Policy) -> Policy:
    """The same roles and adapters over the model's reduced copy. Raises one of `FAULTS` where it cannot be built."""
    small = Policy(reduced_model(policy.model), policy.roles, policy.settings, seed=policy.seed)
    if policy.model.config._attn_implementation == "eager":
        attention.give_up(small.model)
    return small


class _Probe:
    """Completions for every role, with the model's own log-probabilities under adapters that are not zero."""

    def __init__(self, policy: Policy, stack: ExitStack, *, tolerance: float = FULL_TOLERANCE) -> None:
        self._policy, self._tolerance = policy, tolerance
        for index, role in enumerate(policy.roles):
            stack.enter_context(stirred(policy.parameters(role), seed=index))
        everything = _completions(policy)
        self._completions = {role: everything if i == 0 else everything[:2] for i, role in enumerate(policy.roles)}
        self._own: dict[str, OwnForward] = {}

    def complaint(self, way: Way) -> str:
        """How this way is off from the model's own forward, or fails; "" where it is right."""
        return next(filter(None, (complaint_of(lambda: self._compare(role, way)) for role in self._policy.roles)), "")

    def _compare(self, role: str, way: Way) -> str:
        completions = self._completions[role]
        with torch.no_grad(), self._policy.using(role) as model:
            if role not in self._own:
                cases = [Case(r.prompt_ids, c.token_ids, r.choices) for r, c in completions]
                self._own[role] = OwnForward(model, cases, tolerance=self._tolerance)
            found = (PackedLogprobs if way[0] else PlainLogprobs)(model, completions, own_head=way[1])()
        return self._own[role].complaint(found)


def _completions(policy: Policy) -> list[PromptedCompletion]:
    """Two completions of one prompt that part after a token, a choice, and a completion of a prompt that begins alike."""
    model = policy.model
    room = probe_room(model)
    long = min(2 * probe_reach(model) + 5, room - 6)
    prompt, said, other = (probe_tokens(model, count, seed) for seed, count in enumerate((long, 6, 9)))
    role = policy.roles[0]
    prompted = [
        (Request(role=role, prompt_ids=prompt), said),
        (Request(role=role, prompt_ids=prompt, choices=other[:2]), other[:1]),
        (Request(role=role, prompt_ids=prompt), said[:1] + other[:4]),
        (Request(role=role, prompt_ids=prompt[: long // 2] + other[:3]), other[3:]),
    ]
    return [
        (request, Completion(token_ids=ids, logprobs=(), sampled_logprobs=(), finish_reason="length", policy_version=0))
        for request, ids in prompted
    ]
