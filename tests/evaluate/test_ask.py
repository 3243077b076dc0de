"""Is a new question answered as an evaluation would, by every recipe's flow, told turn by turn and shown safely?"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

import flow_dpo
from flow_dpo.cli.ask import _answer_lines, _source_flag, _turn_lines
from flow_dpo.cli.main import main
from flow_dpo.core.answer_stop import AnswerStop, AnswerStopState
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.types import Completion
from flow_dpo.evaluate.asked import Answered, AskedTurn, outcome
from flow_dpo.evaluate.evaluate import EvaluationSettings, evaluate
from flow_dpo.recipes.presets import RECIPES
from flow_dpo.runs.runtime import open_runtime

QUESTION = "Mia has 41 stamps. Tom has 3 stamps. Mia finds 6 stamps. How many stamps does Mia have now?"


def test_asked_is_what_an_evaluation_samples() -> None:
    problems = flow_dpo.load_problems("seed", split="test", max_problems=4).problems
    with open_runtime("seed") as runtime:
        recipe = runtime.recipe
        assert recipe is not None
        for greedy in (True, False):
            settings = EvaluationSettings(greedy=greedy, seed=3, batch_problems=1)
            trees, _ = evaluate(
                recipe.flow, recipe.explore, problems, runtime.workers, runtime.renderer, runtime.backends.grader, {},
                settings,
            )  # fmt: skip
            for tree, problem in zip(trees, problems, strict=True):
                told: list[AskedTurn] = []
                found = flow_dpo.ask(runtime, problem, greedy=greedy, seed=3, tell=told.append)
                verdict = tree.trunk.verdict
                assert verdict is not None
                assert (found.solution, found.answer) == (tree.trunk.text, verdict.answer)
                assert found.tokens == sum(turn.tokens for turn in found.turns)
                assert [turn.role for turn in found.turns] == [node.role for node in tree.trunk_nodes()]
                assert tuple(told) == found.turns
                tags = [next(tag for tag in node.tags if tag.startswith("attempt")) for node in tree.trunk_nodes()]
                assert [f"attempt {turn.attempt}" for turn in found.turns] == tags
                texts = [turn.text for turn in found.turns if turn.attempt == found.attempt and not turn.choices]
                assert "".join(texts).split() == found.solution.split()


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_flow_of_every_recipe_answers(recipe: str) -> None:
    told: list[AskedTurn] = []
    found = flow_dpo.ask("seed", QUESTION, recipe=recipe, preset="seed", tell=told.append)
    flow = RECIPES[recipe]["seed"].recipe.flow
    assert tuple(told) == found.turns != ()
    assert {turn.role for turn in told} <= set(flow.roles)
    assert told[-1].attempt == found.num_attempts >= found.attempt >= 1
    assert found.question == QUESTION
    assert (found.accepted is None) is not any(len(turn.choices) == 2 for turn in told)
    for turn in told:
        assert not turn.choices or (sum(turn.choices.values()) == pytest.approx(1) and turn.text in turn.choices)


class Refuses(AnswerStop):
    """The paper's flow with a Stop that is never heeded: every ended answer is reopened."""

    def advance(self, state: AnswerStopState, completion: Completion) -> AnswerStopState:
        return super().advance(state, completion if completion.choice is None else replace(completion, choice=1))


def test_a_reopened_answer_is_the_next_attempt() -> None:
    paper = RECIPES["flow-dpo-paper"]["seed"].recipe.flow
    assert isinstance(paper, AnswerStop)
    # A chunk of 80 tokens holds every answer; one of 40 cuts the second, whose refusal reopens nothing.
    for chunk_tokens, attempts in ((80, [1, 1, 2, 2, 3]), (40, [1, 1, 2, 2, 2])):
        flow = Refuses(chunk_tokens=chunk_tokens, max_chunks=3, prompts=paper.prompts)
        found = flow_dpo.ask("seed", QUESTION, flow=flow, recipe="flow-dpo-paper")
        assert [turn.role for turn in found.turns] == ["answer", "stop", "answer", "stop", "answer"]
        assert [turn.attempt for turn in found.turns] == attempts
        assert (found.num_attempts, found.attempt, found.accepted) == (attempts[-1], attempts[-1], False)


