"""Is a prompt's template refused where it lacks the question, or has a gap that nothing fills?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from flow_dpo.core.answer_stop import AnswerStopPrompts
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.prompts import check_gaps, fill


@dataclass(frozen=True, kw_only=True)
class Prompts:
    ask: str = "{question}"
    system: str = ""
    number: int = 3


def check(**texts: Any) -> None:
    check_gaps(Prompts(**texts), {"ask": ("question",)}, ("plan",))


@pytest.mark.parametrize(
    "text",
    [
        "{question}", "{question} {question}", "{plan}{question}", "Put \\boxed{answer} behind {question}",
        "\\frac{aa}{bb} x^{nn} y_{ii} {question}", "{} { hint } {1} {x} {question}",
    ],
)  # fmt: skip
def test_gaps_that_are_filled_and_braces_that_are_none_pass(text: str) -> None:
    check(ask=text)
    assert "Q?" in "".join(map(str, fill(text, {"question": ("Q?",), "plan": ("P",)})))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("hello", r"expected \{question\} once in the prompt ask, found 0 in 'hello'"),
        ("{question}{hint}", r"unknown \{hint\} in the prompt ask: it takes \{question\}, \{plan\}; as text"),
        ("{Question} {question}", r"unknown \{Question\}"),
        ("{question}\\n{hint}", r"unknown \{hint\}"),
        ("{{question}} {gold}", r"unknown \{gold\}"),
    ],
)
def test_others_are_refused(text: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        check(ask=text)


def test_a_text_without_gaps_takes_none() -> None:
    with pytest.raises(ConfigError, match=r"unknown \{question\} in the prompt system: it takes none"):
        check(system="{question}")
    with pytest.raises(ConfigError, match=r"expected \{candidate\} once in the prompt stop_user, found 2"):
        AnswerStopPrompts(stop_user="{question}{candidate}{candidate}")
