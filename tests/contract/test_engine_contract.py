"""What may anybody rely on, whichever engine speaks?

Every test here runs over every engine. Engines that draw are compared with an oracle: a function that says what the
next token's log-probabilities are, from a table or from a plain forward of an untouched copy of the model.
"""

from __future__ import annotations

import contextlib
import functools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare
from transformers import PreTrainedModel

from flow_dpo.core.engine import Engine
from flow_dpo.core.errors import EngineError
from flow_dpo.core.types import Adapter, Completion, Request, Sampling, TokenIds
from flow_dpo.engines.local.engine import LocalEngine
from flow_dpo.engines.plain import PlainEngine
from flow_dpo.engines.sampling_rule import uniform
from flow_dpo.engines.scripted import ScriptedEngine, TabularEngine
from flow_dpo.engines.settings import LocalSettings
from tests.support.tiny_models import KINDS, tiny_model
from tests.support.vllm_servers import real_vllm
from tests.support.vllm_stand_in import StandIn, engine_of

END = 2
VOCAB = 12
CONTEXT = 96
PROMPT = (1, 5, 6)
SAMPLINGS = [
    Sampling(),
    Sampling(greedy=True),
    Sampling(temperature=0.7, top_p=0.8),
    Sampling(temperature=1.3),
    Sampling(temperature=2.0, top_p=0.9),
    Sampling(temperature=1.5, top_p=0.5, greedy=True),
]


