"""Do draws keep the very tokens that Stop judged, and is a Stop on a fixed set measured as it is by hand?"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.core.answer_stop import AnswerStop, AnswerStopPrompts, RolePrompts
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.explore import Siblings
from flow_dpo.core.protocols import Backends
from flow_dpo.core.types import Problem, Request, TokenIds, Verdict
from flow_dpo.engines.scripted import ScriptedEngine, ScriptedReply
from flow_dpo.evaluate.candidates import FixedSet, Judging, check_fits, judge, read
from flow_dpo.evaluate.evaluate import EvaluationSettings, decoding, evaluate, predictions, write_predictions
from flow_dpo.recipes.cpl.flow import PlanSolve
from flow_dpo.recipes.flow_dpo.attempts import Attempts
from flow_dpo.recipes.flow_dpo.explore import AttemptSiblings
from flow_dpo.recipes.single import Single
from flow_dpo.report.evaluation_section import describe_decoding
from flow_dpo.runs.adapters import one_attempt, one_pass
from flow_dpo.runs.records import Prediction
from flow_dpo.verify.extract import AnswerRule, extract_answer
from flow_dpo.verify.grader import AnswerGrader
from flow_dpo.workers.in_process import InProcessWorkers
from tests.support.char_renderer import END, Letters, ids
from tests.support.record_examples import PREDICTION

PROBLEMS = [Problem(id=f"p{i}", question=f"What is {i} + 1?", gold=str(i + 1)) for i in range(5)]
FLOW = AnswerStop(chunk_tokens=10, max_chunks=2, prompts=AnswerStopPrompts(answer_system="Be brief.", no="Wrong"))


def probability(text: str) -> float:
    """P(Yes) of whatever this scripted Stop is shown."""
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 97 + 1) / 99


def speak(request: Request, seed: int, _: TokenIds) -> ScriptedReply | Sequence[int]:
    """Answer's first chunk has a digit of the seed's, by which it goes on: even is right, odd wrong, 6 fills its last
    chunk, and 9 never ends. Stop says what it says of the text."""
    prompt = Letters().to_text([request.prompt_ids])
    if request.choices:
        yes = probability(prompt)
        return ScriptedReply(choice=seed % 2, choice_logprobs=(math.log(yes), math.log(1 - yes)))
    question, _, written = prompt.partition("<assistant>")
    digit = int(written[1]) if written else random.Random(seed).randrange(10)
    answer = 8 if digit % 2 else int(question.split("What is ")[1].split()[0]) + 1
    tail = (*ids({6: " 123456789", 9: "." * 20}.get(digit, str(answer))), END)
    return (*ids(f"n{digit}\nAnswer:"), *tail)[len(written) :][: request.max_tokens]


class Reads:
    """Verdicts by comparison of the last line's number."""

    def begin(self, items: Sequence[tuple[str, str, bool]]) -> None:
        """Nothing takes long."""

    def grade_many(self, items: Sequence[tuple[str, str, bool]]) -> list[Verdict]:
        found = [extract_answer(text, ended=ended, rule=AnswerRule()) for _, text, ended in items]
        return [
            Verdict(status="correct" if answer == gold else "wrong", answer=answer)
            for (gold, _, _), answer in zip(items, found, strict=True)
        ]


GRADER = AnswerGrader(Reads(), Letters())


def workers_of(asked: list[Request]) -> InProcessWorkers:
    def keep(request: Request, seed: int, excluded: TokenIds) -> ScriptedReply | Sequence[int]:
        asked.append(request)
        return speak(request, seed, excluded)

    engine = ScriptedEngine(keep, end_ids={END})
    return InProcessWorkers(Backends(engine=engine, renderer=Letters(), grader=GRADER))


