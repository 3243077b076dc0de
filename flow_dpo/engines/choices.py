"""Choice requests: sample one of a request's declared choices from their logits.

One forward gives the logits of the choices at the end of the prompt. They are renormalised over the choices, then
sampled with the request's temperature. `top_p` is not applied: every declared choice is intended, and an improbable one
is not noise. Greedy takes the most probable choice; if several are exactly equal, the request's seed picks one of them,
so a tie has no fixed answer. A `threshold` takes the first of two choices if its probability at temperature 1 exceeds
it, without a draw. Invariant: the completion is one of the choices, and the probabilities of `choice_logprobs` sum to
one.

    choose([2.0, 2.0], Request(role="stop", prompt_ids=(1,), choices=(8, 9)), Sampling(), seed=7)   # logprobs=(-0.693,)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

from flow_dpo.core.errors import EngineError
from flow_dpo.core.types import Completion, Request, Sampling, TokenIds
from flow_dpo.engines.request_checks import nothing_left
from flow_dpo.engines.sampling_rule import Drawn, draw, uniform


def choose(
    scores: Sequence[float],
    request: Request,
    sampling: Sampling,
    *,
    seed: int,
    excluded: TokenIds = (),
    policy_version: int = 0,
) -> Completion:
    """Sample a choice, given the logits (or log-probabilities) of the choices' token ids, in their order.

    Raises `EngineError` if no choice has probability, or `excluded` leaves none.
    """
    peak = max(scores)
    if peak == -math.inf:
        raise EngineError(f"expected a choice of {request.choices} with probability, found none ({request.role!r})")
    total = peak + math.log(math.fsum(math.exp(score - peak) for score in scores))
    logprobs = tuple(score - total for score in scores)
    left_out = {index for index, token in enumerate(request.choices) if token in excluded}
    share = uniform(seed, 0)
    if sampling.threshold is not None:
        drawn = _by_threshold(logprobs, scores[0] - scores[1], sampling, left_out)
    else:
        if sampling.greedy and (left := [index for index in range(len(logprobs)) if index not in left_out]):
            tied = [index for index in left if logprobs[index] == max(logprobs[other] for other in left)]
            left_out |= set(tied) - {tied[int(share * len(tied))]} if tied else set()  # none if they are not finite
        whole = sampling if sampling.top_p == 1 else replace(sampling, top_p=1.0)
        drawn = draw(dict(enumerate(logprobs)), whole, uniform=share, excluded=left_out)
    if drawn is None:
        raise nothing_left(request, sampling, excluded)
    return Completion(
        token_ids=(request.choices[drawn.token],),
        logprobs=(logprobs[drawn.token],),
        sampled_logprobs=(drawn.sampled_logprob,),
        finish_reason="choice",
        policy_version=policy_version,
        choice=drawn.token,
        choice_logprobs=logprobs,
    )


def _by_threshold(
    logprobs: Sequence[float], log_odds: float, sampling: Sampling, left_out: Collection[int]
) -> Drawn | None:
    """The first choice if its log-odds exceed the threshold's, otherwise the second, however improbable it is at this
    temperature. If that one is excluded or has no probability, the other one."""
    wanted = 0 if log_odds > _logit(sampling.threshold or 0.0) else 1
    left = [index for index in (wanted, 1 - wanted) if index not in left_out and logprobs[index] > -math.inf]
    if not left:
        return None
    scaled = [(value - max(logprobs)) / sampling.temperature for value in logprobs]
    total = math.log(math.fsum(map(math.exp, scaled)))
    return Drawn(left[0], logprob=logprobs[left[0]], sampled_logprob=min(0.0, scaled[left[0]] - total))


def _logit(probability: float) -> float:
    """The log-odds of a probability: exactly 0 for one half, so that a tie does not exceed it."""
    if probability in (0.0, 1.0):
        return math.copysign(math.inf, probability - 0.5)
    return math.log(probability) - math.log1p(-probability)
