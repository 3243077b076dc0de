"""Checkpoints that are no causal language model, or lack some of its weights: each refused with what was seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForSequenceClassification, Qwen2Config, T5Config

from flow_dpo.core.errors import ModelError
from flow_dpo.models.checkpoint import check_kind
from flow_dpo.models.facts import vocabulary_size
from flow_dpo.models.load import load_model
from tests.support.chat_models import chat_model_folder, chat_tokenizer
from tests.support.tiny_models import tiny_model

Weights = dict[str, torch.Tensor]


def _folder(tmp_path: Path, change: Callable[[Weights], object] = lambda _: None, **config: Any) -> str:
    """A tiny model with an untied head, whose weights and config are changed."""
    folder = chat_model_folder("qwen2", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    stated = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**stated, **config}), "utf-8")
    return str(folder)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
def test_weights_that_are_missing_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match=rf"no weights for: {name}\. They would be random"):
        load_model(_folder(tmp_path, lambda weights: weights.pop(name)))


def test_weights_of_another_shape_are_named(tmp_path: Path) -> None:
    def longer(weights: Weights) -> None:
        weights["lm_head.weight"] = torch.zeros(500, 32)

    with pytest.raises(ModelError, match=r"lm_head\.weight \[500, 32\] where \[412, 32\]"):
        load_model(_folder(tmp_path, longer))


def test_a_tied_config_over_a_head_of_its_own_keeps_the_head(tmp_path: Path) -> None:
    folder = _folder(tmp_path, tie_word_embeddings=True)
    head: Any = load_model(folder).model.get_output_embeddings()
    assert torch.equal(head.weight, load_file(f"{folder}/model.safetensors")["lm_head.weight"])


def test_weights_that_are_not_used_are_told(tmp_path: Path) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    with pytest.warns(UserWarning, match=rf"Qwen2ForCausalLM does not use: {name}"):
        load_model(_folder(tmp_path, lambda weights: weights.update({name: torch.zeros(64, 32)})))


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = chat_model_folder("qwen2", tmp_path / "model")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="could not load the weights"):
        load_model(str(folder))


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "made-up"])
def test_a_quantised_checkpoint_is_refused_by_its_method(tmp_path: Path, method: str) -> None:
    stated = {"quant_method": method, "bits": 4, "group_size": 128, "load_in_4bit": True}
    with pytest.raises(ModelError, match=f"quantised with {method}"):
        load_model(_folder(tmp_path, quantization_config=stated))


def test_another_kind_of_model_is_refused_by_its_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="found an encoder-decoder: here, of kind t5"):
        check_kind(T5Config(), "here")
    with pytest.raises(ModelError, match=r"another head .* llama \(LlamaForSequenceClassification\)"):
        check_kind(LlamaConfig(architectures=["LlamaForSequenceClassification"]), "here")
    check_kind(Qwen2Config(architectures=["Qwen2ForCausalLM"]), "here")
    # The whole way: its embeddings are tied, and so no weight is missing.
    sizes: dict[str, Any] = {
        "vocab_size": 412,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "pad_token_id": 0,
    }
    reward = LlamaForSequenceClassification(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True))
    reward.save_pretrained(tmp_path)
    chat_tokenizer("llama").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="another head"):
        load_model(str(tmp_path))


def test_a_token_without_an_embedding_is_refused_where_a_prompt_may_hold_it(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer("llama")
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    tokenizer.save_pretrained(tmp_path)
    assert vocabulary_size(load_model(str(tmp_path)).model) == len(tokenizer) - 1
    assert tokenizer.chat_template
    tokenizer.chat_template = str(tokenizer.chat_template).replace("<|end|>", "<|image|>")
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has 412 and its tokenizer 413: none for <\|image\|>"):
        load_model(str(tmp_path))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = chat_model_folder("qwen2", tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="found one that encodes nothing"):
        load_model(str(folder))


def test_a_generation_config_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    folder = chat_model_folder("qwen2", tmp_path / "model")
    file = folder / "generation_config.json"
    stated = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**stated, "eos_token_id": [2, 100, 101]}), "utf-8")
    assert load_model(str(folder)).end_ids == {2, 5, 100, 101}
    file.write_text("{", "utf-8")
    with pytest.raises(ModelError, match=r"could not read .*generation_config\.json"):
        load_model(str(folder))
