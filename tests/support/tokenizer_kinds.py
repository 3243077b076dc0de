"""Tiny tokenizers of every kind that chat models use, trained on a few sentences, and templates with known habits.

tokenizer_of("llama", TEMPLATES["chat"])      # sentencepiece's habits: a space in front of a text and after a token
"""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATES = {
    "chat": (
        "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    ),
    "instruct": (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
    ),
    "words": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}ASSISTANT: {{ m.content }}{{ eos_token }}"
        "{% else %}{{ m.role | upper }}: {{ m.content }} {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "tags": (
        "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|end|>{{ m.content | trim }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant<|end|>{% endif %}"
    ),
}
"""Role and newline in front of the text (as ChatML), spaces around it (as Llama 2), words alone (as Vicuna), and the
text right after a special token."""
SPECIAL = ["<unk>", "<s>", "</s>", "<|start|>", "<|end|>"]
_TEXT = [
    "Anna has 12 apples. She buys 7 more apples. How many apples does Anna have now? Yes or No.",
    "system user assistant USER: ASSISTANT: SYSTEM: [INST] [/INST] Problem: Candidate solution: Is it correct?",
    "12 + 7 = 19. Answer: 19 < 20 > 3 | 5 / start end Yes No Yes No think the the a it",
] * 4 + ["Yes No Yes No"] * 40


def _byte_level(*, prefix: bool) -> tuple[Tokenizer, trainers.Trainer]:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    return made, trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, initial_alphabet=letters, show_progress=False
    )


def _metaspace(scheme: str, *, split: bool) -> tuple[Tokenizer, trainers.Trainer]:
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    made.decoder = decoders.Metaspace(prepend_scheme=scheme, split=split)
    return made, _sentencepiece()


def _sentencepiece() -> trainers.BpeTrainer:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    return trainers.BpeTrainer(vocab_size=560, special_tokens=[*SPECIAL, *bytes_], show_progress=False)


def _llama() -> tuple[Tokenizer, trainers.Trainer]:
    """As Llama 2's legacy tokenizer is converted: the space is added by a normalizer, to every stretch."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made, _sentencepiece()


def _unigram() -> tuple[Tokenizer, trainers.Trainer]:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    letters = [chr(at) for at in range(33, 127)] + ["\n"]
    return made, trainers.UnigramTrainer(
        vocab_size=260, special_tokens=SPECIAL, unk_token="<unk>", initial_alphabet=letters, show_progress=False
    )


def _words() -> tuple[Tokenizer, trainers.Trainer]:
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made, trainers.WordLevelTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)


_MAKERS = {
    "byte level": lambda: _byte_level(prefix=False),
    "byte level, prefix": lambda: _byte_level(prefix=True),
    "metaspace first": lambda: _metaspace("first", split=True),
    "metaspace always": lambda: _metaspace("always", split=True),
    "metaspace, one word": lambda: _metaspace("first", split=False),
    "llama": _llama,
    "llama, stripped": _llama,
    "unigram": _unigram,
    "words": _words,
}
KINDS = tuple(_MAKERS)


@cache
def _trained(kind: str) -> str:
    made, trainer = _MAKERS[kind]()
    whole = Tokenizer(made.model)
    if made.normalizer is not None:
        whole.normalizer = made.normalizer
    if made.pre_tokenizer is not None:
        whole.pre_tokenizer = made.pre_tokenizer
    whole.decoder = made.decoder
    if (
        kind.startswith("llama") or kind == "metaspace, one word"
    ):  # a text is one word to it; it is trained word by word all the same
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made.train_from_iterator(_TEXT, trainer)
    whole.model = made.model
    return whole.to_str()


def tokenizer_of(kind: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind, whose special tokens are special in its file and, but for the first three, in no list."""
    made = Tokenizer.from_str(_trained(kind))
    # Phi-3's tokens swallow the space behind them.
    strips = kind == "llama, stripped"
    made.add_special_tokens([AddedToken(token, normalized=False, special=True, rstrip=strips) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer
