"""Choice requests: sample one of a request's declared choices from their logits.

Scored by one forward: the logits of the choices at the end of the prompt, renormalised over the choices, then sampled
with the request's temperature. `top_p` is not applied: every declared choice is intended, and an improbable one is not
noise. Greedy takes the most probable; where several are exactly equal, the request's seed picks among them, so that a
tie is neither a Yes for being named first nor a No. A `threshold` takes the first of two where its probability, at
temperature 1, exceeds it, and draws nothing. Invariant: the completion is one of the choices, and the probabilities of
`choice_logprobs` sum to one.

    choose([2.0, 2.0], Request(role="stop", prompt_ids=(1,), choices=(8, 9)), Sampling(), seed=7)   # logprobs=(-0.693,)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from flow_dpo.core.errors import EngineError
from flow_dpo.core.types import Completion, Request, Sampling, TokenIds
from flow_dpo.engines.request_checks import nothing_left
from flow_dpo.engines.sampling_rule import draw, uniform


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

    Raises `EngineError` where no choice has probability, or `excluded` leaves none.
    """
    peak = max(scores)
    if peak == -math.inf:
        raise EngineError(f"expected a choice of {request.choices} with probability, found none ({request.role!r})")
    total = peak + math.log(math.fsum(math.exp(score - peak) for score in scores))
    logprobs = tuple(score - total for score in scores)
    left_out = {index for index, token in enumerate(request.choices) if token in excluded}
    share = uniform(seed, 0)
    if sampling.greedy and (left := [index for index in range(len(logprobs)) if index not in left_out]):
        tied = [index for index in left if logprobs[index] == max(logprobs[other] for other in left)]
        left_out |= set(tied) - {tied[int(share * len(tied))]}
    if sampling.threshold is not None:
        least = math.log(sampling.threshold) if sampling.threshold else -math.inf
        wanted = 0 if logprobs[0] > least else 1
        if wanted not in left_out:
            left_out.add(1 - wanted)
    drawn = draw(dict(enumerate(logprobs)), replace(sampling, top_p=1.0), uniform=share, excluded=left_out)
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
