"""Does a completion end with the token that completes a stop string, and with the same one on every engine?

Token t is written as the letter t + "a", so that texts and tokens can be told from one another by eye.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest

from flow_dpo.core.engine import Engine
from flow_dpo.core.rollouts import RolloutRunner, RolloutSteps, Sampled, SampleRequest, sample
from flow_dpo.core.types import Completion, Message, Piece, Request, Sampling, TokenIds, Turn
from flow_dpo.engines.local.engine import LocalEngine
from flow_dpo.engines.plain import PlainEngine
from tests.contract.test_engine_contract import (
    CONTEXT,
    END,
    PROMPT,
    VOCAB,
    Case,
    _one_thread,
    _requests,
    assert_same,
    case,
    drawing,
)
from tests.support.tiny_models import tiny_model

__all__ = ["_one_thread", "case", "drawing"]  # fixtures of this module too

STRINGS = ("ji", "kd", "fgh", "l")
AFTER_J = tuple(f"j{char}" for char in "bcdefghijl")


def letters(ids: Sequence[int]) -> str:
    return "".join(chr(ord("a") + token) for token in ids if token != END)


class Alphabet:
    """A renderer: the prompt is the turn's first message, as it is, and what was written."""

    def render(self, turn: Turn) -> Request:
        pieces = (*turn.messages[0].content, *turn.continuation)
        prompt = tuple(token for piece in pieces for token in self._ids(piece))
        return Request(role=turn.role, prompt_ids=prompt, max_tokens=turn.max_tokens)

    def to_text(self, pieces: Sequence[Piece]) -> str:
        return "".join(letters(self._ids(piece)) for piece in pieces)

    def _ids(self, piece: Piece) -> TokenIds:
        return tuple(ord(char) - ord("a") for char in piece) if isinstance(piece, str) else piece


def turn_of(request: Request, continuation: tuple[Piece, ...] = ()) -> Turn:
    message = Message(role="user", content=(request.prompt_ids,))
    return Turn(role=request.role, messages=(message,), max_tokens=request.max_tokens, continuation=continuation)


def sampled(engine: Engine, requests: Sequence[SampleRequest]) -> list[Sampled]:
    """The answers of the runner, all requests under way at once."""
    found: list[Sampled | None] = [None] * len(requests)

    def rollout(at: int, request: SampleRequest) -> RolloutSteps:
        found[at] = yield from sample(request)

    RolloutRunner(engine, Alphabet()).run([rollout(at, request) for at, request in enumerate(requests)])
    return [answer for answer in found if answer is not None]


def ends_at(ids: TokenIds, strings: Sequence[str], before: str = "") -> int | None:
    """The number of tokens up to the first that completes a string, found letter by letter."""
    for count in range(1, len(ids) + 1):
        if ids[count - 1] != END and (before + letters(ids[:count])).endswith(tuple(strings)):
            return count
    return None


def test_a_completion_is_the_longer_one_cut_behind_its_first_stop_string(case: Case) -> None:
    requests = [request for request in _requests(24) if not request.choices]
    sampling = Sampling(temperature=0.7, top_p=0.8)
    stopping = Sampling(temperature=0.7, top_p=0.8, stop_strings=STRINGS)
    free = case.build().sample(requests, sampling, seeds=range(len(requests)))
    asked = [
        SampleRequest(turn=turn_of(request), sampling=stopping, seed=seed) for seed, request in enumerate(requests)
    ]
    cut = [one.completion for one in sampled(case.build(), asked)]
    ends = [ends_at(one.token_ids, STRINGS) for one in free]
    assert any(end is not None for end in ends)
    assert None in ends
    for one, whole, end in zip(cut, free, ends, strict=True):
        count = len(whole.token_ids) if end is None else end
        assert letters(one.token_ids).startswith(letters(one.content_ids))
        if end is not None:
            spelled = next(string for string in STRINGS if letters(one.token_ids).endswith(string))
            assert letters(one.content_ids) == letters(one.token_ids).removesuffix(spelled)
        assert one.token_ids == whole.token_ids[:count]
        assert one.finish_reason == ("stop_string" if end is not None else whole.finish_reason)
        assert one.ended == (one.finish_reason != "length")
        assert one.logprobs == pytest.approx(whole.logprobs[:count], abs=2e-5 * case.looseness)
        assert one.sampled_logprobs == pytest.approx(whole.sampled_logprobs[:count], abs=5e-5 * case.looseness)


def test_an_alternative_is_cut_by_what_it_goes_on_from(case: Case) -> None:
    """A string may begin in the given first tokens, and in what the assistant has written before this turn."""
    whole = Request(role="answer", prompt_ids=PROMPT, max_tokens=8)
    hits: list[int | None] = []
    for prefix, continuation in (((9,), ()), ((), ((10, 9),)), ((), ("kj",))):
        before = Alphabet().to_text((*continuation, prefix))
        asked = [
            SampleRequest(turn=turn_of(whole, continuation), sampling=sampling, seed=seed, prefix_ids=prefix)
            for seed in range(12)
            for sampling in (Sampling(), Sampling(stop_strings=AFTER_J))
        ]
        found = [one.completion for one in sampled(case.build(), asked)]
        ends = [ends_at(one.token_ids, AFTER_J, before) for one in found[::2]]
        hits += ends
        for one, cut, end in zip(found[::2], found[1::2], ends, strict=True):
            assert cut.token_ids == one.token_ids[: len(one.token_ids) if end is None else end]
            assert cut.finish_reason == ("stop_string" if end is not None else one.finish_reason)
            if end is not None:
                # Of a string that began before, all of it is known to whoever joins the two.
                assert cut.num_stop_tokens == (2 if end > 1 or prefix else 1)
                assert letters(cut.content_ids) == letters(one.token_ids[: max(0, end - 2)])
    assert 1 in hits, "some string began before what was sampled"


@pytest.mark.parametrize("kind", ["local", "plain"])
def test_an_engine_that_can_decode_samples_no_further(kind: str) -> None:
    model = tiny_model("qwen2", vocab_size=VOCAB)
    requests = [Request(role="answer", prompt_ids=(*PROMPT, 3 + at % 9), max_tokens=30) for at in range(12)]

    def run(stopping: bool) -> tuple[list[Completion], float]:
        facts = {"end_ids": {END}, "context_tokens": CONTEXT, "to_text": letters if stopping else None}
        if kind == "local":
            engine: Engine = LocalEngine(model, role_model=lambda _: contextlib.nullcontext(model), **facts)
        else:
            engine = PlainEngine(model, **facts)
        asked = [
            SampleRequest(turn=turn_of(request), sampling=Sampling(stop_strings=STRINGS), seed=seed)
            for seed, request in enumerate(requests)
        ]
        return [one.completion for one in sampled(engine, asked)], engine.take_stats()["sampled_tokens"]

    (early, fewer), (late, more) = run(True), run(False)
    assert_same(early, late)
    assert fewer == sum(len(one.token_ids) for one in early) < more