def judged(attempt: int, yes: float, right: float, word: str) -> AskedTurn:
    chances = {"Yes": yes, "No": 1 - yes}
    return AskedTurn(role="stop", text=word, choices=chances, attempt=attempt, right=right, threshold=0.5)


def test_the_reason_is_told() -> None:
    wrote = [AskedTurn(role="answer", text="x", attempt=number) for number in (1, 2)]
    refused = [wrote[0], judged(1, 0.3, 0.45, "No"), wrote[1], judged(2, 0.6, 0.4, "No")]
    assert outcome(refused, best=True) == (1, False, "none was accepted; its P(right) of 0.45 is the highest")
    assert outcome(refused, best=False) == (2, False, "none was accepted; it is the last")
    taken = [*refused[:3], judged(2, 0.6, 0.7, "Yes")]
    assert outcome(taken, best=True) == (2, True, "its P(right) of 0.70 exceeds the threshold, 0.50")
    assert outcome(wrote, best=False)[1] is None
    assert _turn_lines(judged(2, 0.6, 0.7, "Yes")).endswith(
        "P(Yes) 0.60, P(No) 0.40, P(right) 0.70; accepted above 0.50"
    )
    lost = Answered(
        question="q", answer=None, solution="", ended=False, attempt=1, num_attempts=1, accepted=None, why="so it is",
        turns=(), tokens=3,
    )  # fmt: skip
    assert _answer_lines(lost).split("\n")[1:] == [
        "Answer    none", "          so it is; the solution was cut off before its end; 3 tokens"
    ]  # fmt: skip


def test_the_command_line_asks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n\nEvil \x1b[2J question?\n"))
    assert main(["ask", "--json", "seed", "-"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["question"] == QUESTION
    assert first["turns"][-1]["choices"].keys() == {"Yes", "No"}
    assert second["question"] == "Evil \x1b[2J question?"
    assert main(["ask", "seed", "Evil \x1b[2J question?", "--mode", "single"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown
    assert "Question  Evil \\x1b[2J question?" in shown
    assert "Attempt 1\nanswer    " in shown
    assert "none of its roles judges the answer" in shown


def test_one_pass_of_a_run_whose_flow_has_a_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--max_problems", "4", "--output_dir", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    for mode, kinds in (("flow", {"answer", "stop"}), ("single", {"answer"})):
        assert main(["ask", "--json", str(tmp_path / "run"), QUESTION, "--mode", mode]) == 0
        found = json.loads(capsys.readouterr().out)
        assert {turn["role"] for turn in found["turns"]} == kinds


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "expected a run folder or a model, found none"),
        (("What is 1 + 1?",), "expected a run folder or a model, found 'What is 1 + 1?'"),
        (("runs/none", "What?"), "expected a run folder or a model, found 'runs/none'"),
        (("seed",), "expected a question, found none"),
        (("seed", " "), "expected a question, found an empty one"),
        (("seed", "What?", "--greddy", "true"), "did you mean --greedy"),
        (("seed", "--questions", "nowhere.txt"), "could not read the questions in nowhere.txt"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["ask", *words]) == 1
    assert message in capsys.readouterr().err


def test_a_question_that_cannot_be_asked_is_told_and_the_next_is_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n{'word ' * 5000}\ncaf\udce9\n{QUESTION}\n"))
    assert main(["ask", "--json", "seed", "-"]) == 1
    found = capsys.readouterr()
    first, second = (json.loads(line) for line in found.out.splitlines())
    assert first == second
    assert "to fit the context window" in found.err
    assert "expected a question in UTF-8, found 'caf\\udce9'" in found.err


def test_a_run_of_the_hub_is_asked_with_its_adapters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for at in ("flow_dpo.cli.ask.names_a_run", "flow_dpo.evaluate.ask.names_a_run"):
        monkeypatch.setattr(at, lambda source: source == "me/flow")
    assert _source_flag("me/flow") == "--speaking.run=me/flow"
    assert _source_flag("org/model") == "--model.model_name_or_path=org/model"
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.yaml").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"did you mean first\?"):
        _source_flag("./frist")


def test_names_are_checked_for_an_open_runtime() -> None:
    with open_runtime("seed") as runtime, pytest.raises(ConfigError, match="did you mean greedy"):
        flow_dpo.ask(runtime, QUESTION, greddy=True)
