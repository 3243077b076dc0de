"""Is a dry run's memory that of a real row?"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, PreTrainedModel

from flow_dpo.core.errors import ModelError
from flow_dpo.learner.logprobs import PackedLogprobs
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.models.dry_run import RowMemory, row_memory
from flow_dpo.models.load import blank_model, load_model
from flow_dpo.models.settings import ModelSettings
from tests.support.packed_builders import ROLES, pairs_of_tree
from tests.support.tiny_models import tiny_model


def dry(model: PreTrainedModel, tokens: int, *, checkpointing: bool = False) -> RowMemory:
    with torch.device("meta"):
        blank = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
        policy = Policy(blank, ROLES, LoraSettings(lora_r=4))
        if checkpointing:
            policy.checkpoint_activations()
        with policy.using("answer", training=True):
            return row_memory(blank, policy.parameters("answer"), tokens)


def measured(policy: Policy, num_trees: int) -> tuple[int, int]:
    """Tokens of a packed row, and the most that torch's allocator held in its forward and backward."""
    spoken = [
        (pair.request, completion)
        for tree in range(num_trees)
        for pair in pairs_of_tree(random.Random(tree), f"p{tree}", chunk_tokens=40)
        for completion in pair.completions
        if not pair.request.choices
    ]
    with policy.using("answer", training=True):
        logprobs = PackedLogprobs(policy.model, spoken)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            torch.autograd.grad(torch.cat(logprobs()).sum(), policy.parameters("answer"))
    held = peak = 0
    events: Any = found.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
    for event in sorted((each for each in events if each.name() == "[memory]"), key=lambda each: each.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return logprobs.num_tokens, peak


@pytest.mark.parametrize(("kind", "dtype"), [("qwen2", torch.bfloat16), ("gemma3", torch.float32)])
def test_it_is_what_a_row_takes(kind: str, dtype: torch.dtype) -> None:
    """Beyond it the masks of gathered paths, which are alike for all layers: much in a tiny model, little in others."""
    model = tiny_model(kind).to(dtype)
    policy = Policy(model, ROLES, LoraSettings(lora_r=4))
    few, many = (measured(policy, num) for num in (1, 4))
    slope = (many[1] - few[1]) / (many[0] - few[0])
    wanted = (dry(model, many[0]).peak_bytes - dry(model, few[0]).peak_bytes) / (many[0] - few[0])
    assert 0.7 <= wanted / slope <= 1.3


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_it_grows_with_the_row_and_shrinks_with_checkpointing(kind: str) -> None:
    model = tiny_model(kind)
    one, two, less = dry(model, 200), dry(model, 400), dry(model, 400, checkpointing=True)
    assert 1.8 <= two.peak_bytes / one.peak_bytes <= 2.1
    assert less.peak_bytes < two.peak_bytes
    assert one.kv_token_bytes == two.kv_token_bytes == less.kv_token_bytes


def test_keys_and_values_are_counted_by_layer_head_and_size() -> None:
    assert dry(tiny_model("qwen2"), 8).kv_token_bytes == 2 * 2 * (8 + 8) * 4
    assert dry(tiny_model("gemma3"), 8).kv_token_bytes == 4 * 1 * (16 + 16) * 4


def test_a_blank_model_is_the_model_without_its_weights() -> None:
    blank, real = blank_model(ModelSettings()), load_model("seed").model
    assert blank.device.type == "meta"
    assert blank.dtype == real.dtype
    assert {name: p.shape for name, p in blank.named_parameters()} == {
        name: p.shape for name, p in real.named_parameters()
    }
    with pytest.raises(ModelError, match="could not load /nowhere"):
        blank_model(ModelSettings(model_name_or_path="/nowhere"))
