"""Are reward functions called as TRL calls them, and is whatever they do wrong named?"""

from __future__ import annotations

import asyncio
import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.rewards import judge_model, pattern, unit_tests
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Problem, Solution, Verdict
from flow_dpo.verify.grader import AnswerGrader, GradingSettings
from flow_dpo.verify.reward_grader import RewardGrader
from flow_dpo.verify.rewards import RewardFunctions, answer_reward
from flow_dpo.verify.verifier import Verifier
from tests.support.char_renderer import Letters, ids
from tests.support.judge_server import serving
from tests.support.tree_builders import completion, request

SUM = Problem(id="p1", question="1 + 1 = ?", gold="2", columns={"hint": "one more", "prompt": "1 + 1 = ?"})
CHAT = Problem(id="p2", question="Why?", gold="", columns={"prompt": [{"role": "user", "content": "Why?"}], "tone": 3})


def grader(functions: Any, weights: Any = None, **settings: Any) -> RewardGrader:
    chosen = GradingSettings(**settings)
    answers = AnswerGrader(Verifier(), Letters(), chosen)
    return RewardGrader(RewardFunctions.of(functions, weights), answers, Letters(), chosen)


def solution(text: str) -> Solution:
    return Solution(pieces=(ids(text),), ended=True)


def tree(problem: Problem, *texts: str) -> Tree:
    found = Tree(problem=problem)
    for text in texts:
        found.add_rollout(None, [(request("answer", 1), completion(*ids(text), version=7), ())], solution(text))
    return found


def length(completions: list[Any], **_: Any) -> list[float]:
    return [len(one) / 10 for one in completions]


def test_a_function_is_called_once_with_every_column_of_all_that_ended() -> None:
    calls: list[dict[str, Any]] = []

    def sees(**given: Any) -> list[float | None]:
        calls.append(given)
        return [0.25, None, 1.5]

    one, two = tree(SUM, "ab", "c"), tree(CHAT, "d")
    grader(sees).grade([one, two])
    [given] = calls
    assert given["prompts"] == ["1 + 1 = ?", "1 + 1 = ?", [{"role": "user", "content": "Why?"}]]
    assert given["completions"] == ["ab", "c", [{"role": "assistant", "content": "d"}]]
    assert given["completion_ids"] == [[97, 98], [99], [100]]
    assert (given["hint"], given["tone"]) == (["one more", "one more", None], [None, None, 3])
    assert given["gold"] == ["2", "2", ""]
    assert "prompt" not in given
    assert given["trainer_state"].global_step == 7
    verdicts = [rollout.verdict for each in (one, two) for rollout in each.rollouts]
    assert [verdict.reward if verdict else 9 for verdict in verdicts] == [0.25, None, 1.5]
    assert [verdict.status if verdict else "" for verdict in verdicts] == ["wrong", "ungraded", "correct"]


def test_a_narrow_signature_gets_only_its_own_arguments() -> None:
    def narrow(completions: list[str], hint: list[str]) -> list[float]:
        return [float(len(text) + len(words)) for text, words in zip(completions, hint, strict=True)]

    assert grader(narrow).check([(SUM, solution("ab"))])[0].value == 10.0


def test_what_an_exploration_asked_is_not_rewarded_twice() -> None:
    seen: list[int] = []

    def counts(completions: list[str]) -> list[float]:
        seen.append(len(completions))
        return [float(len(seen))] * len(completions)

    one = grader(counts)
    checked = one.check([(SUM, solution("ab"))])[0]
    made = tree(SUM, "ab", "cd")
    one.grade([made])
    assert seen == [1, 1]
    assert made.rollouts[0].verdict == checked
    one.grade([tree(SUM, "ab")])
    assert seen == [1, 1, 1]


def test_weights_sum_what_is_not_none_and_the_verifier_is_one_of_them() -> None:
    def sometimes(completions: list[str]) -> list[float | None]:
        return [None if "2" in text else 0.5 for text in completions]

    made = tree(SUM, "Answer: 2", "Answer: 3")
    grader([answer_reward, sometimes, length], [1.0, 2.0, 0.1]).grade([made])
    first, second = (rollout.verdict for rollout in made.rollouts)
    assert first
    assert second
    assert (first.answer, first.status) == ("2", "correct")
    assert first.value == pytest.approx(1.0 + 0.1 * 0.9)
    assert second.value == pytest.approx(2.0 * 0.5 + 0.1 * 0.9)
    assert first.measures == {"rewards/answer_reward": 1.0, "rewards/length": 0.9}
    assert answer_reward(["Answer: 2", [{"content": "Answer: 4"}]], ["2", "2"]) == [1.0, 0.0]