@dataclass(frozen=True)
class Case:
    """An engine, and what the next token's log-probabilities are by its own light (None for a script)."""

    build: Callable[[], Engine]
    oracle: Callable[[TokenIds], list[float]] | None
    looseness: float = 1.0
    """How many times the rounding of PyTorch's own kernels its log-probabilities may be off."""
    our_rule: bool = True
    """A seed gives the token that `sampling_rule` picks; not of vLLM, which has a generator of its own."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _table(_role: str, prefix: TokenIds) -> dict[int, float]:
    return _row(prefix[-3:])


@functools.cache
def _row(ids: TokenIds) -> dict[int, float]:
    rng = random.Random(str(ids))
    return {token: rng.random() ** 3 for token in range(1, VOCAB)}


def _script(request: Request, seed: int, excluded: TokenIds) -> TokenIds | int:
    rng = random.Random(seed)
    if request.choices:
        return rng.choice([i for i, token in enumerate(request.choices) if token not in excluded])
    ids = [rng.choice([token for token in range(3, VOCAB) if token not in excluded])]
    while rng.random() < 0.9:
        ids.append(rng.randrange(3, VOCAB))
    return (*ids, END)


def _case(name: str) -> Case:
    if name == "scripted":
        return Case(lambda: ScriptedEngine(_script, end_ids={END}, context_tokens=CONTEXT), None)
    if name == "tabular":
        probs = lambda prefix: [_table("answer", prefix).get(token, 0.0) for token in range(VOCAB)]  # noqa: E731
        return Case(
            lambda: TabularEngine(_table, end_ids={END}, context_tokens=CONTEXT),
            lambda prefix: [math.log(p / sum(probs(prefix))) if p else -math.inf for p in probs(prefix)],
        )

    plain, kind = name.startswith("plain_"), name.removeprefix("plain_")

    def build() -> Engine:
        model = tiny_model(kind, vocab_size=VOCAB)
        if plain:
            return PlainEngine(model, end_ids={END}, context_tokens=CONTEXT)
        return LocalEngine(
            model,
            role_model=lambda _: contextlib.nullcontext(model),
            end_ids={END},
            context_tokens=CONTEXT,
            settings=LocalSettings(max_batch_size=64),
        )

    return Case(build, _oracle_of(tiny_model(kind, vocab_size=VOCAB)))


def _oracle_of(plain: PreTrainedModel) -> Callable[[TokenIds], list[float]]:
    @functools.cache
    def oracle(prefix: TokenIds) -> list[float]:
        with torch.no_grad():
            return plain(input_ids=torch.tensor([prefix])).logits[0, -1].double().log_softmax(-1).tolist()

    return oracle


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[Case]:
    """The engine for a vLLM server, over a stand-in that speaks from the table."""

    @functools.cache
    def logprobs(prefix: TokenIds) -> list[float]:
        oracle = _case("tabular").oracle
        assert oracle is not None
        return oracle(prefix)

    with StandIn(lambda _, prefix: logprobs(prefix), num_words=VOCAB) as server:
        facts = {"root": folder, "num_words": VOCAB, "end_ids": {END}, "context_tokens": CONTEXT, "top_logprobs": 4}
        yield Case(lambda: engine_of(server.url, server.base, **facts), logprobs)


@contextlib.contextmanager
def _opened(name: str, factory: pytest.TempPathFactory) -> Iterator[Case]:
    if name == "vllm_server":
        with _served(factory.mktemp("adapters")) as case:
            yield case
    elif name.startswith("real_vllm"):
        with real_vllm(name, factory.mktemp("vllm"), context_tokens=CONTEXT) as (build, model):
            yield Case(build, _oracle_of(model), looseness=20, our_rule=False)
    else:
        yield _case(name)


PLAIN = [f"plain_{kind}" for kind in KINDS]
REAL = [pytest.param(name, marks=pytest.mark.vllm) for name in ("real_vllm", "real_vllm_server")]


@pytest.fixture(scope="module", params=["scripted", "tabular", "vllm_server", *KINDS, *PLAIN, *REAL])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with _opened(request.param, tmp_path_factory) as case:
        yield case


@pytest.fixture(scope="module", params=["tabular", "vllm_server", *KINDS, *PLAIN, *REAL])
def drawing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with _opened(request.param, tmp_path_factory) as case:
        yield case


def _requests(count: int = 20) -> list[Request]:
    rng = random.Random(1)
    requests: list[Request] = []
    for index in range(count):
        prompt = (*PROMPT, *(rng.randrange(3, VOCAB) for _ in range(rng.randrange(0, 25))))
        if index % 4 == 3:
            requests.append(Request(role="stop", prompt_ids=prompt, choices=(7, 4, 9)[: 2 + index % 2]))
        else:
            requests.append(Request(role="answer", prompt_ids=prompt, max_tokens=rng.randrange(1, 20)))
    return requests


def _reference(logprobs: Sequence[float], sampling: Sampling) -> list[float]:
    """Log-probabilities after temperature and top-p, written another way than the engines do."""
    weights = [math.exp(value / sampling.temperature) for value in logprobs]
    total = sum(weights)
    probs = [weight / total for weight in weights]
    kept: set[int] = set()
    while sum(probs[token] for token in kept) < sampling.top_p - 1e-9 and len(kept) < len(probs):
        kept.add(max((t for t in range(len(probs)) if t not in kept), key=lambda t: probs[t]))
    mass = sum(probs[token] for token in kept)
    return [math.log(p / mass) if token in kept and p > 0 else -math.inf for token, p in enumerate(probs)]


def test_completions_come_in_order_and_keep_their_shape(case: Case) -> None:
    requests = _requests()
    for request, said in zip(requests, case.build().sample(requests, Sampling(), seeds=range(20)), strict=True):
        assert len(said.token_ids) == len(said.logprobs) == len(said.sampled_logprobs) >= 1
        assert all(value <= 0 for value in said.logprobs + said.sampled_logprobs)
        assert END not in said.content_ids
        match said.finish_reason:
            case "choice":
                assert said.choice is not None
                assert said.token_ids == (request.choices[said.choice],)
                assert said.logprobs == (said.choice_logprobs[said.choice],)
                assert sum(map(math.exp, said.choice_logprobs)) == pytest.approx(1)
            case "stop":
                assert not request.choices
                assert said.token_ids[-1] == END
                assert len(said.token_ids) <= request.max_tokens
            case "length":
                assert not request.choices
                assert said.token_ids[-1] != END
                assert len(said.token_ids) == request.max_tokens


def test_a_seed_decides_and_other_seeds_decide_otherwise(case: Case) -> None:
    request = Request(role="answer", prompt_ids=PROMPT, max_tokens=10)
    said = case.build().sample([request] * 40, Sampling(temperature=2.0), seeds=[*range(20), *range(20)])
    first, second = [[one.token_ids for one in half] for half in (said[:20], said[20:])]
    assert first == second
    assert len(set(first)) > 10


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_splitting_a_batch_changes_nothing(case: Case, sampling: Sampling) -> None:
    requests, seeds = _requests(), list(range(100, 120))
    whole = case.build().sample(requests, sampling, seeds=seeds)
    engine = case.build()
    halves = [engine.sample(requests[at], sampling, seeds=seeds[at]) for at in (slice(7), slice(7, None))]
    alone = [case.build().sample([r], sampling, seeds=[s])[0] for r, s in zip(requests[:6], seeds, strict=False)]
    assert_same(whole, halves[0] + halves[1], case.looseness)
    assert_same(whole[:6], alone, case.looseness)


@pytest.mark.parametrize("sampling", SAMPLINGS[:3], ids=str)
def test_what_is_known_already_changes_nothing(case: Case, sampling: Sampling) -> None:
    """Asked again, every prompt is in the cache of an engine that has one; after a refresh none may be."""
    engine, requests = case.build(), _requests()
    engine.refresh(_version(1))
    first, second = (engine.sample(requests, sampling, seeds=range(20)) for _ in range(2))
    engine.refresh(_version(2))
    third = engine.sample(requests, sampling, seeds=range(20))
    assert_same(first, second, case.looseness)
    assert_same(first, third, case.looseness)


def _version(version: int) -> dict[str, Adapter]:
    return {role: Adapter(role=role, version=version) for role in ("answer", "stop")}


def assert_same(some: Sequence[Completion], others: Sequence[Completion], looseness: float = 1.0) -> None:
    """The same tokens, and log-probabilities up to rounding."""
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert (one.token_ids, one.finish_reason, one.choice) == (other.token_ids, other.finish_reason, other.choice)
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5 * looseness)
        assert one.sampled_logprobs == pytest.approx(other.sampled_logprobs, abs=5e-5 * looseness)
        assert one.choice_logprobs == pytest.approx(other.choice_logprobs, abs=2e-5 * looseness)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_logprobs_are_the_models_own_and_those_drawn_from(drawing: Case, sampling: Sampling) -> None:
    assert drawing.oracle is not None
    requests = [request for request in _requests(12) if not request.choices]
    said = drawing.build().sample(requests, sampling, seeds=range(len(requests)))
    for request, one in zip(requests, said, strict=True):
        for at, token in enumerate(one.token_ids):
            raw = drawing.oracle(request.prompt_ids + one.token_ids[:at])
            assert one.logprobs[at] == pytest.approx(raw[token], abs=1e-5 * drawing.looseness)
            assert one.sampled_logprobs[at] == pytest.approx(
                _reference(raw, sampling)[token], abs=3e-5 * drawing.looseness
            )


def test_tokens_are_drawn_by_the_stated_rule(drawing: Case) -> None:
    """The first id at which the summed probability exceeds the seed's number for that position."""
    assert drawing.oracle is not None
    if not drawing.our_rule:
        pytest.skip("draws with a generator of its own")
    [said] = drawing.build().sample([Request(role="answer", prompt_ids=PROMPT, max_tokens=12)], Sampling(), seeds=[3])
    for at, token in enumerate(said.token_ids):
        probs = [math.exp(value) for value in drawing.oracle(PROMPT + said.token_ids[:at])]
        assert sum(probs[:token]) - 1e-6 <= uniform(3, at) <= sum(probs[: token + 1]) + 1e-6


