"""Choice of the way to compute a model's log-probabilities, by comparison with the model's own forward.

    choose_way(policy, packed=True)     # (True, False): prefixes shared, this package's head

Invariant: a way is chosen only if it is right for every role's adapter, and beyond every length that the config names.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from functools import partial

import torch

from flow_dpo.core.errors import ModelError
from flow_dpo.core.types import Completion, Request
from flow_dpo.learner.logprobs import PackedLogprobs, PlainLogprobs, PromptedCompletion
from flow_dpo.learner.policy import Policy
from flow_dpo.models import attention, fused_decoder
from flow_dpo.models.own_forward import FULL_TOLERANCE, REDUCED_TOLERANCE, Case, OwnForward, stirred
from flow_dpo.models.probes import Way, first_right, probe_reach, probe_room, probe_tokens, reduced_model

_SHARED = "with shared prefixes"
_WAYS = {
    "with shared prefixes and fused layers": (True, False, True),
    _SHARED: (True, False, False),
    "with shared prefixes and the model's own head": (True, True, False),
    "with separate ones": (False, False, False),
    "with separate ones and the model's own head": (False, True, False),
}
"""For each way, the fastest first: are prefixes shared, do logits come from the model's own head, are layers fused?"""


def choose_way(policy: Policy, *, packed: bool) -> tuple[bool, bool]:
    """Whether prefixes can be shared, and whether logits must come from the model's own head. If fused layers are
    right, the model computes with them from now on. Warns if prefixes should be shared (`packed`) but cannot be.
    Raises `ModelError` if no way is right.
    """
    ways = {
        name: Way[_Probe](
            complaint=partial(_Probe.complaint, packed=how[0], own_head=how[1], fused=how[2]),
            layout=how[0],
            whole=not how[0],
        )
        for name, how in _WAYS.items()
        if (packed or not how[0]) and (not how[2] or fused_decoder.prepare(policy.model))
    }
    with ExitStack() as stack:

        def reduce() -> _Probe:
            return _Probe(small_policy(policy), stack, tolerance=REDUCED_TOLERANCE)

        name, seen = first_right(ways, _Probe(policy, stack), reduce, policy.model, key=(policy.roles, policy.settings))
    if not name:
        raise ModelError(
            f"{type(policy.model).__name__}'s log-probabilities cannot be computed, so it cannot be trained here: "
            + "; ".join(f"{each} {what}" for each, what in seen.items())
        )
    if packed and not _WAYS[name][0]:
        warnings.warn(
            f"prefixes are not shared in learning, because this model does not allow it ({seen[_SHARED]}): "
            f"each completion is computed after its own prompt, which is exact but several times slower",
            stacklevel=2,
        )
    if not _WAYS[name][2]:
        fused_decoder.give_up(policy.model)
    return _WAYS[name][:2]


def small_policy(policy: Policy) -> Policy:
    """The same roles and adapters over the model's reduced copy. Raises one of `own_forward.FAULTS`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # adapter warnings were already given for the model itself
        small = Policy(reduced_model(policy.model), policy.roles, policy.settings, seed=policy.seed)
    if policy.model.config._attn_implementation == "eager":
        attention.give_up(small.model)
    return small


class _Probe:
    """Completions for every role, and the model's own log-probabilities for them under adapters that are not zero."""

    def __init__(self, policy: Policy, stack: ExitStack, *, tolerance: float = FULL_TOLERANCE) -> None:
        self._policy, self._tolerance = policy, tolerance
        self._completions = _completions(policy)
        for index, role in enumerate(policy.roles):
            stack.enter_context(stirred(policy.parameters(role), index, policy.model))
        self._own: dict[str, OwnForward] = {}

    @torch.no_grad()
    def complaint(self, packed: bool, own_head: bool, fused: bool) -> str:
        """How far this way is off from the model's own forward; "" if it is right."""
        if not fused:
            fused_decoder.give_up(self._policy.model)  # the way that is tried last is the one used
        elif not fused_decoder.prepare(self._policy.model):
            return "its layers are not of the kind that can be fused"
        for role in self._policy.roles:
            # All roles share the code: after the first, a completion and a choice show whether the adapter is right.
            completions = self._completions if role == self._policy.roles[0] else self._completions[:2]
            with self._policy.using(role) as model:
                if role not in self._own:
                    cases = [Case(r.prompt_ids, c.token_ids, r.choices) for r, c in completions]
                    self._own[role] = OwnForward(model, cases, tolerance=self._tolerance)
                found = (PackedLogprobs if packed else PlainLogprobs)(model, completions, own_head=own_head)()
            if complaint := self._own[role].complaint(found):
                return complaint
        return ""


def _completions(policy: Policy) -> list[PromptedCompletion]:
    """Two completions of one prompt that diverge after a token, a choice, and one of a prompt with a common prefix."""
    room = probe_room(policy.model)
    long = min(2 * probe_reach(policy.model) + 5, room - 6)
    prompt, said, other = (probe_tokens(policy.model, count, seed) for seed, count in enumerate((long, 6, 9)))
    role = policy.roles[0]
    prompted = [
        (Request(role=role, prompt_ids=prompt), said),
        (Request(role=role, prompt_ids=prompt, choices=tuple(sorted({*other[:2], other[8]}))), other[:1]),
        (Request(role=role, prompt_ids=prompt), said[:1] + other[:4]),
        (Request(role=role, prompt_ids=prompt[: long // 2] + other[:3]), other[3:]),
    ]
    return [
        (request, Completion(token_ids=ids, logprobs=(), sampled_logprobs=(), finish_reason="length", policy_version=0))
        for request, ids in prompted
    ]
