"""Is what the local engine keeps, shares and throws away invisible in what it says?

On a tiny random model of each family in float32, against plain forwards of an untouched copy; and where the structure
of the prompts says how many tokens must go through the model, that many do.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    PreTrainedModel,
)

from flow_dpo.core.errors import ConfigError, EngineError, ModelError
from flow_dpo.core.types import Adapter, Completion, Request, Sampling, TokenIds
from flow_dpo.engines.local.engine import LocalEngine
from flow_dpo.engines.plain import PlainEngine
from flow_dpo.engines.settings import LocalSettings
from tests.support.tiny_models import KINDS, tiny_model

SAMPLINGS = [Sampling(), Sampling(greedy=True), Sampling(temperature=0.7, top_p=0.9)]
VOCAB = 128


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(model: PreTrainedModel, end_ids: Sequence[int] = (2,), **settings: Any) -> LocalEngine:
    return LocalEngine(
        model,
        role_model=lambda _: contextlib.nullcontext(model),
        end_ids=end_ids,
        context_tokens=400,
        settings=LocalSettings(**settings),
    )


def ids(length: int, seed: int) -> TokenIds:
    rng = random.Random(seed)
    return tuple(rng.randrange(3, VOCAB) for _ in range(length))


def answer(*parts: TokenIds, max_tokens: int = 8) -> Request:
    return Request(role="answer", prompt_ids=sum(parts, ()), max_tokens=max_tokens)


def stop(*parts: TokenIds) -> Request:
    return Request(role="stop", prompt_ids=sum(parts, ()), choices=(7, 9))


def requests_of_a_flow() -> list[Request]:
    """Ragged prompts that share worked examples, equal ones, and choices over some of them."""
    examples = ids(25, 0)
    asked = [answer(examples, ids(1 + 3 * i % 23, i), max_tokens=1 + 7 * i % 19) for i in range(16)]
    return [*asked, *asked[:4], *(stop(one.prompt_ids, ids(4, 99)) for one in asked[:6])]


def said(completions: Sequence[Completion]) -> list[tuple[TokenIds, int | None]]:
    return [(one.token_ids, one.choice) for one in completions]


def plain_logprobs(model: PreTrainedModel, prompt: TokenIds, tokens: TokenIds) -> list[float]:
    """Teacher-forced: one forward over the whole text, no cache, no layout."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + tokens]), use_cache=False).logits[0].float()
    logprobs = logits.log_softmax(-1)
    return [logprobs[len(prompt) - 1 + at, token].item() for at, token in enumerate(tokens)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_batches_and_reuse_change_no_token(kind: str, sampling: Sampling) -> None:
    model = tiny_model(kind)
    requests = requests_of_a_flow()
    seeds = range(len(requests))
    together = build(model).sample(requests, sampling, seeds=seeds)
    plain = build(model, reuse=False).sample(requests, sampling, seeds=seeds)
    alone = build(model, reuse=False)
    one_by_one = [alone.sample([requests[i]], sampling, seeds=[i])[0] for i in seeds[::3]]
    few = build(model, max_batch_size=3, prefill_tokens=20)
    assert said(together) == said(plain) == said(few.sample(requests, sampling, seeds=seeds))
    assert said(together[::3]) == said(one_by_one)
    # Once more with everything known: only the last token of each prompt goes through the model.
    few.take_stats()
    assert said(few.sample(requests, sampling, seeds=seeds)) == said(together)
    assert few.take_stats()["prefilled_tokens"] == len(requests)


@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_equal_a_teacher_forced_forward(kind: str) -> None:
    """Prompts and completions several times as long as the sliding windows of Phi-3 and Gemma 3."""
    untouched, engine = tiny_model(kind), build(tiny_model(kind))
    requests = [answer(ids(20, 0), ids(3 * i, i), max_tokens=25) for i in range(8)]
    for request, one in zip(requests, engine.sample(requests, Sampling(), seeds=range(8)), strict=True):
        expected = plain_logprobs(untouched, request.prompt_ids, one.token_ids)
        assert one.logprobs == pytest.approx(expected, abs=1e-5)


def test_half_precision_is_as_near_to_its_own_plain_forward_as_rounding_allows() -> None:
    untouched, engine = tiny_model("qwen2").bfloat16(), build(tiny_model("qwen2").bfloat16())
    requests = [answer(ids(20, 0), ids(3 * i, i), max_tokens=12) for i in range(4)]
    for request, one in zip(requests, engine.sample(requests, Sampling(), seeds=range(4)), strict=True):
        expected = plain_logprobs(untouched, request.prompt_ids, one.token_ids)
        assert one.logprobs == pytest.approx(expected, abs=0.15)


def test_a_chunk_continues_where_the_last_one_ended() -> None:
    """Chunk k+1 computes one prompt token: the last sampled one, which chunk k never fed."""
    engine, whole = build(tiny_model("llama"), end_ids=()), build(tiny_model("llama"), end_ids=(), reuse=False)
    prompt = ids(30, 1)
    tokens: TokenIds = ()
    for chunk in range(4):
        [one] = engine.sample([answer(prompt, tokens, max_tokens=6)], Sampling(greedy=True), seeds=[0])
        tokens += one.content_ids
        stats = engine.take_stats()
        assert stats["prefilled_tokens"] == (30 if chunk == 0 else 1)
        assert stats["reused_tokens"] == (0 if chunk == 0 else 30 + 6 * chunk - 1)
        assert stats["num_forwards"] == stats["sampled_tokens"] == 6
    [uncut] = whole.sample([answer(prompt, max_tokens=24)], Sampling(greedy=True), seeds=[0])
    assert tokens == uncut.token_ids


def test_an_alternative_reuses_the_trunk_up_to_its_diverging_token() -> None:
    engine = build(tiny_model("gemma3"), end_ids=())
    prompt = ids(30, 1)
    [trunk] = engine.sample([answer(prompt, max_tokens=10)], Sampling(), seeds=[0])
    engine.take_stats()
    for kept in (0, 3, 9):
        branch = answer(prompt, trunk.token_ids[:kept], max_tokens=10 - kept)
        engine.submit(branch, Sampling(), seed=kept, excluded=trunk.token_ids[kept : kept + 1])
        [(_, other)] = engine.poll()
        assert engine.take_stats()["prefilled_tokens"] == 1
        assert other.token_ids[0] != trunk.token_ids[kept]
        untouched = tiny_model("gemma3")
        assert other.logprobs == pytest.approx(plain_logprobs(untouched, branch.prompt_ids, other.token_ids), abs=1e-5)


def test_prompts_that_are_read_together_compute_what_they_share_once() -> None:
    examples, questions = ids(40, 0), [ids(5 + i, 10 + i) for i in range(6)]
    requests = [answer(examples, question) for question in questions]
    engine = build(tiny_model("qwen3"))
    engine.sample([*requests, *requests], Sampling(), seeds=range(12))
    # The examples once, every question once, and of its copies the last token alone.
    assert engine.take_stats()["prefilled_tokens"] == 40 + sum(map(len, questions)) + 6


def test_a_growing_candidate_costs_what_it_grew_by_and_one_forward() -> None:
    engine = build(tiny_model("phi3"))
    question, candidate, asked = ids(20, 1), ids(24, 2), ids(5, 3)
    for end, expected in ((8, 20 + 8 + 5), (16, 8 + 5), (24, 8 + 5), (24, 1)):
        engine.sample([stop(question, candidate[:end], asked)], Sampling(), seeds=[0])
        stats = engine.take_stats()
        assert (stats["prefilled_tokens"], stats["num_forwards"], stats["num_choices"]) == (expected, 1, 1)
        assert stats["sampled_tokens"] == 0
    engine.sample([stop(question, candidate[:end], asked) for end in range(12)], Sampling(), seeds=range(12))
    assert engine.take_stats()["num_forwards"] == 1


def test_playing_leaves_nothing_behind_that_would_hinder_learning() -> None:
    """What is made under `inference_mode` can't be differentiated, and the learner shares the model."""
    model = tiny_model("gemma3")
    build(model).sample([answer(ids(12, 5))], Sampling(), seeds=[3])
    model(input_ids=torch.tensor([ids(20, 1)])).logits.float().logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_a_rotation_that_changes_with_length_bounds_the_context() -> None:
    model = tiny_model("phi3")
    model.config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 24}
    with pytest.raises(EngineError, match="24 tokens"):
        build(model).submit(answer(ids(20, 1), max_tokens=5), Sampling(), seed=0)


