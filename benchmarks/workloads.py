"""Workloads of the benchmarks: random models of named sizes, and pairs of trees of exact shapes.

    random_model("50m")                                        # a Llama, float32
    tree_pairs(rng, "p0", Shape(150, 160, 6), vocabulary=512)  # 6 Answer pairs and 6 Stop pairs of one tree

Pairs are in token ids. Siblings differ from their first token on, so less is shared than in rollouts, where an
alternative keeps what comes before its divergence. Stop reads question, candidate and a suffix, so its prompts are a
trunk of their own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen2Config

from flow_dpo.core.types import Completion, Pair, Request, TokenIds
from flow_dpo.models.load import LoadedModel, load_model, load_renderer
from flow_dpo.models.settings import ModelSettings

YES, NO, FIRST = 3, 4, 5
"""The two choices of Stop, and the first id that chunks are made of."""
_STOP_PREFIX = (FIRST, FIRST + 1, FIRST + 2)
_STOP_SUFFIX = (FIRST + 3,) * 8
MODELS = ("tiny", "50m", "0.5b", "8b")
HALF = ("0.5b", "8b")
"""Those in bfloat16."""


@dataclass(frozen=True)
class Shape:
    """Tokens of a question and of a chunk, and chunks in the trunk."""

    prompt_tokens: int
    chunk_tokens: int
    num_nodes: int


def load(case: str, *, num_threads: int) -> LoadedModel:
    """A model as the package loads it; one of `MODELS` has random weights, and the seed's tokenizer and template."""
    if case not in MODELS:
        return load_model(ModelSettings(model_name_or_path=case, num_threads=num_threads))
    torch.set_num_threads(num_threads)
    _, renderer = load_renderer(ModelSettings())
    model = random_model(case)
    return LoadedModel(model=model, renderer=renderer, end_ids=frozenset({2}), context_tokens=8192, name=case)


def random_model(size: str, seed: int = 0) -> PreTrainedModel:
    """An untrained model in eval mode, made where it is to be used; or the one in the folder of that name."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if size not in MODELS:
        model = AutoModelForCausalLM.from_pretrained(size, dtype="auto").eval().to(device)  # pyright: ignore
        for parameter in model.parameters():
            # Loaded weights lie in the file until they are touched: they would be counted as memory of an update.
            parameter.data = parameter.data.clone()
        return model
    # On the device and in its own precision from the start: eight billion weights in float32 are 32 GB.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.device(device):
        torch.manual_seed(seed)
        dtype = torch.bfloat16 if size in HALF else torch.float32
        return AutoModelForCausalLM.from_config(config(size), dtype=dtype).eval()


def config(size: str) -> PretrainedConfig:
    shared: dict[str, Any] = {
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    untied: dict[str, Any] = {**shared, "tie_word_embeddings": False}
    if size == "tiny":
        return LlamaConfig(
            vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, **shared
        )
    if size == "50m":
        return LlamaConfig(
            vocab_size=32_000,
            hidden_size=512,
            intermediate_size=1376,
            num_hidden_layers=12,
            num_attention_heads=8,
            **shared,
        )
    if size == "8b":  # the shape of Llama-3-8B
        return LlamaConfig(
            vocab_size=128_256,
            hidden_size=4096,
            intermediate_size=14_336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            **untied,
        )
    # The shape of Qwen2.5-0.5B.
    return Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        **shared,
    )


def completion(ids: TokenIds, *, choice: int | None = None) -> Completion:
    """Made up, sampled by no engine: version -1 is never the learner's, so that no log-probabilities are compared."""
    zeros = (0.0,) * len(ids)
    return Completion(
        token_ids=ids,
        logprobs=zeros,
        sampled_logprobs=zeros,
        finish_reason="length" if choice is None else "choice",
        policy_version=-1,
        choice=choice,
    )


def tree_pairs(rng: random.Random, problem: str, shape: Shape, *, vocabulary: int) -> list[Pair]:
    """A pair of each role at every node of one trunk."""

    def draw(length: int) -> TokenIds:
        return tuple(rng.randrange(FIRST, vocabulary) for _ in range(length))

    question, trunk, pairs = draw(shape.prompt_tokens), (), []
    for depth in range(shape.num_nodes):
        chunk, other = draw(shape.chunk_tokens), draw(shape.chunk_tokens)
        while chunk[0] == other[0]:
            other = draw(shape.chunk_tokens)
        better, worse = (chunk, other) if rng.random() < 0.5 else (other, chunk)
        request = Request(role="answer", prompt_ids=question + trunk, max_tokens=shape.chunk_tokens)
        pairs.append(_pair(request, completion(better), completion(worse), problem, depth))
        trunk += chunk
        words = [completion((YES,), choice=0), completion((NO,), choice=1)]
        rng.shuffle(words)
        request = Request(role="stop", prompt_ids=(*_STOP_PREFIX, *question, *trunk, *_STOP_SUFFIX), choices=(YES, NO))
        pairs.append(_pair(request, words[0], words[1], problem, depth))
    return pairs


def _pair(request: Request, chosen: Completion, rejected: Completion, problem: str, depth: int) -> Pair:
    return Pair(request=request, chosen=chosen, rejected=rejected, margin=1.0, problem_id=problem, depth=depth)