def drawn(flow: Any, explore: Any = None) -> tuple[list[Prediction], dict[str, Any], list[Request]]:
    asked: list[Request] = []
    explore, settings = explore or Siblings(), EvaluationSettings(draws=4)
    trees, result = evaluate(one_attempt(flow), explore, PROBLEMS, workers_of(asked), Letters(), GRADER, {}, settings)
    return predictions(trees, draws=True), result, asked


def test_draws_are_single_attempts_that_stop_judges() -> None:
    rows, result, asked = drawn(FLOW)
    assert len(rows) == 20
    assert {row.draw for row in rows} == {1, 2, 3, 4}
    assert {row.ended for row in rows} == {True, False}, "some are cut"
    assert {row.ended for row in rows if len(row.token_ids or ()) == 20} == {True}, "and some fill their last chunk"
    assert len({row.solution for row in rows}) > 5, "draws differ"
    assert sum(bool(request.choices) for request in asked) == sum(row.ended for row in rows), "Stop is asked once"
    for row in rows:
        assert ids(row.solution) == row.token_ids
        assert (row.yes is not None) == row.ended
        assert row.tokens == len(row.token_ids or ()) + 2 * row.ended, "the end token, and Stop's word"
    found = result["votes"]["by_k"]
    assert list(found) == ["1", "2", "4"]
    assert found["4"]["tokens"] == sum(row.tokens for row in rows) / 5
    right = [row.verdict is not None and row.verdict.status == "correct" for row in rows]
    assert found["1"]["one_attempt"]["accuracy"] == result["accuracy"] == sum(right) / 20
    assert found["4"]["oracle"]["accuracy"] == result["pass_at_k"]["4"]
    best = 0.0
    for problem in PROBLEMS:
        mine = [(row.yes, one) for row, one in zip(rows, right, strict=True) if row.id == problem.id and row.yes]
        best += max(mine)[1] if mine else 0.0
    assert found["4"]["best"]["accuracy"] == pytest.approx(best / 5)
    kinds = result["stop"]["num_candidates"]
    assert kinds == {"unfinished": 0, "wrong": sum(r.ended for r in rows) - sum(right), "right": sum(right)}


def test_the_record_says_what_was_drawn_where_decoding_is_greedy() -> None:
    """A first attempt is the likeliest, a later one is drawn; Stop's word is taken by its threshold, never drawn."""
    settings, explore = EvaluationSettings(seed=3), AttemptSiblings(temperature=0.5, top_p=0.9)
    for max_attempts, later in ((1, False), (3, True)):
        flow = Attempts(chunk_tokens=10, max_chunks=4, max_attempts=max_attempts)
        trees, _ = evaluate(flow, explore, PROBLEMS, workers_of([]), Letters(), GRADER, {}, settings)
        drew = {"seed": 3, "temperature": 0.5, "top_p": 0.9} if later else {}
        assert decoding(flow, explore, trees, settings) == {"greedy": True, "num_samples": 1, **drew}
    words = "greedy, but later attempts sampled (temperature 0.5, top-p 0.9)"
    assert describe_decoding({"decoding": decoding(flow, explore, trees, settings)}) == words
    assert describe_decoding({"decoding": {"greedy": True, "num_samples": 1}}) == "greedy"


def test_stop_is_measured_at_every_attempt_of_a_rollout() -> None:
    """Each of its candidates is graded by itself, also those that were refused."""
    flow = Attempts(chunk_tokens=10, max_chunks=2, max_attempts=3, threshold=0.6)
    settings = EvaluationSettings(num_samples=3, greedy=False)
    trees, result = evaluate(flow, AttemptSiblings(), PROBLEMS, workers_of([]), Letters(), GRADER, {}, settings)
    judged: list[tuple[bool, bool]] = []
    for tree in trees:
        gold = tree.problem.gold
        for node in tree.trunk_nodes():
            if node.role == "stop":
                prompt = Letters().to_text([node.request.prompt_ids])
                judged.append((prompt.split("Answer:")[1].split()[0] == gold, node.completion.choice == 0))
    assert len(judged) > len(trees)
    found = result["stop"]
    assert found["num_candidates"] == {
        "unfinished": 0, "right": sum(right for right, _ in judged), "wrong": sum(not right for right, _ in judged),
    }  # fmt: skip
    for kind, wanted in (("right", True), ("wrong", False)):
        mine = [yes for right, yes in judged if right == wanted]
        assert found["yes_rate"][kind] == sum(mine) / len(mine)