def test_what_the_verifier_cannot_grade_stays_ungraded() -> None:
    unreadable = replace(SUM, id="p3", gold="GCD is 6, LCM is 36")
    both = grader([answer_reward, length], [1.0, 0.1], correct_from=0.05)
    [found] = both.check([(unreadable, solution("Answer: 2"))])
    assert (found.status, found.reward, found.value) == ("ungraded", None, None)
    assert found.reason.startswith("the gold answer")
    assert found.measures == {"rewards/length": 0.9}
    [wrong, right] = both.check([(SUM, solution("Answer: 3")), (SUM, solution("Answer: 2"))])
    assert (wrong.status, wrong.value) == ("correct", pytest.approx(0.09))  # the functions' sum, as it was asked for
    assert right.value == pytest.approx(1.09)
    [alone] = grader(length).check([(unreadable, solution("Answer: 2"))])
    assert (alone.status, alone.value) == ("wrong", 0.9)


def test_async_functions_run_together() -> None:
    meeting: list[Any] = []

    async def first(completions: list[str]) -> list[float]:
        meeting.append(asyncio.Event())
        await asyncio.wait_for(meeting[0].wait(), 20)
        return [1.0] * len(completions)

    async def second(completions: list[str]) -> list[float]:
        while not meeting:
            await asyncio.sleep(0)
        meeting[0].set()
        return [2.0] * len(completions)

    assert grader([first, second]).check([(SUM, solution("a"))])[0].value == 3.0


def test_what_a_function_logs_comes_with_the_verdict() -> None:
    def logs(completions: list[str], log_extra: Any, log_metric: Any) -> list[float]:
        log_extra("words", ["x", "y"])
        log_metric("mean_length", 1.5)
        return [0.0, 1.0]

    made = tree(SUM, "a", "bc")
    grader(logs).grade([made])
    verdict = made.rollouts[1].verdict
    assert verdict
    assert verdict.extra == {"words": "y"}
    assert verdict.measures == {"rewards/logs": 1.0, "mean_length": 1.5}


@pytest.mark.parametrize(
    ("result", "words"),
    [([1.0], "expected 2 rewards"), ([0.0, float("nan")], "found nan for problem 'p1'"), ([0.0, "x"], "found 'x'"),
     (3.0, "expected a list of 2 rewards"), (ZeroDivisionError("\x1b[2J"), "raised ZeroDivisionError: '\\x1b[2J'")],
)  # fmt: skip
def test_what_goes_wrong_names_function_and_problem(result: Any, words: str) -> None:
    def odd(completions: list[str]) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    with pytest.raises(DataError) as caught:
        grader(odd).check([(SUM, solution("a")), (SUM, solution("b"))])
    assert words in str(caught.value)
    assert "odd" in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_function_that_changes_what_it_is_given_changes_nothing() -> None:
    """Two functions and two batches: the second of each is given what the first was."""
    problem = replace(SUM, columns={"tags": ["a"]})
    seen: list[Any] = []

    def clears(completions: list[str], tags: list[list[str]], gold: list[str]) -> list[float]:
        seen.append([list(completions), [list(each) for each in tags], list(gold)])
        rewards = [0.0 for _ in completions]
        tags[0].append("b")
        gold[0] = "0"
        completions.clear()
        return rewards

    twice = grader([clears, clears])
    for text in "ab":
        twice.check([(problem, solution(text))])
    assert seen == [[[text], [["a"]], ["2"]] for text in "aabb"]


def test_the_record_of_a_function_holds_a_checksum_of_its_source(tmp_path: Path) -> None:
    found: list[str] = []
    for number, body in enumerate(("0.0", "1.0", "0.0")):
        path = tmp_path / f"rewards_{number}.py"
        path.write_text(f"def own(completions):\n    return [{body} for _ in completions]\n", encoding="utf-8")
        own = runpy.run_path(str(path))["own"]
        found.append(RewardFunctions.of(own).describe().partition("x 1")[2])
    assert found[0] == found[2] != found[1]
    assert re.fullmatch(r" \([0-9a-f]{8}\)", found[0])
    assert RewardFunctions.of(len).describe() == "builtins:len x 1"


def test_what_cannot_be_called_is_refused_before_anything_is_sampled() -> None:
    def needs(completions: list[str], missing: list[str]) -> list[float]:
        return [0.0]

    with pytest.raises(ConfigError, match="missing"):
        RewardFunctions.of(needs).check_columns(SUM)

    class Model:
        def parameters(self) -> list[Any]:
            return []

        def __call__(self, input_ids: Any) -> Any: ...

    for functions in ("me/reward-model", ["me/reward-model"], Model(), [length, Model()]):
        with pytest.raises(ConfigError, match="call a reward model from your own function"):
            RewardFunctions.of(functions)
    for functions, weights in (({"a": length}, None), ([], None), ([length], [1.0, 2.0]), ([length], [float("nan")])):
        with pytest.raises(ConfigError):
            RewardFunctions.of(functions, weights)


def test_correct_is_what_reaches_the_setting() -> None:
    statuses = [
        verdict.status
        for verdict in grader(length, correct_from=0.3).check([(SUM, solution("ab")), (SUM, solution("abc"))])
    ]
    assert statuses == ["wrong", "correct"]
    assert Verdict(status="ungraded", value=2.0).reward is None


