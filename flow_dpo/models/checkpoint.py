"""Checkpoint of a causal language model: its weights as they were saved, or a refusal that says what they are instead.

transformers fills weights that it does not find with random numbers, drops those that it does not know, and makes a
language model of a reward model's body, each with a line in a log. Here:

    weights("Qwen/Qwen2.5-0.5B", config, torch.float32)     # Qwen2ForCausalLM, every weight from the files
    check_kind(config)                                      # ModelError for T5, a reward model, an image model

Invariant: every weight of a returned model comes from its files, in a precision that can be computed with.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from flow_dpo.core.errors import ModelError
from flow_dpo.models.render import Renderer

_OTHER_HEAD = re.compile(r"For(?!CausalLM|ConditionalGeneration)[A-Z]\w*$")
"""Architectures with another head than a language model's: LlamaForSequenceClassification, BertForMaskedLM."""
_CAN_UNPACK = ("fp8", "mxfp4")
"""Quantisations that transformers can turn into plain weights."""
_SHOWN = 4
"""Number of names that a message lists."""
_RARE = "\U000e01ee\ufdd0"
"""Characters that no vocabulary has: they are encoded as bytes or as the unknown token."""
UNREADABLE = (OSError, ValueError, ImportError, RuntimeError, SafetensorError, StrictDataclassError)
"""What transformers raises for configs and files that it cannot read."""


def check_kind(config: PretrainedConfig, name: str) -> None:
    """Raise `ModelError` for a model that is not a causal language model, judging by its config alone."""
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    known = remote or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    architectures = [str(each) for each in config.architectures or ()]
    others = [each for each in architectures if _OTHER_HEAD.search(each)]
    found = f"{name}, of kind {config.model_type}" + (f" ({', '.join(architectures)})" if architectures else "")
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"expected a causal language model, found an encoder-decoder: {found}; give another model")
    if others and len(others) == len(architectures):
        raise ModelError(
            f"expected a causal language model, found one with another head (a reward model, a classifier, a masked "
            f"language model): {found}; give the language model that it was made from"
        )
    if not known:
        raise ModelError(
            f"expected a causal language model, found {found}, which transformers does not load as one; give a "
            "language model for text"
        )


def weights(name: str, config: PretrainedConfig, dtype: torch.dtype | None, **options: Any) -> PreTrainedModel:
    """The model with the weights from its files, in `dtype` or in their own precision. Warns about unused weights.

    Raises `ModelError` if weights are missing, have another shape, stay quantised or cannot be read.
    """
    quantised: Any = getattr(config, "quantization_config", None)
    method = str(quantised.get("quant_method") or "an unnamed method") if isinstance(quantised, dict) else ""
    if method in _CAN_UNPACK:
        quantised["dequantize"] = True
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=dtype or "auto", use_safetensors=True, output_loading_info=True,
            ignore_mismatched_sizes=True, **options,
        )  # fmt: skip
    except torch.OutOfMemoryError:
        raise
    except UNREADABLE as error:
        kind = f", quantised with {method}" if method else ""
        raise ModelError(f"could not load the weights of {name} (safetensors only{kind}): {error}") from error
    model, info = loaded
    if method and (getattr(model, "is_quantized", False) or method not in _CAN_UNPACK):
        raise ModelError(
            f"expected weights in full or half precision, found {name} quantised with {method}; give the checkpoint "
            "that it was made from"
        )
    shapes = [f"{key} {list(saved)} where {list(own)} is expected" for key, saved, own in info["mismatched_keys"]]
    for what, names in (("weights of other shapes than its config states", shapes),
                        ("no weights for", sorted(info["missing_keys"]))):  # fmt: skip
        if names:
            raise ModelError(
                f"expected a checkpoint with all weights of {type(model).__name__}, found in {name} {what}: "
                f"{_listed(names)}. They would be random numbers; give a whole checkpoint of this architecture, or "
                "correct its config (tie_word_embeddings if only the head is missing)"
            )
    if config.get_text_config() is not config and model.config.get_text_config() is not model.config:
        warnings.warn(f"{type(model).__name__} takes more than text: only its text part is used", stacklevel=3)
    if unused := sorted(info["unexpected_keys"]):
        warnings.warn(f"{name} holds weights that {type(model).__name__} does not use: {_listed(unused)}", stacklevel=3)
    return model


def check_rows(renderer: Renderer, rows: int, name: str) -> None:
    """Raise `ModelError` if a prompt can contain token ids for which the model has no embedding.

    Control tokens without an embedding do no harm if the chat template does not write them: no text becomes one.
    """
    vocabulary = renderer.tokenizer.get_vocab()
    if max(vocabulary.values(), default=0) < rows:
        return
    unknown: Any = renderer.tokenizer.unk_token_id
    written = {*written_ids(renderer), *renderer.encode(_RARE)}
    never = renderer.encoder.controls | {unknown}
    beyond = [
        word
        for word, id in sorted(vocabulary.items(), key=lambda entry: entry[1])
        if id >= rows and (id in written or id not in never)
    ]
    if beyond:
        raise ModelError(
            f"expected an embedding for every token, found that {name} has {rows} and its tokenizer {len(vocabulary)}: "
            f"none for {_listed(beyond)}. Give the tokenizer that belongs to the model, or resize its embeddings "
            "(resize_token_embeddings) and train them"
        )


def written_ids(renderer: Renderer) -> Collection[int]:
    """The ids that the chat template writes around a question and an answer."""
    question = {"role": "user", "content": "USER"}
    texts = [renderer.template.apply([question]), *renderer.template.after_answer()]
    return {id for text in texts for id in renderer.encoder.encode(text, shown={}, after="nothing")}


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
