"""Which pairs do the learner's tests learn from?

Those of small random trees, in token ids: a trunk of chunks with an alternative beside each, Stop's growing candidates
between a beginning and an end of their own, and few words, so that things also coincide that need not:

    pairs_of_tree(random.Random(3), "p1", num_nodes=2)    Answer and Stop pairs at two nodes of one trunk
"""

from __future__ import annotations

import random

from hypothesis import strategies as st

from flow_dpo.core.types import Completion, Pair, Request, TokenIds

YES, NO = 3, 4
ROLES = ("answer", "stop")


def completion(ids: TokenIds, *, choice: int | None = None, version: int = -1) -> Completion:
    """What no engine said: version -1 is never the learner's, so that no log-probabilities are compared."""
    zeros = (0.0,) * len(ids)
    return Completion(
        token_ids=ids,
        logprobs=zeros,
        sampled_logprobs=zeros,
        finish_reason="length" if choice is None else "choice",
        policy_version=version,
        choice=choice,
    )


def answer_pair(prompt: TokenIds, chosen: TokenIds, rejected: TokenIds, problem: str = "p", weight: float = 1) -> Pair:
    request = Request(role="answer", prompt_ids=prompt, max_tokens=max(len(chosen), len(rejected)))
    return Pair(
        request=request,
        chosen=completion(chosen),
        rejected=completion(rejected),
        margin=1.0,
        problem_id=problem,
        weight=weight,
    )


def stop_pair(prompt: TokenIds, *, yes: bool, problem: str = "p") -> Pair:
    words = (completion((YES,), choice=0), completion((NO,), choice=1))
    chosen, rejected = words if yes else words[::-1]
    request = Request(role="stop", prompt_ids=prompt, choices=(YES, NO))
    return Pair(request=request, chosen=chosen, rejected=rejected, margin=1.0, problem_id=problem)


def pairs_of_tree(
    rng: random.Random,
    problem: str,
    *,
    num_nodes: int = 4,
    prompt_tokens: int = 8,
    chunk_tokens: int = 5,
    vocab: int = 128,
    shared: TokenIds = (5, 6, 7),
) -> list[Pair]:
    """Both roles' pairs at every node of one trunk; `shared` begins the prompts of all trees."""

    def draw(length: int) -> TokenIds:
        return tuple(rng.randrange(5, vocab) for _ in range(length))

    question, pairs = draw(prompt_tokens), []
    trunk: TokenIds = ()
    for _ in range(num_nodes):
        chunk = draw(rng.randint(1, chunk_tokens))
        other = chunk
        while other == chunk:
            # A deviation keeps what comes before it.
            kept = rng.randint(0, len(chunk) - 1)
            other = chunk[:kept] + draw(rng.randint(1, chunk_tokens))
        better, worse = (chunk, other) if rng.random() < 0.5 else (other, chunk)
        weight = rng.choice((0.5, 1.0))
        pairs.append(answer_pair(shared + question + trunk, better, worse, problem, weight))
        trunk += chunk
        pairs.append(stop_pair((*shared, 8, *question, *trunk, 9, 9), yes=rng.random() < 0.5, problem=problem))
    return pairs


@st.composite
def pair_lists(draw: st.DrawFn, *, max_trees: int = 3) -> list[Pair]:
    """Some of the pairs of a few trees, in any order."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    vocab = draw(st.sampled_from((8, 128)))
    pairs: list[Pair] = []
    for tree in range(draw(st.integers(1, max_trees))):
        made = pairs_of_tree(
            rng,
            f"p{tree}",
            num_nodes=draw(st.integers(1, 5)),
            prompt_tokens=draw(st.integers(1, 14)),
            chunk_tokens=draw(st.integers(1, 12)),
            vocab=vocab,
        )
        pairs += rng.sample(made, rng.randint(1, len(made)))
    rng.shuffle(pairs)
    return pairs