@pytest.mark.parametrize("sampling", [*SAMPLINGS[:2], Sampling(temperature=2.0, top_p=0.95)], ids=str)
def test_an_excluded_token_never_comes_first_and_may_come_later(case: Case, sampling: Sampling) -> None:
    engine = case.build()
    request = Request(role="answer", prompt_ids=PROMPT, max_tokens=6)
    [free] = engine.sample([request], sampling, seeds=[5])
    excluded = (free.token_ids[0], END)
    for seed in range(30):
        engine.submit(request, sampling, seed=seed, excluded=excluded)
    later = set[int]()
    while answered := engine.poll():
        for _, said in answered:
            assert said.token_ids[0] not in excluded
            assert said.finish_reason == "length" or len(said.token_ids) > 1
            later.update(said.token_ids[1:])
    assert sampling.greedy or excluded[0] in later


def test_the_first_token_follows_the_truncated_distribution_without_what_is_excluded(drawing: Case) -> None:
    """A chi-square test a seed; a right engine fails it once in 10,000 runs, and the seeds are fixed."""
    assert drawing.oracle is not None
    sampling, draws = Sampling(temperature=1.3, top_p=0.9), 1200
    truncated = _reference(drawing.oracle(PROMPT), sampling)
    excluded = (max(range(VOCAB), key=lambda token: truncated[token]),)
    left = {t: math.exp(v) for t, v in enumerate(truncated) if v > -math.inf and t not in excluded}
    engine = drawing.build()
    request = Request(role="answer", prompt_ids=PROMPT, max_tokens=1)
    tickets = {engine.submit(request, sampling, seed=seed, excluded=excluded) for seed in range(draws)}
    counts = dict.fromkeys(left, 0)
    while tickets:
        for ticket, said in engine.poll():
            tickets.remove(ticket)
            counts[said.token_ids[0]] += 1
            assert said.sampled_logprobs[0] == pytest.approx(truncated[said.token_ids[0]], abs=3e-5 * drawing.looseness)
    expected = [draws * p / sum(left.values()) for p in left.values()]
    assert chisquare([counts[token] for token in left], expected).pvalue > 1e-4


