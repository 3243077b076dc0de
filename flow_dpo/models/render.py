"""Renderer: turns to token ids by the model's chat template, and token ids to text.

The one place that holds a tokenizer. A chat is rendered once by the model's own chat template, with a mark in place of
sampled ids; the text between the marks is encoded, and the ids are spliced in as they are. Invariants: nothing that was
sampled is ever decoded and encoded again, and no text of a message becomes a control token:

    user: "Solution:", (71, 9, 5), "Correct?"  ->  ids("<|user|>Solution:") 71 9 5 ids("Correct?<|assistant|>")
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import logging
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from flow_dpo.core.errors import ModelError
from flow_dpo.core.types import Message, Piece, Request, TokenIds, Turn
from flow_dpo.models.chat_template import MARK, PLAIN_TEMPLATE, ChatTemplate
from flow_dpo.models.text_encoder import After, TextEncoder

__all__ = ["PLAIN_TEMPLATE", "Renderer"]
log = logging.getLogger("flow_dpo")

_FIRST_SHOWN = 0xF0000
"""During rendering, private-use characters from here on stand for text that would be taken for control tokens."""


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A rendered chat: the stretches of text between its spliced ids."""

    fragments: tuple[str, ...]
    shown: tuple[tuple[str, str], ...]
    """Characters in the fragments, each with the text of the data that it stands for."""


@dataclass(frozen=True, slots=True)
class _Choices:
    """How a prompt ends if one of several words is to follow."""

    drop: int
    """Number of ids at the prompt's end that the encoding with the words does not have."""
    more: TokenIds
    """Ids to append to the rest: what the template writes before an answer."""
    ids: TokenIds
    """The token of each word."""


