"""Tiny random chat models in folders, with tokenizers and templates that behave like those of well-known families.

The templates are our own, with the habits that matter: Gemma has no system role and refuses one, Qwen2.5 adds a default
system text, Qwen3 strips what earlier assistant turns thought, Llama 3 trims every message and begins with its own
token.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.support.tiny_models import tiny_model

TEMPLATES = {
    "llama": (
        "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|head|>\n\n{{ m.content | trim }}<|end|>"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant<|head|>\n\n{% endif %}"
    ),
    "qwen2": (
        "{% if messages[0].role != 'system' %}<|start|>system\nYou are a default assistant.<|end|>\n{% endif %}"
        "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    ),
    "qwen3": (
        "{% for m in messages %}<|start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1].lstrip('\n') }}"
        "{% else %}{{ m.content }}{% endif %}"
        "<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n"
        "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    ),
    "phi3": (
        "{% for m in messages %}<|head|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|head|>assistant\n{% else %}{{ eos_token }}{% endif %}"
    ),
    "gemma3": (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
        "<|start|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>model\n{% endif %}"
    ),
}
SPECIAL = ["<pad>", "<s>", "</s>", "<|start|>", "<|head|>", "<|end|>"]
_TEXT = [
    "Anna has 12 apples. She buys 7 more. How many apples does Anna have now? Yes or No.",
    "You are a helpful math assistant. Explain your reasoning step by step, then solve the problem.",
    "Problem: Candidate solution: Is the candidate solution correct? Answer only Yes or No.\n12 + 7 = 19.\nAnswer: 19",
    "system user assistant model default think",
]


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    return tokenizer.to_str()


def chat_tokenizer(kind: str | None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the template of `kind`, or with none."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()), pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=SPECIAL[3:],
    )  # fmt: skip
    if kind is not None:
        tokenizer.chat_template = TEMPLATES[kind]
    return tokenizer


def chat_model_folder(kind: str, folder: Path, *, template: bool = True) -> Path:
    """Save a tiny random model of `kind` with its tokenizer, as a hub folder looks."""
    tokenizer = chat_tokenizer(kind if template else None)
    model = tiny_model(kind, vocab_size=len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
