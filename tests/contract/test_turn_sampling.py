"""May every request of a batch carry its own sampling, and does a threshold take the choice that it should?

Over every engine. Where a choice is drawn, the oracle of `test_engine_contract` says how probable it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from flow_dpo.core.engine import Engine
from flow_dpo.core.errors import EngineError
from flow_dpo.core.types import Completion, Request, Sampling, TokenIds
from tests.contract.test_engine_contract import (
    PROMPT,
    Case,
    _one_thread,
    _reference,
    _requests,
    assert_same,
    case,
    drawing,
)

__all__ = ["_one_thread", "case", "drawing"]  # fixtures of this module too

CHOICES = (9, 4)
PROMPTS = [PROMPT, (1, 7), (1, 3, 3, 8, 11, 4, 5), (1, 10, 5)]


def submit_all(
    engine: Engine, asked: Sequence[tuple[Request, Sampling, int]], excluded: TokenIds = ()
) -> list[Completion]:
    """Everything in one batch; completions in the order of the requests."""
    tickets = [engine.submit(request, sampling, seed=seed, excluded=excluded) for request, sampling, seed in asked]
    done: dict[int, Completion] = {}
    while len(done) < len(tickets):
        done.update(engine.poll())
    return [done[ticket] for ticket in tickets]


def p_first(case: Case, prompt: TokenIds) -> float:
    assert case.oracle is not None
    raw = case.oracle(prompt)
    return 1 / (1 + math.exp(raw[CHOICES[1]] - raw[CHOICES[0]]))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("greedy", [False, True])
def test_the_first_choice_is_taken_where_it_exceeds_the_threshold(
    drawing: Case, greedy: bool, temperature: float
) -> None:
    """By its probability at temperature 1, whatever the seed; the log-probabilities are those without a threshold."""
    assert drawing.oracle is not None
    engine = drawing.build()
    asked: list[tuple[Request, Sampling, int]] = []
    expected: list[int] = []
    for prompt in PROMPTS:
        request, p = Request(role="stop", prompt_ids=prompt, choices=CHOICES), p_first(drawing, prompt)
        step = 1e-3 * min(p, 1 - p) * drawing.looseness
        for threshold in (0.0, 0.5 * p, p - step, p + step, p + 0.5 * (1 - p), 1.0):
            sampling = Sampling(temperature=temperature, greedy=greedy, threshold=threshold)
            asked += [(request, sampling, seed) for seed in range(3)]
            expected += [0 if p > threshold else 1] * 3
    found = submit_all(engine, asked)
    assert [one.choice for one in found] == expected
    assert set(expected) == {0, 1}
    free = submit_all(engine, [(request, Sampling(), seed) for request, _, seed in asked])
    for one, other in zip(found, free, strict=True):
        assert one.choice_logprobs == pytest.approx(other.choice_logprobs, abs=2e-5 * drawing.looseness)
        assert one.finish_reason == "choice"
        assert one.choice is not None
        assert one.token_ids == (CHOICES[one.choice],)
        assert one.logprobs == (one.choice_logprobs[one.choice],)
        tempered = _reference(one.choice_logprobs, Sampling(temperature=temperature))
        assert one.sampled_logprobs == pytest.approx((tempered[one.choice],), abs=1e-6)


def test_what_is_excluded_is_not_taken_by_a_threshold_either(drawing: Case) -> None:
    engine, request = drawing.build(), Request(role="stop", prompt_ids=PROMPT, choices=CHOICES)
    for threshold, wanted in ((0.0, 0), (1.0, 1)):
        sampling = Sampling(threshold=threshold)
        for excluded in CHOICES:
            [found] = submit_all(engine, [(request, sampling, 0)], (excluded,))
            assert found.choice == (1 - wanted if excluded == CHOICES[wanted] else wanted)
        engine.submit(request, sampling, seed=0, excluded=CHOICES)
        with pytest.raises(EngineError, match="stop"):
            engine.poll()


MATES = [
    Sampling(),
    Sampling(greedy=True),
    Sampling(temperature=0.7, top_p=0.8),
    Sampling(temperature=1.3, greedy=True),
]


def test_batch_mates_of_other_samplings_change_nothing(case: Case) -> None:
    """Greedy ones beside drawn ones and choices by threshold beside drawn ones: each as if it were alone."""
    asked: list[tuple[Request, Sampling, int]] = []
    for index, request in enumerate(_requests(24)):
        sampling = MATES[index % len(MATES)]
        if len(request.choices) == 2:
            sampling = Sampling(threshold=(0.2, 0.5, 0.8)[index % 3])
        asked.append((request, sampling, 50 + index))
    together = submit_all(case.build(), asked)
    backwards = submit_all(case.build(), asked[::-1])[::-1]
    alone = [case.build().sample([request], sampling, seeds=[seed])[0] for request, sampling, seed in asked]
    assert_same(together, alone, case.looseness)
    assert_same(together, backwards, case.looseness)


def test_a_greedy_mate_takes_the_likeliest_whatever_its_seed(drawing: Case) -> None:
    assert drawing.oracle is not None
    request = Request(role="answer", prompt_ids=PROMPT, max_tokens=6)
    asked = [(request, Sampling(temperature=2.0, greedy=seed % 2 == 0), seed) for seed in range(20)]
    found = submit_all(drawing.build(), asked)
    greedy, drawn = ({one.token_ids for one in found[at::2]} for at in (0, 1))
    assert len(greedy) == 1
    assert len(drawn) > 5
    [ids] = greedy
    for at, token in enumerate(ids):
        raw = drawing.oracle(PROMPT + ids[:at])
        assert raw[token] == pytest.approx(max(raw), abs=1e-5 * drawing.looseness)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, math.nan])
def test_a_threshold_that_is_no_probability_is_refused(case: Case, threshold: float) -> None:
    engine, request = case.build(), Request(role="stop", prompt_ids=PROMPT, choices=CHOICES)
    with pytest.raises(EngineError, match="threshold from 0 to 1 with exactly two choices"):
        engine.submit(request, Sampling(threshold=threshold), seed=0)
    assert engine.poll() == []


@pytest.mark.parametrize("choices", [(), (9,), (9, 4, 7)])
def test_a_threshold_needs_two_choices(case: Case, choices: TokenIds) -> None:
    engine = case.build()
    with pytest.raises(EngineError, match=f"threshold from 0 to 1 .*{len(choices)} choices"):
        engine.submit(Request(role="stop", prompt_ids=PROMPT, choices=choices), Sampling(threshold=0.5), seed=0)
    assert engine.poll() == []
