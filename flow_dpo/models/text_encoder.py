"""Text to token ids inside a prompt: control tokens where the chat template wrote them, plain text everywhere else.

A tokenizer encodes a stretch of text depending on where it stands (some add a prefix space to the first stretch, or
after every special token), and takes the text of a special token for the token itself. Here the caller decides both:

    encoder.encode("<|user|>5 < 6</s>", shown={"\\uf0000": "</s>"}, after="nothing")

`shown` maps characters to the text of the data for which they stand, which would be taken for a control token.
Invariant: without such text the ids of a whole prompt are those of the tokenizer itself; no text of the data becomes a
control token.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerBase

from flow_dpo.core.errors import ModelError
from flow_dpo.core.types import TokenIds

After = Literal["nothing", "control", "text"]
"""What comes right before a stretch of text: nothing (it begins the prompt), a control token, or other tokens."""
_ANCHOR = "\ue0f2"
"""A private-use character that stands for the control token before a stretch, if that makes a difference."""
_BRACKETS = re.compile("<[|\uff5c].*[|\uff5c]>", re.DOTALL)
"""Tokens of this form are control tokens in every family, whatever their entry in the tokenizer says."""

_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
"""A byte of a character without its own token: text, even if a tokenizer lists it among its special tokens."""


class Control(NamedTuple):
    """A control token in a text, as the tokenizer itself finds it."""

    start: int
    end: int
    id: int


class TextEncoder:
    """Encodes stretches of text according to what they follow; the tokenizer is not changed."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        """`template` is the source of the chat template: added tokens that it writes are control tokens."""
        self._tokenizer = tokenizer
        added: Mapping[int, Any] = tokenizer.added_tokens_decoder
        listed = {id for id in tokenizer.all_special_ids if not _BYTE.fullmatch(str(added.get(id, "")))}
        ids = {id for id, token in added.items() if _is_control(token, template)} | listed
        # Text that no token spells becomes the unknown token, which is not a control token.
        unknown: Any = tokenizer.unk_token_id
        self.controls = frozenset(ids - {unknown})
        """Ids of special tokens, and of the added tokens that structure a chat."""
        words = {str(token): id for id, token in added.items() if id in self.controls}
        self._plain = _Fast(tokenizer, added, ids) if tokenizer.is_fast else _Slow(tokenizer, words)

    def find(self, text: str) -> list[Control]:
        """The control tokens that the tokenizer finds in a text. Raises `ModelError` for text that is not valid."""
        _check_text(text)
        return [one for one in self._plain.parse(text) if one.id in self.controls]

    def encode(self, text: str, *, shown: Mapping[str, str], after: After) -> TokenIds:
        """The ids of a stretch of a prompt. Raises `ModelError` for text that only a control token spells."""
        if not text:
            return ()
        hides = any(mark in text for mark in shown)
        if after == "nothing" and not hides and isinstance(self._plain, _Fast):
            return self._plain.ids(text)
        ids: list[int] = []
        done = 0
        for control in [*self._found(text, after), None]:
            plain = text[done : control.start if control else len(text)]
            for mark, hidden in shown.items() if hides else ():
                plain = plain.replace(mark, hidden)
            ids.extend(self.plain(plain, after=after))
            if control:
                ids.append(control.id)
                done, after = control.end, "control"
        return tuple(ids)

    def _found(self, text: str, after: After) -> list[Control]:
        """The control tokens in a stretch; if it does not begin the prompt, a character is put before it."""
        if after == "nothing":
            return self.find(text)
        return [Control(one.start - 1, one.end - 1, one.id) for one in self.find(_ANCHOR + text)]

    def plain(self, text: str, *, after: After) -> TokenIds:
        """The ids of a text with nothing taken for a control token. Raises `ModelError` if that is impossible."""
        _check_text(text)
        ids: list[int] = []
        todo: list[tuple[str, After]] = [(text, after)] if text else []
        while todo:
            text, after = todo.pop()
            found = self._plain.encode(text, after)
            cuts = [self._cut(text, one) for one in found if one.id in self.controls]
            if cuts:
                # A vocabulary that has its control tokens as words finds them in text too: such words are split.
                pieces = [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]
                todo.extend((piece, "text") for piece in reversed(pieces[1:]))
                todo.append((pieces[0], after))
            else:
                ids.extend(one.id for one in found)
        return tuple(ids)

    def _cut(self, text: str, control: Control) -> int:
        """A position inside what was taken for a control token."""
        if control.end - control.start < 2:
            shown, word = text[max(control.start - 20, 0) : control.end + 20], text[control.start : control.end]
            name = self._tokenizer.convert_ids_to_tokens(control.id)
            raise ModelError(
                f"expected text without control tokens, found {word!r} in {shown!r}: this tokenizer can spell it only "
                f"by its control token {name!r}; leave it out"
            )
        return control.start + 1


def _is_control(token: Any, template: str) -> bool:
    text = token.content
    if _BYTE.fullmatch(text):
        return False
    in_template = text in template and not (text.isspace() or text.isalnum())
    return token.special or in_template or _BRACKETS.fullmatch(text) is not None


def _check_text(text: str) -> None:
    """Raise `ModelError` for text with half of a surrogate pair, which no tokenizer accepts."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        around = text[max(error.start - 20, 0) : error.end + 20]
        raise ModelError(
            f"expected text of whole characters, found {text[error.start]!a}, half of one, in {around!a}; leave it out"
        ) from error