def test_weights_that_have_diverged_are_named_as_the_cause() -> None:
    model = tiny_model("llama")
    engine = build(model)
    engine.sample([answer(ids(5, 0))], Sampling(), seeds=[0])
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(torch.nan)
    engine.refresh({})
    with pytest.raises(EngineError, match="not finite"):
        engine.sample([answer(ids(5, 0))], Sampling(), seeds=[0])


def test_an_end_token_that_is_dropped_leaves_no_trace() -> None:
    """The end token was sampled and never fed; what follows is written over its place."""
    model, untouched = tiny_model("llama"), tiny_model("llama")
    prompt = ids(12, 5)
    [free] = build(model, end_ids=()).sample([answer(prompt, max_tokens=9)], Sampling(), seeds=[3])
    end = free.token_ids[-1]
    engine = build(model, end_ids=[end])
    [first] = engine.sample([answer(prompt, max_tokens=30)], Sampling(), seeds=[3])
    assert first.finish_reason == "stop"
    assert first.token_ids[-1] == end
    again = answer(prompt, first.content_ids, max_tokens=10)
    engine.submit(again, Sampling(), seed=4, excluded=(end,))
    [(_, second)] = engine.poll()
    assert second.token_ids[0] != end
    assert second.logprobs == pytest.approx(plain_logprobs(untouched, again.prompt_ids, second.token_ids), abs=1e-5)