def test_every_flow_with_an_answer_and_a_stop_has_its_attempt_and_its_pass() -> None:
    attempts = Attempts(chunk_tokens=10, max_chunks=2, max_attempts=3, threshold=0.7, retry="shown")
    assert one_attempt(attempts) == replace(attempts, max_attempts=1)
    made = one_attempt(FLOW)
    assert (made.chunk_tokens, made.max_chunks, made.max_attempts, made.threshold) == (10, 2, 1, None)
    assert (made.prompts.answer_system, made.prompts.no) == ("Be brief.", "Wrong")
    kept = {name: value for name, value in vars(FLOW.prompts).items() if name != "reopen"}
    assert one_pass(FLOW) == Single(max_tokens=20, prompts=RolePrompts(**kept))
    # Answer's prompts alone: a single pass has no retry and reopens nothing, and its settings are read as any other's.
    assert one_pass(replace(attempts, prompts=made.prompts)) == one_pass(FLOW)
    for flow in (Single(), PlanSolve()):
        with pytest.raises(ConfigError, match="a flow in which Stop judges attempts"):
            one_attempt(flow)


def test_an_exploration_of_attempts_evaluates_any_flow() -> None:
    """The trunk of a tree of attempts is what the plain flow gives with the same seed."""
    rows, _, _ = drawn(FLOW, AttemptSiblings())
    assert rows == drawn(FLOW)[0]
    alone = AttemptSiblings(temperature=0.7).alone(greedy=True)
    assert (alone.num_rollouts, alone.temperature, alone.greedy_trunk) == (1, 0.7, True)
    runner_trees = workers_of([]).submit(alone, one_pass(FLOW), PROBLEMS, seed=0).result().trees
    assert [len(tree.nodes) for tree in runner_trees] == [1] * 5


def kept(folder: Path, rows: Sequence[Prediction] | None = None, **facts: Any) -> FixedSet:
    made, result, _ = drawn(FLOW)
    write_predictions(folder, made if rows is None else rows, result | {"tokenizer": "t", "model": "m", **facts})
    return read(str(folder))


def test_stop_reads_the_tokens_that_were_sampled(tmp_path: Path) -> None:
    rows, _, asked = drawn(FLOW)
    fixed = kept(tmp_path / "kept")
    assert fixed.sha256 == hashlib.sha256((tmp_path / "kept" / "predictions.jsonl").read_bytes()).hexdigest()
    again: list[Request] = []
    flow = Judging(candidates=fixed.token_ids(), prompts=one_attempt(FLOW).prompts)
    found, measured = judge(fixed, flow, workers_of(again), {}, batch_problems=3)
    assert found == rows, "the same Stop says the same"
    before = {request.prompt_ids for request in asked if request.choices}
    assert before <= {request.prompt_ids for request in again}
    assert {request.choices for request in again} == {request.choices for request in asked if request.choices}
    num = measured["num"]
    finished = [row for row in rows if row.ended]
    assert (num["right"] + num["wrong"], num["cut"], num["ungraded"]) == (len(finished), 20 - len(finished), 0)
    assert num["unfinished"] == sum(len(row.token_ids or ()) > 1 for row in finished)
    # An oracle: all pairs of a right and a wrong one, and each half against each whole.
    yes = {kind: [row.yes or 0.0 for row in finished if row.verdict and row.verdict.status == kind]
           for kind in ("correct", "wrong")}  # fmt: skip
    pairs = [(a > b) + (a == b) / 2 for a in yes["correct"] for b in yes["wrong"]]
    assert measured["right_over_wrong"]["area"] == pytest.approx(sum(pairs) / len(pairs))
    halves = [probability(asked_half(row)) for row in finished if len(row.token_ids or ()) > 1]
    pairs = [(a > b) + (a == b) / 2 for a in yes["correct"] + yes["wrong"] for b in halves]
    assert measured["finished_over_unfinished"]["area"] == pytest.approx(sum(pairs) / len(pairs))
    assert measured["mean_yes"]["unfinished"] == pytest.approx(sum(halves) / len(halves))


