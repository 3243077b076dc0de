"""Are the characters that each token adds those of the text that all of them make?"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_dpo.models.token_texts import TokenTexts
from tests.support.tokenizer_kinds import KINDS, TEMPLATES, tokenizer_of

WORDS = [
    "Anna has 12 apples. ",
    "Yes",
    " No",
    "naïve",
    "日本",
    "🙂👍🏽",
    "  two  spaces ",
    "\n",
    "x\u202ey",
    "12 + 7 = 19",
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_lengths_cut_the_text_where_its_tokens_end(kind: str) -> None:
    tokenizer = tokenizer_of(kind, TEMPLATES["chat"])
    texts = TokenTexts(tokenizer)

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.sampled_from(WORDS), max_size=8))
    def check(words: list[str]) -> None:
        ids = tokenizer.encode("".join(words), add_special_tokens=False)
        text, lengths = texts.split(ids)
        lengths = lengths or tuple(len(texts.piece(id)) for id in ids)
        assert text == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert (len(lengths), sum(lengths)) == (len(ids), len(text))
        for num in range(len(ids) + 1):
            # The first tokens' characters are what these tokens alone decode to, where that cuts no character.
            begun = tokenizer.decode(ids[:num], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            if "\ufffd" not in begun:
                assert text[: sum(lengths[:num])] == begun, (ids, num)

    check()


def test_special_tokens_add_nothing_and_have_a_name() -> None:
    tokenizer = tokenizer_of("llama", TEMPLATES["chat"])
    end = tokenizer.convert_tokens_to_ids("</s>")
    yes = tokenizer.encode("Yes", add_special_tokens=False)
    texts = TokenTexts(tokenizer)
    assert texts.split([*yes, end])[0] == texts.split(yes)[0]
    assert texts.piece(end) == ""
    assert [texts.name(id) for id in (*yes, end)] == [""] * len(yes) + ["</s>"]
    assert (texts.split([]), texts.split([end])) == (("", ()), ("", ()))


def test_texts_of_most_tokenizers_need_no_lengths() -> None:
    """As long as no character is cut: each token's piece is what it adds."""
    tokenizer = tokenizer_of("byte level", TEMPLATES["chat"])
    ids = tokenizer.encode("Anna has 12 apples. She buys 7 more.", add_special_tokens=False)
    assert TokenTexts(tokenizer).split(ids)[1] == ()