def test_excluding_all_that_is_left_is_an_error_and_harms_nobody_else(drawing: Case) -> None:
    """A nucleus alone is not all: the most probable other token is drawn."""
    assert drawing.oracle is not None
    raw, engine = drawing.oracle(PROMPT), drawing.build()
    first, second, *_ = likeliest = sorted(range(len(raw)), key=lambda token: -raw[token])
    request, sure = Request(role="answer", prompt_ids=PROMPT, max_tokens=3), Sampling(top_p=1e-6)
    [only] = engine.sample([request], sure, seeds=[0])
    assert only.sampled_logprobs == (0.0,) * len(only.token_ids)
    engine.submit(request, sure, seed=0, excluded=(first,))
    assert engine.poll()[0][1].token_ids[0] == second
    expected = engine.sample([request] * 2, Sampling(), seeds=[1, 2])
    asked = ((Sampling(), 1, ()), (sure, 0, tuple(likeliest)), (Sampling(), 2, ()))
    tickets = [engine.submit(request, sampling, seed=seed, excluded=left) for sampling, seed, left in asked]
    answered, errors = dict[int, Completion](), list[EngineError]()
    for _ in range(20):
        try:
            answered.update(engine.poll())
        except EngineError as error:
            errors.append(error)
    assert ["answer" in str(error) for error in errors] == [True]
    assert_same([answered[tickets[0]], answered[tickets[2]]], expected, drawing.looseness)


def test_choices_are_renormalised_and_drawn_with_their_temperature(drawing: Case) -> None:
    assert drawing.oracle is not None
    choices, temperature, draws = (9, 4), 2.0, 500
    raw = drawing.oracle(PROMPT)
    expected = _reference([raw[token] for token in choices], Sampling())
    tempered = _reference(expected, Sampling(temperature=temperature))
    request = Request(role="stop", prompt_ids=PROMPT, choices=choices)
    engine = drawing.build()
    said = engine.sample([request] * draws, Sampling(temperature=temperature, top_p=0.01), seeds=range(draws))
    for one in said:
        assert one.choice is not None
        assert one.choice_logprobs == pytest.approx(expected, abs=1e-5 * drawing.looseness)
        assert one.sampled_logprobs == pytest.approx((tempered[one.choice],), abs=1e-5 * drawing.looseness)
    counts = [sum(one.choice == index for one in said) for index in range(2)]
    assert chisquare(counts, [draws * math.exp(value) for value in tempered]).pvalue > 1e-4
    [greedy] = engine.sample([request], Sampling(greedy=True), seeds=[0])
    assert greedy.choice == max(range(2), key=lambda index: expected[index])
    engine.submit(request, Sampling(greedy=True), seed=0, excluded=greedy.token_ids)
    [(_, other)] = engine.poll()
    assert other.choice == 1 - greedy.choice


def test_a_completion_names_the_version_that_spoke(case: Case) -> None:
    engine = case.build()
    requests = [
        Request(role="answer", prompt_ids=PROMPT, max_tokens=4),
        Request(role="stop", prompt_ids=PROMPT, choices=(7, 4)),
    ]
    assert [one.policy_version for one in engine.sample(requests, Sampling(), seeds=[0, 1])] == [0, 0]
    engine.refresh({"answer": Adapter(role="answer", version=3), "stop": Adapter(role="stop", version=5)})
    assert [one.policy_version for one in engine.sample(requests, Sampling(), seeds=[0, 1])] == [3, 5]
    engine.submit(requests[0], Sampling(), seed=0)
    with pytest.raises(EngineError, match="under way"):
        engine.refresh({})
    assert len(engine.poll()) == 1
    assert engine.poll() == []
    engine.close()


@pytest.mark.parametrize(
    ("request_", "sampling", "message"),
    [
        (Request(role="answer", prompt_ids=(1,) * 90, max_tokens=7), Sampling(), "96 tokens, found 90 . 7 tokens"),
        (Request(role="stop", prompt_ids=(1,) * 96, choices=(4, 5)), Sampling(), "96 tokens, found 96 . 1 tokens"),
        (Request(role="answer", prompt_ids=(), max_tokens=7), Sampling(), "at least one token"),
        (Request(role="answer", prompt_ids=PROMPT, max_tokens=0), Sampling(), "max_tokens"),
        (Request(role="stop", prompt_ids=PROMPT, choices=(4, 4)), Sampling(), "distinct"),
        (Request(role="answer", prompt_ids=PROMPT), Sampling(temperature=0.0), "greedy=True"),
        (Request(role="answer", prompt_ids=PROMPT), Sampling(top_p=0.0), "top_p"),
    ],
)
def test_what_cannot_be_answered_is_refused_at_once(
    case: Case, request_: Request, sampling: Sampling, message: str
) -> None:
    engine = case.build()
    with pytest.raises(EngineError, match=message):
        engine.submit(request_, sampling, seed=0)
    assert engine.poll() == []