def asked_half(row: Prediction) -> str:
    """Stop's prompt of the first half, as text."""
    half = row.solution[: len(row.solution) // 2]
    prompts = AnswerStopPrompts()
    user = prompts.stop_user.replace("{question}", row.question).replace("{candidate}", half)
    return f"<system>{prompts.stop_system}<user>{user}<assistant>"


def test_what_could_not_be_graded_is_judged_and_not_measured(tmp_path: Path) -> None:
    made = drawn(FLOW)[0]
    assert made[0].verdict is not None
    rows = [replace(row, verdict=replace(row.verdict, status="ungraded")) for row in made if row.verdict is not None]
    rows[-1] = next(row for row in made if row.ended and row.id == rows[-1].id)
    rows[-1] = replace(rows[-1], draw=9)
    fixed = kept(tmp_path / "kept", rows)
    flow = Judging(candidates=fixed.token_ids(), prompts=one_attempt(FLOW).prompts)
    found, measured = judge(fixed, flow, workers_of([]), {})
    assert measured["num"]["ungraded"] == sum(row.ended for row in rows) - 1
    assert measured["num"]["right"] + measured["num"]["wrong"] == 1
    assert measured["right_over_wrong"] == {"area": None, "interval": None}
    assert all(row.yes is not None for row in found if row.ended)


def test_what_is_no_fixed_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file; make one with flow-dpo evaluate --draws 4"):
        read(str(tmp_path))
    fixed = kept(tmp_path / "kept")
    assert read(str(fixed.path)).rows == fixed.rows
    check_fits(fixed, "t", "another model with this tokenizer", list(fixed.problems()))
    with pytest.raises(
        ConfigError, match=r"found those of m in .*another tokenizer; .*evaluate --model_name_or_path x"
    ):
        check_fits(fixed, "u", "x", list(fixed.problems()))
    with pytest.raises(ConfigError, match="found 2 that do not"):
        check_fits(fixed, "t", "m", list(fixed.problems())[2:])
    (tmp_path / "kept" / "summary.json").unlink()
    with pytest.raises(DataError, match=r"names the tokenizer .* found none; keep the evaluation's whole folder"):
        read(str(fixed.path))
    for change, message in (
        ({"token_ids": None}, "line 1: expected the sampled tokens .* an evaluation without --draws"),
        ({"ended": False}, "finished candidates in .* found none of 1"),
    ):
        (tmp_path / "predictions.jsonl").write_text(json.dumps(PREDICTION | change) + "\n")
        with pytest.raises(DataError, match=message):
            read(str(tmp_path))
    (tmp_path / "predictions.jsonl").write_text(2 * (json.dumps(PREDICTION) + "\n"))
    with pytest.raises(DataError, match="found some twice"):
        read(str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": 2, "num_samples": 2, "greedy": False}, "draws or num_samples, found both"),
        ({"draws": 2, "mode": "single"}, "leave out --mode, or use --num_samples"),
        ({"draws": -1}, "0 or more"),
        ({"candidates": "x", "draws": 2}, "leave out --draws"),
        ({"candidates": "x", "mode": "single"}, "leave out --draws, --num_samples, --mode"),
        ({"candidates": "x", "trained_on": "y"}, "--trained_on"),
    ],
)
def test_settings_that_exclude_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluationSettings(**settings)
