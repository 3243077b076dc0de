"""Is everything that a reader sees written in the field's own words, those of docs/glossary.md?

Pages, docstrings, comments and messages are searched for words of a dialect that this repository once had; each has the
term to use instead. Names in code are not searched, and neither is what stands in backticks, nor text that is data (the
sentences that the verifier and the seed's model know).
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import docs_site

ROOT = Path(__file__).parent.parent
INSTEAD = {
    r"plays?(?=\s+(?:on|of|are|is|that|a problem)\b)|played": "sampled; a rollout",
    r"speaks?|spoken|spoke": "samples, generates; is mentioned",
    r"hears?|heard": "is called, is notified",
    r"dear(?:er)?": "expensive",
    r"anew": "again, restarted",
    r"(?:is|are|was|were) told of": "is reported",
    r"goes on|gone on|go on with": "continues, resumes",
    r"hands? over|handed over to": "passes, returns",
    r"encoded anew": "encoded again",
}
"""Each expression, whole words in any case, with what to say instead."""
DATA = {"verify/doubt.py", "data/seed", "recipes/regenesis/flow.py"}
"""Files of the package in which such words are text to be recognised or learned."""
PAGES = [page for page in docs_site.pages() if page.name != "CHANGELOG.md" and "studies" not in page.parts]


def found(text: str) -> list[str]:
    """What a text should say otherwise."""
    prose = re.sub(r"`[^`\n]*`", "", docs_site._FENCE.sub("", text))
    hits = []
    for pattern, instead in INSTEAD.items():
        for hit in re.finditer(rf"(?<![\w/.])(?:{pattern})(?![\w/])", prose, re.IGNORECASE):
            around = " ".join(prose[max(0, hit.start() - 40) : hit.end() + 20].split())
            hits.append(f"{hit[0]!r} in {around!r}: say {instead}")
    return hits


def prose(path: Path) -> Iterator[str]:
    """Comments and strings of a Python file; a string of one word is a name."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and " " in token.string):
            yield token.string


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_are_in_plain_english(page: Path) -> None:
    assert found(page.read_text(encoding="utf-8")) == []


def test_the_unreleased_changes_are_in_plain_english() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert found(text.split("\n## ")[1]) == []


def test_docstrings_comments_and_messages_are_in_plain_english() -> None:
    hits = []
    for path in sorted((ROOT / "flow_dpo").rglob("*.py")):
        place = path.relative_to(ROOT / "flow_dpo").as_posix()
        if not any(place.startswith(data) for data in DATA):
            hits += [f"{place}: {hit}" for text in prose(path) for hit in found(text)]
    assert hits == [], "\n".join(hits)


def test_a_word_of_the_dialect_is_found_and_a_name_is_not() -> None:
    assert found("The rollout is played to its end.")
    assert found("What failed is told of once.")
    assert found("`played` tokens, shards_replayed, two arms cannot be told apart, displays") == []