class Renderer:
    """Renders turns as requests and ids as text. Raises `ModelError` for a tokenizer without a chat template."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat_template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        template_date: str = "",
    ) -> None:
        """`chat_template` replaces the tokenizer's own; "plain" names `PLAIN_TEMPLATE`. `template_date` is the time for
        templates that ask for it."""
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer, chat_template, template_kwargs or {}, template_date)
        self.encoder = TextEncoder(tokenizer, self.template.source)
        self.folds_system = self.template.folds_system
        self._chat = lru_cache(maxsize=4096)(self._render_chat)
        self._fragment = lru_cache(maxsize=4096)(self._encode_fragment)
        self._plain = lru_cache(maxsize=4096)(self._encode_plain)
        self._choices = lru_cache(maxsize=256)(self._find_choices)
        self._warned = False

    def render(self, turn: Turn) -> Request:
        """The turn in token ids. Raises `ModelError` if two choices begin with the same token."""
        stretches, rendered = self._stretches(turn)
        prompt = tuple(itertools.chain.from_iterable([ids for _, ids in stretches]))
        if not turn.choices:
            return Request(role=turn.role, prompt_ids=prompt, max_tokens=turn.max_tokens)
        found = self._choices(*rendered, bool(turn.continuation), turn.choices)
        if found.drop or found.more:
            prompt = (*prompt[: len(prompt) - found.drop], *found.more)
        return Request(role=turn.role, prompt_ids=prompt, max_tokens=1, choices=found.ids)

    def stretches(self, turn: Turn) -> list[tuple[bool, TokenIds]]:
        """The prompt of a turn in stretches of ids, and whether each was sampled."""
        return self._stretches(turn)[0]

    def chat(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        """Messages without spliced ids, as the chat template gets them, for files that other programs render.

        Raises `ValueError` for sampled ids, since no text is certain to encode to these ids.
        """
        if any(not isinstance(piece, str) for message in messages for piece in message.content):
            raise ValueError("expected messages of text alone, found sampled token ids in one")
        return self._folded([{"role": role, "content": content} for role, content in _masked(messages)])

    def encode(self, text: str) -> TokenIds:
        """The ids of a text by itself, as the tokenizer encodes it; control tokens that it spells are plain text."""
        return self._plain(text, "nothing")

    def to_ids(self, pieces: Sequence[Piece]) -> TokenIds:
        """The ids of text pieces (encoded one by one, as inside a text) and of sampled pieces (as they are)."""
        ids: list[int] = []
        for piece in pieces:
            ids.extend(self._plain(piece, self._after(ids)) if isinstance(piece, str) else piece)
        return tuple(ids)

    def answer_ids(self, text: str) -> TokenIds:
        """The ids of a text as the assistant's answer, with what the template itself writes in front of one."""
        opening, lead = self.template.opening, self.template.lead
        [shown_text], shown = self._hide((text,))
        before = self._fragment(opening, shown, "text")
        whole = self._fragment(opening + lead + shown_text, shown, "text")
        if whole[: len(before)] == before:
            return whole[len(before) :]
        return self._fragment(lead + shown_text, shown, self._after(before))

    def to_text(self, pieces: Sequence[Piece]) -> str:
        """The pieces decoded together, without special tokens."""
        text = self.tokenizer.decode(
            list(self.to_ids(pieces)), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text if isinstance(text, str) else "".join(text)

    def closing_ids(self, ends: Collection[int] = ()) -> TokenIds:
        """What the chat template writes after an assistant's message, up to its first control token or one of `ends`;
        empty if it writes none."""
        for text in self.template.after_answer():
            ids = self._fragment(text, (), "text")
            for at, id in enumerate(ids):
                if id in self.encoder.controls or id in ends:
                    return ids[: at + 1]
        return ()

    def closing_id(self) -> int | None:
        """The control token with which the chat template ends an assistant's message; None if there is none."""
        ids = self.closing_ids()
        return ids[-1] if ids else None

    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary: token ids mean the same to two renderers only if it is equal."""
        words = sorted(self.tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
        return hashlib.sha256(json.dumps(words).encode("ascii")).hexdigest()

    # ---- prompts --------------------------------------------------------------------------------------------------

    def _stretches(
        self, turn: Turn
    ) -> tuple[list[tuple[bool, TokenIds]], tuple[str, tuple[tuple[str, str], ...], After]]:
        """The prompt in stretches; and its last fragment: its text, what is hidden in it, and what it follows."""
        # 1. Fragments of text between the marks, from a cache.
        messages = [_joined(message) for message in turn.messages]
        chat = self._chat(_masked(messages))
        spliced = [piece for message in messages for piece in message.content if not isinstance(piece, str)]
        assert len(spliced) == len(chat.fragments) - 1, f"{len(spliced)} spliced pieces, {len(chat.fragments)} texts"
        # 2. Fragments encoded according to what they follow, with the sampled ids between them as they are.
        after: After = "nothing"
        found = [(False, self._fragment(chat.fragments[0], chat.shown, after))]
        for ids, fragment in zip(spliced, chat.fragments[1:], strict=True):
            after = self._after(ids) if ids else self._after(found[-1][1])
            found += [(True, ids), (False, self._fragment(fragment, chat.shown, after))]
        # 3. What the assistant has written so far.
        last = (chat.fragments[-1], chat.shown, after)
        for piece in turn.continuation:
            ids = self._plain(piece, self._after(found[-1][1])) if isinstance(piece, str) else piece
            found.append((not isinstance(piece, str), ids))
        return found, last

    def _after(self, ids: Sequence[int]) -> After:
        return "control" if ids and ids[-1] in self.encoder.controls else "text"

    def _encode_fragment(self, text: str, shown: tuple[tuple[str, str], ...], after: After) -> TokenIds:
        return self.encoder.encode(text, shown=dict(shown), after=after)

    def _encode_plain(self, text: str, after: After) -> TokenIds:
        return self.encoder.plain(text, after=after)

    def _folded(self, chat: list[dict[str, str]]) -> list[dict[str, str]]:
        """The chat with its system message merged into the first question, if the template has no place for it."""
        if not (self.template.folds_system and chat and chat[0]["role"] == "system"):
            return chat
        system, *rest = chat
        if system["content"]:
            rest[0] = {**rest[0], "content": f"{system['content']}\n\n{rest[0]['content']}"}
        return rest

    def _render_chat(self, messages: tuple[tuple[str, str], ...]) -> _Rendered:
        """The rendered chat, split at the marks. Raises `ModelError` if one is lost."""
        # 1. What would be taken for control tokens is hidden from the template and the tokenizer.
        contents, shown = self._hide(tuple(content for _, content in messages))
        # A system message is passed even if it is empty: some templates would add their own.
        text = self._apply([(role, content) for (role, _), content in zip(messages, contents, strict=True)])
        # 2. Templates cut thoughts out of past answers, so these are not hidden if none of their tags is left then.
        if any(
            role == "assistant" and hidden != content
            for (role, content), hidden in zip(messages, contents, strict=True)
        ):
            whole = self._apply(
                [(role, content if role == "assistant" else hidden)
                 for (role, content), hidden in zip(messages, contents, strict=True)]
            )  # fmt: skip
            if [one.id for one in self.encoder.find(whole)] == [one.id for one in self.encoder.find(text)]:
                text = whole
        # 3. The stretches between the marks.
        fragments, expected = text.split(MARK), sum(content.count(MARK) for _, content in messages)
        if len(fragments) - 1 != expected:
            raise ModelError(
                f"expected the chat template to render each spliced text once, found {len(fragments) - 1} places for "
                f"{expected}; this template rewrites its messages and needs another (--model.chat_template)"
            )
        return _Rendered(tuple(fragments), shown)

    def _apply(self, messages: Sequence[tuple[str, str]]) -> str:
        return self.template.apply(self._folded([{"role": role, "content": content} for role, content in messages]))

    def _hide(self, texts: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
        """The texts with a character in place of each stretch that would be taken for a control token, and the stretch
        that each character stands for."""
        found = [self.encoder.find(text) for text in texts]
        if not any(found):
            return texts, ()
        raw = {text[one.start : one.end] for text, ones in zip(texts, found, strict=True) for one in ones}
        stretches = {stretch.strip() or stretch for stretch in raw}
        used = set("".join(texts))
        free = (char for at in range(_FIRST_SHOWN, sys.maxunicode) if (char := chr(at)) not in used)
        shown = dict(zip(sorted(stretches, key=len, reverse=True), free, strict=False))
        hide = re.compile("|".join(map(re.escape, shown)))
        hidden = tuple(hide.sub(lambda match: shown[match[0]], text) for text in texts)
        return hidden, tuple((char, stretch) for stretch, char in shown.items())

    # ---- choices --------------------------------------------------------------------------------------------------

    def _find_choices(
        self, before: str, shown: tuple[tuple[str, str], ...], after: After, continues: bool, words: tuple[str, ...]
    ) -> _Choices:
        """The token with which an answer of each word begins, after the fragment `before` or after text that the
        assistant has written (`continues`). Raises `ModelError` if two are the same."""
        lead = "" if continues else self.template.lead
        if self.template.opens_thought and not (continues or self._warned):
            self._warned = True
            log.warning(
                "the chat template opens a thought (%s) before an answer: choices are read after an empty thought that "
                "is closed; see docs/prompts.md", self.template.opens_thought,
            )  # fmt: skip
        base, full = (self._fragment(text, shown, after) for text in (before, before + lead))
        plain = {word: self._plain(word, "text" if continues else self._after(full)) for word in words}
        joined = [
            (*full, *plain[word])
            if continues or self.encoder.find(word)
            else self._fragment(before + lead + word, shown, after)
            for word in words
        ]
        size = min(_num_shared(full, each) for each in joined)
        firsts = [each[size : size + 1] for each in joined]
        unknown = self.tokenizer.unk_token_id
        if (unknown,) in firsts or len(set(firsts)) < len(firsts):
            # Words that merge with the prompt's last token: they are read after it.
            size, firsts = len(full), [plain[word][:1] for word in words]
        for word, first in zip(words, firsts, strict=True):
            if not first or first[0] == unknown:
                raise ModelError(
                    f"expected a choice that this tokenizer can encode, found {word!r}; choose another word, such as "
                    f"{', '.join(self._words_near(word)) or 'one of its vocabulary'}"
                )
        ids = tuple(first[0] for first in firsts)
        if len(set(ids)) < len(ids):
            raise ModelError(
                f"expected choices that begin with different tokens, found {list(words)} as {list(ids)} in this "
                "tokenizer; choose other words"
            )
        kept = min(_num_shared(base, full), size)
        return _Choices(drop=len(base) - kept, more=full[kept:size], ids=ids)

    def _words_near(self, word: str) -> list[str]:
        """Words with a similar spelling that are a single token each."""
        bare = {token.strip("\u0120\u2581 ") for token in self.tokenizer.get_vocab() if len(token) < 16}
        unknown = self.tokenizer.unk_token_id
        known = [each for each in sorted(bare) if each.isalpha() and self.encode(each) not in ((), (unknown,))]
        known = [each for each in known[:20_000] if len(self.encode(each)) == 1]
        return difflib.get_close_matches(word, known, n=5, cutoff=0.0)


def _num_shared(one: TokenIds, other: TokenIds) -> int:
    """Length of the common prefix of two sequences of ids."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _joined(message: Message) -> Message:
    """The message with adjacent spliced pieces joined: messages with the same texts then render alike."""
    content: list[Piece] = []
    for piece in message.content:
        last = content[-1] if content else ""
        if isinstance(piece, str) or isinstance(last, str):
            content.append(piece)
        else:
            content[-1] = last + piece
    return message if len(content) == len(message.content) else replace(message, content=tuple(content))


def _masked(messages: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    """The messages as text, with a mark in place of every spliced piece. Hashable, so a question renders only once."""
    return tuple(
        (
            message.role,
            "".join(piece.replace(MARK, "") if isinstance(piece, str) else MARK for piece in message.content),
        )
        for message in messages
    )