class _Fast:
    """A tokenizer of the tokenizers library, assembled again from its parts with and without its control tokens."""

    def __init__(self, tokenizer: Any, added: Mapping[int, Any], controls: set[int]) -> None:
        backend: Tokenizer = tokenizer.backend_tokenizer
        self._added = added
        words = [token for id, token in sorted(added.items()) if id not in controls]
        self._whole = self._with_ids(_assembled(backend, [token for _, token in sorted(added.items())]))
        self._first = self._with_ids(_assembled(backend, words))
        self._inside = self._with_ids(_assembled(_without_prefix(backend), words, model=backend.model))
        self._anchored = self._with_ids(_assembled(backend, [*words, AddedToken(_ANCHOR, normalized=False)]))

    def parse(self, text: str) -> list[Control]:
        """Every token that the tokenizer itself finds."""
        return self._read(self._whole, text)

    def ids(self, text: str) -> TokenIds:
        """The same as ids alone."""
        tokenizer, ids = self._whole
        found = tokenizer.encode(text, add_special_tokens=False).ids
        return tuple(ids.get(id, id) for id in found) if ids else tuple(found)

    def encode(self, text: str, after: After) -> list[Control]:
        if after != "control":
            return self._read((self._first if after == "nothing" else self._inside), text)
        # If the text contains the anchor itself, the rest is encoded as inside a text.
        own = text.partition(_ANCHOR)[0]
        found = self._read(self._anchored, _ANCHOR + own)[1:]
        rest = self._read(self._inside, text[len(own) :])
        shifts = [*((one, -1) for one in found), *((one, len(own)) for one in rest)]
        return [Control(one.start + shift, one.end + shift, one.id) for one, shift in shifts]

    def _with_ids(self, made: Tokenizer) -> tuple[Tokenizer, dict[int, int]]:
        """With a map to the original ids of added tokens, which can be others in `made`, since some are left out."""
        known = ((made.token_to_id(token.content), id) for id, token in self._added.items())
        return made, {new: id for new, id in known if new is not None and new != id}

    def _read(self, parts: tuple[Tokenizer, dict[int, int]], text: str) -> list[Control]:
        tokenizer, ids = parts
        found = tokenizer.encode(text, add_special_tokens=False)
        return [Control(*span, ids.get(id, id)) for span, id in zip(found.offsets, found.ids, strict=True)]


def _assembled(parts: Tokenizer, words: list[AddedToken], *, model: models.Model | None = None) -> Tokenizer:
    made = Tokenizer(parts.model if model is None else model)
    if parts.normalizer is not None:
        made.normalizer = parts.normalizer
    if parts.pre_tokenizer is not None:
        made.pre_tokenizer = parts.pre_tokenizer
    made.add_tokens(words)
    return made


def _without_prefix(backend: Tokenizer) -> Tokenizer:
    """The normalizer and pre-tokenizer of `backend`, changed so that neither adds a space before a text."""
    parts = json.loads(_assembled(backend, [], model=models.BPE()).to_str())
    for place in ("normalizer", "pre_tokenizer"):
        parts[place] = _stripped(parts[place])
    return Tokenizer.from_str(json.dumps(parts))


def _stripped(part: Any) -> Any:
    if isinstance(part, list):
        return [made for each in part if (made := _stripped(each)) is not None]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Prepend":
        return None
    changes = {"Metaspace": {"prepend_scheme": "never"}, "ByteLevel": {"add_prefix_space": False}}
    return {name: _stripped(value) for name, value in part.items()} | changes.get(part.get("type", ""), {})


class _Slow:
    """A tokenizer in Python. It encodes only whole texts, so text inside one is encoded after a newline."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, controls: Mapping[str, int]) -> None:
        self._tokenizer, self._controls = tokenizer, controls
        longest_first = sorted(controls, key=len, reverse=True)
        self._words = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._newline = self._ids("\n")

    def parse(self, text: str) -> list[Control]:
        """The control tokens that it finds, by their spelling."""
        return [Control(one.start(), one.end(), self._controls[one[0]]) for one in self._words.finditer(text)]

    def encode(self, text: str, after: After) -> list[Control]:
        ids = self._ids(text)
        if after == "text":
            behind = self._ids("\n" + text)
            size = len(self._newline)
            ids = behind[size:] if behind[:size] == self._newline else ids
        return [Control(0, 0, id) for id in ids]

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