def test_a_pattern_is_a_reward() -> None:
    texts = ["She buys 4: 1 + 4 = 5\nAnswer: 5", "A b: 1 + 1 = 2\nC d: 2 + 1 = 3\nAnswer: 3\n", "Answer: 3 or"]
    assert pattern.few_steps(texts) == [1.0, 0.5, 0.0]


def test_unit_tests_of_code_are_a_reward() -> None:
    texts = ["```python\ndef f(x):\n    return 2 * x\n```", "def f(x):\n    return x", "print('True')", "import os"]
    tests = ["f(2) == 4", "f(0) == 0"]
    assert unit_tests.passed(texts, [tests, tests, tests, []]) == [1.0, 0.5, 0.0, None]
    with pytest.raises(ValueError, match="uses what the program defines"):
        unit_tests.passed(["def f(x): return 1"], [["sum([1, 2]) == 3"]])
    for test in ("all(max([n, 0]) == n for n in range(5))", "[sorted(x) for x in ([2, 1], [])] == [[1, 2], []]",
                 "(lambda x: x)(1) == 1", "sum(x for x in [1, 2]) == 3"):  # fmt: skip
        with pytest.raises(ValueError, match="uses what the program defines"):
            unit_tests.passed(["def max(xs): return 0\nx = n = 1"], [[test]])
    for test in ("f(1) = 3", "f(1).isalpha()"):
        with pytest.raises(ValueError, match="that is an expression"):
            unit_tests.passed(["def f(x): return 1"], [[test]])
    with pytest.raises(ValueError, match="found isinstance"):
        unit_tests.passed(["def f(x): return 1"], [["isinstance(f(2), int)"]])
    assert unit_tests.passed(["def f(x): return 1"], [[" f(2) == 1", "[f(n) for n in range(2)] == [1, 1]"]]) == [1.0]


@pytest.mark.parametrize(
    "program",
    [
        "double = lambda x: 1\nbool = lambda x: True",
        "def double(x): return 1\nprint = (lambda p: lambda w, r: p(w, True))(print)",
        "def double(x): return 1\ndef bool(x): return 2 > 1",
        "def double(x): return 1\nfrom math import inf as bool, pi as print",
        "def double(x): return 1\nimport math as abs",
        "double = lambda x: 1\nfor abs in [lambda x: 4]: pass",
        "double = lambda x: 1\n[abs := n for n in [lambda x: 4]]",
        "double = lambda x: 1\n(abs, all) = (lambda x: 4, lambda x: True)",
        "double = lambda x: 1\nimport math\nmath.isclose = lambda *x: True",
        "import math\ndouble = lambda x: math",
        "double = lambda x: 1\nmath = [0]",
        "from fractions import Fraction as F\ndouble = lambda x: F(7, 3)\nF.numerator, F.denominator = 7, 3",
        "double = lambda x: 1\nglobal bool",
        "double = lambda x: 1\ndel bool",
        "class double:\n    def __init__(self, x): pass\n    def __eq__(self, other): return True",
        "double = lambda x: 1\n__builtins__['bool'] = lambda x: True",
        "double = lambda x: 1\nimport builtins\nbuiltins.bool = lambda x: True",
        "double = lambda x: 1\ntry: 1 / 0\nexcept ZeroDivisionError as bool: pass",
        "double = lambda x: float('nan')",
        "double = lambda x: True\nprint(True)",
    ],
)
def test_a_program_that_solves_nothing_passes_nothing(program: str) -> None:
    tests = ["double(2) == 4", "abs(double(2)) == 4", "all([double(2) == 4])", "math.isclose(double(2), 4)"]
    assert unit_tests.passed([program], [tests]) == [0.0]


def test_a_program_may_name_its_values_as_it_likes() -> None:
    text = "sum = 0\nfor max in range(3): sum += max\ndef double(list):\n    len = 2\n    return list * len"
    assert unit_tests.passed([text], [["double(2) == 4", "sum([double(1), 1]) == 3"]]) == [1.0]


def test_a_judge_model_is_a_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda asked, number: "8" if "good" in asked else "no idea") as address:
        monkeypatch.setenv("JUDGE_URL", address.url)
        made = tree(SUM, "good", "bad")
        grader(judge_model.quality).grade([made])
    found = [rollout.verdict for rollout in made.rollouts]
    assert [verdict.reward if verdict else 9 for verdict in found] == [0.8, None]
    assert found[0]
    assert found[0].extra == {"judge": "8"}


def test_a_function_whose_arguments_are_not_known_is_refused() -> None:
    with pytest.raises(ConfigError, match="found max, whose signature"):
        RewardFunctions.of([max])


@pytest.mark.parametrize("value", [10**400, np.array([1.0, 2.0])])
def test_a_number_that_is_none_is_named_with_the_function(value: Any) -> None:
    with pytest.raises(DataError, match="finite number or None from the reward function odd"):
        grader([lambda_of(value)]).check([(SUM, Solution(pieces=(), ended=True))])


def lambda_of(value: Any) -> Any:
    def odd(completions: list[str]) -> list[Any]:
        return [value for _ in completions]

    return odd
