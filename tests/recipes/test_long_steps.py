"""Are long steps cut where a mark stands, within formulas only as a last resort, and never short ones?"""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from flow_dpo.core.steps import step_ends as ends_of_sentences
from flow_dpo.recipes.vineppo.long_steps import cuts, step_ends

WORDS = (
    "Since the two triangles are similar to each other by their angles, the ratio of any two of their sides is fixed"
)
FORMULA = "$" + "a + b = c + d = " * 8 + "e$"


def decode(ids: tuple[int, ...]) -> str:
    return "".join(chr(i) for i in ids)


def test_words_are_cut_behind_the_mark_that_is_nearest_to_the_middle() -> None:
    [place] = cuts(WORDS, 0, len(WORDS), 100)
    assert WORDS[:place].endswith("by their angles,")
    assert cuts(WORDS, 0, len(WORDS), 200) == []
    assert cuts(WORDS[:100], 0, 100, 100) == []
    # No comma with 40 characters on either side: the next kind of mark counts.
    text = "So, " + "x" * 60 + " and " + "y" * 50
    [place] = cuts(text, 0, len(text), 100)
    assert text[:place].endswith(" and ")


def test_a_formula_is_left_whole_where_words_can_be_cut() -> None:
    text = "It follows for $f(x, y, z) = x$ that every sum of such values is bounded, "
    text += "and so are all of its parts here and elsewhere"
    places = cuts(text, 0, len(text), 100)
    assert [text[:place][-1] for place in places] == [","]
    assert not text[: places[0]].endswith("x,")


def test_a_long_formula_is_cut_at_its_operators() -> None:
    places = cuts(FORMULA, 0, len(FORMULA), 100)
    assert places
    assert all(FORMULA[place - 1] == "=" for place in places)
    assert all(b - a <= 100 for a, b in pairwise([0, *places, len(FORMULA)]))
    assert cuts("x" * 300, 0, 300, 100) == [], "where there is no mark, nothing is cut"


def test_ends_of_sentences_stay() -> None:
    ids = tuple(map(ord, f"{WORDS}. Short one.\nAnswer: 3"))
    ends = ends_of_sentences(ids, decode)
    more = step_ends(ends, ids, decode, 100)
    assert set(ends) < set(more)
    assert len(more) == len(ends) + 1
    assert step_ends(ends, ids, decode, 10_000) == ends


@given(st.text("ab ,.:=+$\n", max_size=300), st.integers(1, 120))
def test_cuts_are_increasing_and_within(text: str, limit: int) -> None:
    ids = tuple(map(ord, text))
    ends = ends_of_sentences(ids, decode)
    more = step_ends(ends, ids, decode, limit)
    assert list(more) == sorted(set(more))
    assert set(ends) <= set(more)
    assert all(0 < end < len(ids) for end in more)
