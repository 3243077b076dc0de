"""Texts of single tokens: what each token of a text adds to it.

    texts = TokenTexts(renderer.tokenizer)
    texts.split((59, 11, 92))     ("She loses", ()): the tokens' own pieces "She", " loses" and "" add up to it
    texts.split((59, 190, 77))    ("She€", (3, 0, 1)): the last two are bytes of one character

Most tokenizers decode a token alike wherever it is inside a text, so one piece per token is enough. If the pieces do
not add up to the text (a space that only the first token loses, a character of several tokens), tokens are decoded with
those before them. Invariant: the text is decoded as a whole, and the lengths, one per token, add up to its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

_BEFORE = 2
"""A token is decoded from this many character ends before it, so that a space that only the first token of a text loses
is lost on both sides of the difference."""
_PARTIAL = "\ufffd"
"""What a decoder writes for a character with tokens missing."""


class TokenTexts:
    """Splits decoded texts by token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = {int(id) for id in tokenizer.all_special_ids if id is not None}
        others = (id for id in range(len(tokenizer)) if id not in self._special)
        # A token to put before others: one that is whole characters by itself.
        self._anchor = next((id for id in others if (text := self._decode((id,))).strip() and _PARTIAL not in text), 0)
        self.piece = lru_cache(maxsize=1 << 18)(self._inside)
        """A token's text as it is inside a text; "" for a special token."""

    def name(self, id: int) -> str:
        """A special token's name; "" for any other."""
        return str(self._tokenizer.convert_ids_to_tokens(id)) if id in self._special else ""

    def split(self, ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """The tokens decoded together, without special ones, and the number of characters that each adds.

        No lengths if the tokens' pieces, one after the other, are the text.
        """
        text = self._decode(ids)
        if "".join(map(self.piece, ids)) == text:
            return text, ()
        for before in (_BEFORE, len(ids)):
            lengths = self._in_context(ids, text, before)
            if sum(lengths) == len(text):
                break
        return text, lengths

    def _inside(self, id: int) -> str:
        if id in self._special:
            return ""
        text = self._decode((self._anchor, id))
        before = self._decode((self._anchor,))
        return text[len(before) :] if text.startswith(before) else self._decode((id,))

    def _in_context(self, ids: Sequence[int], text: str, before: int) -> tuple[int, ...]:
        """Number of characters that each token adds, decoded after those from up to `before` character ends back."""
        lengths: list[int] = []
        done, ends = 0, [0]
        for at in range(len(ids)):
            # Cut only where a character ends: the bytes of a cut one would affect others in their run.
            start, whole_until = ends[max(0, len(ends) - 1 - before)], ends[-1]
            found = self._decode(ids[start : at + 1])
            # What ends in the middle of a character counts with the token that completes it.
            added = 0
            if not found.endswith(_PARTIAL):
                added = len(found) - len(self._decode(ids[start:whole_until]))
                added = min(max(0, added), len(text) - done)
                ends.append(at + 1)
            lengths.append(added)
            done += added
        if before >= len(ids) and lengths:
            lengths[-1] += len(text) - done
        return tuple(lengths)

    def _decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text if isinstance(text, str) else "".join(text)
