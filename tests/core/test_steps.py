"""Where do steps end? On texts whose ends are plain to see, with tokens that do not respect them."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest

from flow_dpo.core.steps import join, line_end, split, step_ends
from flow_dpo.core.types import Completion, TokenIds
from tests.support.tree_builders import completion


def decode_with(pieces: list[str]):  # type: ignore[no-untyped-def]
    return lambda ids: "".join(pieces[i] for i in ids)


def steps_of(pieces: list[str]) -> list[str]:
    ids = tuple(range(len(pieces)))
    cuts = [0, *step_ends(ids, decode_with(pieces)), len(ids)]
    return ["".join(pieces[a:b]) for a, b in pairwise(cuts)]


@pytest.mark.parametrize(
    ("pieces", "steps"),
    [
        (["She buys", " 7", ".", " So", " 19", ".", " Answer", ": 19"], ["She buys 7.", " So 19.", " Answer: 19"]),
        (["a = 1", "\n", "\n", "b = 2", "\n", "c"], ["a = 1\n\n", "b = 2\n", "c"]),
        (["a is ", "3", ".", "5", " m", ". ", "Yes", "!"], ["a is 3.5 m. ", "Yes!"]),
        # One token holds the end of one step and the beginning of the next: it goes with the first.
        (["a", ".\nSo", " b", "\n", "c"], ["a.\nSo", " b\n", "c"]),
        (["1", ".", " Add", ".", "\n", "2", ".", " Take"], ["1. Add.\n", "2. Take"]),
        (['He said "no."', " Then", " more"], ['He said "no."', " Then more"]),
        (["\n", "\n", "a", "\n"], ["\n\na\n"]),
        (["no end"], ["no end"]),
        (["a", ".", " ", "\n"], ["a. \n"]),
    ],
)
def test_ends_of_sentences_and_lines(pieces: list[str], steps: list[str]) -> None:
    assert steps_of(pieces) == steps


def test_no_step_is_blank_however_the_text_is_cut_into_tokens() -> None:
    rng = random.Random(0)
    for _ in range(300):
        pieces = ["".join(rng.choice("ab1. \n!") for _ in range(rng.randint(1, 3))) for _ in range(rng.randint(1, 12))]
        steps = steps_of(pieces)
        assert "".join(steps) == "".join(pieces)
        assert len(steps) == 1 or all(step.strip() for step in steps), pieces


def test_a_line_ends_where_it_ends_whatever_follows() -> None:
    pieces = ["\n", "add", " 3", "\n", "take", " 2\n"]
    decode = decode_with(pieces)
    ids: TokenIds = (0, 1, 2, 3, 4, 5)
    assert [line_end(ids[:n], decode) for n in range(1, 7)] == [None, None, None, 4, 4, 4]
    assert line_end((4, 5), decode) == 2


def test_pieces_are_the_completion() -> None:
    whole = Completion(
        token_ids=(5, 6, 7, 2), logprobs=(-0.1, -0.2, -0.3, -0.4), sampled_logprobs=(-1.0, -2.0, -3.0, -4.0),
        finish_reason="stop", policy_version=3,
    )  # fmt: skip
    first, second = split(whole, (2,))
    assert (first.token_ids, first.logprobs, first.sampled_logprobs) == ((5, 6), (-0.1, -0.2), (-1.0, -2.0))
    assert (first.finish_reason, second.finish_reason, first.content_ids) == ("length", "stop", (5, 6))
    assert join(first, second) == whole
    assert math.fsum(second.logprobs) == pytest.approx(-0.7)
    assert split(completion(5, 6), ()) == [completion(5, 6)]
