"""Can a data set come from Python, and are its steps checked by the checker that it names?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from flow_dpo.core.errors import DataError
from flow_dpo.core.types import Problem
from flow_dpo.data import datasets
from flow_dpo.data.checked_steps import CheckedLine, CheckedSolution
from flow_dpo.data.datasets import dataset, register_dataset
from flow_dpo.data.problems import load_problems
from flow_dpo.data.seed import seed_problems
from flow_dpo.evaluate.step_validity import checked_steps, has_invalid_step

APPLES = [Problem(id=f"a{i}", question=f"What is {i} + 1?", gold=str(i + 1), source="apples/train") for i in range(9)]


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_REGISTERED", {})


def shouting(problem: Problem, text: str) -> CheckedSolution | None:
    """A step checker: no line may shout; it knows problems with a worked solution alone."""
    if not problem.solution:
        return None
    lines = tuple(CheckedLine(text=line, fault="shouts" if line.isupper() else "") for line in text.splitlines())
    return CheckedSolution(lines=lines, sound=not any(line.fault for line in lines))


def test_problems_are_given_from_python() -> None:
    found = load_problems(APPLES, max_problems=3, skip_problems=2)
    assert [problem.id for problem in found] == ["a2", "a3", "a4"]
    assert len(found) == 3
    assert found.fingerprint == load_problems(iter(APPLES[2:5])).fingerprint
    shuffled = load_problems(APPLES, shuffle_seed=1)
    assert sorted(problem.id for problem in shuffled) == sorted(problem.id for problem in APPLES)
    assert list(shuffled) != APPLES
    with pytest.raises(DataError, match="expected problems in the given problems"):
        load_problems([])
    for bad in ([*APPLES, APPLES[0]], [replace(APPLES[0], gold=" ")]):
        with pytest.raises(DataError, match="expected problems, each with a question, a gold answer and a unique id"):
            load_problems(bad)


def test_a_registered_name_is_a_data_set_like_any_other() -> None:
    asked: list[str] = []

    def load(split: str) -> Iterator[Problem]:
        asked.append(split)
        yield from APPLES

    register_dataset("apples", load, check_steps=shouting)
    found = load_problems("apples", split="dev", max_problems=4)
    assert (list(found), asked) == (APPLES[:4], ["dev"])
    for name in ("apples", "seed"):
        with pytest.raises(DataError, match=f"expected a new name for a data set, found '{name}'"):
            register_dataset(name, load)
    assert dataset("pears") is None


def test_steps_are_checked_by_the_data_sets_own_checker_or_else_by_equations() -> None:
    register_dataset("apples", check_steps=shouting)
    known = replace(APPLES[0], solution="0 + 1 = 1")
    assert checked_steps(known, "hush\nHELP 1 + 1 = 3").lines == (
        CheckedLine(text="hush"), CheckedLine(text="HELP 1 + 1 = 3", fault="shouts"),
    )  # fmt: skip
    assert has_invalid_step(known, "1 + 1 = 3 apples") is False
    # Without a worked solution the checker does not know the problem, and of another data set it is not asked.
    for problem in (APPLES[0], replace(known, source="pears/train"), replace(known, source="apples/train/more")):
        assert checked_steps(problem, "HELP 1 + 1 = 3").lines[0].fault == "not true: 1 + 1 = 3"
        assert has_invalid_step(problem, "HELP 1 + 1 = 3") is True
        assert has_invalid_step(problem, "HELP") is None


def test_the_seed_names_its_checker_and_knows_its_own_problems() -> None:
    [problem] = seed_problems("train", 1)
    wrong = problem.solution.replace("\n", "\nShe naps.\n", 1)
    assert has_invalid_step(problem, problem.solution) is False
    assert [line.fault for line in checked_steps(problem, wrong).lines if line.fault] == ["not a step"]
    given_up = checked_steps(problem, f"Answer: 1\nWait, that is wrong.\n{problem.solution}")
    assert [line.given_up for line in given_up.lines][:3] == [True, True, False]
    assert given_up.sound is True
    # A file of this name with solutions in other words is no seed.
    other = replace(problem, solution="Twelve and seven make nineteen.")
    assert checked_steps(other, "12 + 7 = 18").lines[0].fault == "not true: 12 + 7 = 18"


def test_a_files_checker_is_found_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "apples.jsonl"
    path.write_text(json.dumps({"question": "What is 1 + 1?", "answer": "1 + 1 = 2\n#### 2"}) + "\n")
    register_dataset("apples", check_steps=shouting)
    [problem] = load_problems(str(path))
    assert checked_steps(problem, "LOUD").lines[0].fault == "shouts"