def test_a_short_completion_does_not_wait_for_a_long_one_and_its_place_is_filled() -> None:
    engine = build(tiny_model("llama"), end_ids=(), max_batch_size=2)
    long = engine.submit(answer(ids(5, 0), max_tokens=20), Sampling(), seed=0)
    short = [engine.submit(answer(ids(5, i), max_tokens=4), Sampling(), seed=i) for i in range(1, 5)]
    order = [ticket for _ in range(5) for ticket, _ in engine.poll()]
    assert order == [*short, long]
    assert engine.take_stats()["num_forwards"] == 20


def test_a_choice_is_scored_while_others_are_still_writing() -> None:
    engine = build(tiny_model("llama"), end_ids=())
    written = engine.submit(answer(ids(5, 0), max_tokens=200), Sampling(), seed=0)
    chosen = engine.submit(stop(ids(6, 1)), Sampling(), seed=1)
    [(first, one)] = engine.poll()
    assert first == chosen
    assert one.finish_reason == "choice"
    assert [ticket for ticket, _ in engine.poll()] == [written]


def two_adapters(kind: str) -> tuple[PreTrainedModel, Any]:
    model = tiny_model(kind)
    config = LoraConfig(r=4, target_modules=["k_proj", "v_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        peft: Any = get_peft_model(model, config, adapter_name="answer", autocast_adapter_dtype=False)
        peft.add_adapter("stop", config)
    return model.eval(), peft


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_roles_share_no_keys_and_a_refresh_forgets_them() -> None:
    model, peft = two_adapters("qwen2")

    @contextlib.contextmanager
    def speaking(role: str) -> Iterator[PreTrainedModel]:
        peft.set_adapter(role)
        yield model

    engine = LocalEngine(model, role_model=speaking, end_ids=[2], context_tokens=400)
    prompt = ids(30, 0)
    requests = [Request(role=role, prompt_ids=prompt, max_tokens=8) for role in ("answer", "stop")]
    engine.refresh({role: Adapter(role=role, version=1) for role in ("answer", "stop")})
    before = engine.sample(requests, Sampling(), seeds=[0, 0])
    assert engine.take_stats()["prefilled_tokens"] == 60
    for request, one in zip(requests, before, strict=True):
        peft.set_adapter(request.role)
        assert one.logprobs == pytest.approx(plain_logprobs(model, prompt, one.token_ids), abs=1e-5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.answer" in name:
                parameter.mul_(-2)
    engine.refresh({role: Adapter(role=role, version=2) for role in ("answer", "stop")})
    after = engine.sample(requests, Sampling(), seeds=[0, 0])
    assert engine.take_stats()["prefilled_tokens"] == 60
    assert [one.policy_version for one in after] == [2, 2]
    assert after[1].logprobs == pytest.approx(before[1].logprobs, abs=1e-5)
    assert said(after)[0] != said(before)[0]
    peft.set_adapter("answer")
    assert after[0].logprobs == pytest.approx(plain_logprobs(model, prompt, after[0].token_ids), abs=1e-5)


def test_a_tree_beyond_the_budget_plays_the_same_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("qwen2")
    prompts = [(3 + i, *ids(29, i)) for i in range(6)]
    roomy, tight = build(model, end_ids=()), build(model, end_ids=(), kv_budget_gib=1e-4)
    tokens: list[list[TokenIds]] = [[], []]
    stats: list[dict[str, float]] = []
    with caplog.at_level(logging.WARNING):
        for engine, said_so_far in zip((roomy, tight), tokens, strict=True):
            grown = list(prompts)
            for chunk in range(4):
                requests = [answer(prompt, max_tokens=6) for prompt in grown]
                completions = engine.sample(requests, Sampling(), seeds=[100 * chunk + i for i in range(6)])
                grown = [p + one.token_ids for p, one in zip(grown, completions, strict=True)]
                assert engine.kv_bytes <= (2**31 if engine is roomy else 2**30 * 1e-4)
            said_so_far.extend(grown)
            stats.append(engine.take_stats())
    assert tokens[0] == tokens[1]
    assert stats[1]["prefilled_tokens"] > stats[0]["prefilled_tokens"] == 6 * (30 + 3)
    assert stats[0]["evicted_tokens"] == 0 < stats[1]["evicted_tokens"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "kv_budget_gib" in caplog.text


def test_roles_that_write_side_by_side_keep_the_budget_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one may still grow to is not given to the other."""
    budget = 1600 * 256  # bytes of so many tokens of this model; the rows at their longest would take 2,048
    engine = build(tiny_model("qwen2"), end_ids=(), kv_budget_gib=budget / 2**30)
    held: list[int] = []
    step = LocalEngine._step
    monkeypatch.setattr(LocalEngine, "_step", lambda self, lane: (step(self, lane), held.append(self.kv_bytes)))
    requests = [Request(role=role, prompt_ids=ids(8, i), max_tokens=120) for role in ("one", "other") for i in range(8)]
    together = engine.sample(requests, Sampling(), seeds=range(16))
    assert budget / 2 < max(held) <= budget
    alone = [
        build(tiny_model("qwen2"), end_ids=()).sample([r], Sampling(), seeds=[i])[0] for i, r in enumerate(requests)
    ]
    assert said(together) == said(alone)


def test_a_budget_for_less_than_a_single_prompt_still_plays() -> None:
    tight, roomy = (build(tiny_model("qwen2"), end_ids=(), kv_budget_gib=gib) for gib in (1e-6, 1.0))
    requests = [answer(ids(30, i), max_tokens=5) for i in range(3)]
    assert said(tight.sample(requests, Sampling(), seeds=range(3))) == said(
        roomy.sample(requests, Sampling(), seeds=range(3))
    )


@pytest.mark.parametrize("settings", [{"max_batch_size": 0}, {"kv_budget_gib": 0.0}, {"prefill_tokens": -1}])
def test_settings_that_let_nothing_in_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"engine.{next(iter(settings))} above 0"):
        LocalSettings(**settings)


def test_an_evicted_play_that_nobody_needs_again_is_no_reason_to_warn(caplog: pytest.LogCaptureFixture) -> None:
    engine = build(tiny_model("qwen2"), kv_budget_gib=1e-4)
    for index in range(20):
        engine.sample([answer(ids(30, index))], Sampling(), seeds=[index])
    assert engine.take_stats()["evicted_tokens"] > 0
    assert not caplog.records


SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        (GptOssForCausalLM, GptOssConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1), "found 0"),
        (Gemma2ForCausalLM, Gemma2Config(**SMALL, attn_logit_softcapping=5.0), "found 0"),
        (Lfm2ForCausalLM, Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]), "found 1"),
        (FalconH1ForCausalLM, FalconH1Config(**SMALL, **MAMBA, initializer_range=0.3), "other logits"),
    ],
    ids=["attention sinks", "capped scores", "convolutions", "a recurrent state beside attention"],
)
def test_a_model_that_rows_of_ours_cannot_express_is_refused(kind: Any, config: Any, message: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval()
    with pytest.raises(ModelError, match=message):
        build(model).sample([answer(ids(5, 0))], Sampling(), seeds=[0])


@pytest.mark.parametrize("sampling", [*SAMPLINGS, Sampling(temperature=2.0)], ids=str)
def test_rows_that_pad_the_embedding_are_never_sampled(sampling: Sampling) -> None:
    model = tiny_model("qwen2", vocab_size=VOCAB)
    padding = VOCAB - 28
    with torch.no_grad():
        model.get_output_embeddings().weight[padding:] *= 2  # as no training would leave them
    common: dict[str, Any] = {"role_model": lambda _: contextlib.nullcontext(model), "end_ids": [2]}
    requests = [answer(ids(9, seed), max_tokens=20) for seed in range(12)]
    free, *bound = [
        engine.sample(requests, sampling, seeds=range(12))
        for engine in (
            LocalEngine(model, **common, context_tokens=400),
            LocalEngine(model, **common, context_tokens=400, num_tokens=padding),
            PlainEngine(model, **common, context_tokens=400, num_tokens=padding),
        )
    ]
    assert max(max(one.token_ids) for one in free) >= padding
    for completions in bound:
        assert max(max(one.token_ids) for one in completions) < padding
    assert [one.token_ids for one in bound[0]] == [one.token_ids for one in bound[1]]
    first = bound[0][0]  # what is recorded stays the model's own log-probability, over all its rows
    logits = model(input_ids=torch.tensor([requests[0].prompt_ids])).logits[0, -1].log_softmax(-1)
    assert first.logprobs[0] == pytest.approx(logits[first.token_ids[0]].item(), abs=1e-4)
