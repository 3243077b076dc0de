"""Renderer: turns to token ids by the model's chat template, and token ids to text.

The one place that holds a tokenizer. A chat is rendered once by the model's own chat template, with a mark in place of
sampled ids; the text between the marks is encoded, and the ids are spliced in as they are. Invariant: nothing that was
sampled is ever decoded and encoded again:

    user: "Solution:", (71, 9, 5), "Correct?"  ->  ids("<|user|>Solution:") 71 9 5 ids("Correct?<|assistant|>")
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from flow_dpo.core.errors import ModelError
from flow_dpo.core.types import Message, Piece, Request, TokenIds, Turn

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{% if message.content %}{{ message.content }}\n\n{% endif %}"
    "{% elif message.role == 'user' %}{{ message.content }}\n"
    "{% else %}{{ message.content }}{{ eos_token }}\n\n{% endif %}"
    "{% endfor %}"
)
"""Chat template for base models without one: system, question and solution as plain paragraphs."""

_MARK = "\ue0f1"
"""A private-use character in place of spliced ids while a template is rendered."""


class Renderer:
    """Renders turns as requests and ids as text. Raises `ModelError` for a tokenizer without a chat template."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat_template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """`chat_template` replaces the tokenizer's own; "plain" names `PLAIN_TEMPLATE`."""
        self.tokenizer = tokenizer
        self._template = PLAIN_TEMPLATE if chat_template == "plain" else chat_template or tokenizer.chat_template
        self._template_kwargs = dict(template_kwargs or {})
        if not isinstance(self._template, str):
            raise ModelError(
                "expected a tokenizer with one chat template, found "
                + ("none" if self._template is None else f"several ({', '.join(self._template)})")
                + "; give one with --model.chat_template (a Jinja text, or the word plain for a base model)"
            )
        self.encode = lru_cache(maxsize=4096)(self._encode)
        self._fragments = lru_cache(maxsize=4096)(self._render_fragments)
        self._choice = lru_cache(maxsize=256)(self._choice_id)
        self.folds_system = self._must_fold_system()

    def render(self, turn: Turn) -> Request:
        """The turn in token ids. Raises `ModelError` where two choices begin with the same token."""
        # 1. Fragments of text between the marks, from a cache.
        fragments, slots = self._fragments(_masked(turn.messages))
        spliced = [piece for message in turn.messages for piece in message.content if not isinstance(piece, str)]
        assert len(spliced) == slots, f"{len(spliced)} spliced pieces for {slots} places"
        # 2. Prompt: fragments encoded one by one, with the sampled ids between them as they are.
        prompt: list[int] = list(self.encode(fragments[0]))
        for ids, fragment in zip(spliced, fragments[1:], strict=True):
            prompt.extend(ids)
            prompt.extend(self.encode(fragment))
        prompt.extend(self.to_ids(turn.continuation))
        # 3. Choices: the first token of each where it would be sampled.
        choices = tuple(self._choice(fragments[-1], word) for word in turn.choices)
        if len(set(choices)) < len(choices):
            raise ModelError(
                f"expected choices that begin with different tokens, found {list(turn.choices)} as {list(choices)} "
                "in this tokenizer; choose other words"
            )
        return Request(
            role=turn.role,
            prompt_ids=tuple(prompt),
            max_tokens=1 if choices else turn.max_tokens,
            choices=choices,
        )

    def chat(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        """Messages without spliced ids as the chat template gets them, for files that other programs render.

        Raises `ValueError` for sampled ids: no text is certain to encode to these ids.
        """
        if any(not isinstance(piece, str) for message in messages for piece in message.content):
            raise ValueError("expected messages of text alone, found sampled token ids in one")
        return self._folded([{"role": role, "content": content} for role, content in _masked(messages)])

    def to_ids(self, pieces: Sequence[Piece]) -> TokenIds:
        """The ids of text pieces (encoded one by one) and of sampled pieces (as they are)."""
        ids: list[int] = []
        for piece in pieces:
            ids.extend(self.encode(piece) if isinstance(piece, str) else piece)
        return tuple(ids)

    def to_text(self, pieces: Sequence[Piece]) -> str:
        """The pieces decoded together, special tokens left out."""
        text = self.tokenizer.decode(
            list(self.to_ids(pieces)), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text if isinstance(text, str) else "".join(text)

    def closing_id(self) -> int | None:
        """The special token that the chat template puts after an assistant's message; None where it puts none."""
        chat = [{"role": "user", "content": "USER"}, {"role": "assistant", "content": _MARK}]
        text = self.tokenizer.apply_chat_template(
            chat,
            chat_template=self._template,  # pyright: ignore[reportArgumentType]
            tokenize=False,
            **self._template_kwargs,
        )
        after = self.encode(str(text).rpartition(_MARK)[2])
        return after[0] if after and after[0] in self.tokenizer.all_special_ids else None

    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary: token ids mean the same to two renderers only where it is equal."""
        words = sorted(self.tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
        return hashlib.sha256(json.dumps(words).encode("ascii")).hexdigest()

    def _encode(self, text: str) -> TokenIds:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False)) if text else ()

    def _apply(self, messages: list[dict[str, str]]) -> str:
        text = self.tokenizer.apply_chat_template(
            messages,
            chat_template=self._template,  # pyright: ignore[reportArgumentType]
            tokenize=False,
            add_generation_prompt=True,
            **self._template_kwargs,
        )
        assert isinstance(text, str)
        return text

    def _must_fold_system(self) -> bool:
        """Whether the template ignores or refuses a system message, which then goes in front of the first question."""
        try:
            text = self._apply([{"role": "system", "content": "SYSTEM"}, {"role": "user", "content": "USER"}])
        except TemplateError:
            return True
        return "SYSTEM" not in text

    def _folded(self, chat: list[dict[str, str]]) -> list[dict[str, str]]:
        """The chat with its system message merged into the first question, where the template has no place for it."""
        if not (self.folds_system and chat and chat[0]["role"] == "system"):
            return chat
        system, *rest = chat
        if system["content"]:
            rest[0] = {**rest[0], "content": f"{system['content']}\n\n{rest[0]['content']}"}
        return rest

    def _render_fragments(self, messages: tuple[tuple[str, str], ...]) -> tuple[tuple[str, ...], int]:
        """The rendered chat, split at the marks, and the number of marks. Raises `ModelError` where one is lost."""
        chat = self._folded([{"role": role, "content": content} for role, content in messages])
        # A system message is given even when it is empty: some templates would add one of their own.
        try:
            fragments = self._apply(chat).split(_MARK)
        except TemplateError as error:
            raise ModelError(f"the chat template refused the prompt's messages: {error}") from error
        expected = sum(content.count(_MARK) for _, content in messages)
        if len(fragments) - 1 != expected:
            raise ModelError(
                f"expected the chat template to render each spliced text once, found {len(fragments) - 1} places for "
                f"{expected}; this template rewrites its messages and needs another (--model.chat_template)"
            )
        return tuple(fragments), expected

    def _choice_id(self, before: str, word: str) -> int:
        """The first token of `word` right after `before`."""
        context, joined = self.encode(before), self.encode(before + word)
        ids = joined[len(context) :] if joined[: len(context)] == context else self.encode(word)
        if not ids or ids[0] == self.tokenizer.unk_token_id:
            raise ModelError(f"expected a choice that this tokenizer can encode, found {word!r}; choose another word")
        return ids[0]


def _masked(messages: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    """The messages as text, a mark in place of every spliced piece. Hashable, so that a question renders once."""
    return tuple(
        (
            message.role,
            "".join(piece.replace(_MARK, "") if isinstance(piece, str) else _MARK for piece in message.content),
        )
        for message in messages
    )
