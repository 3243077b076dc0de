"""Are traces the right attempts and nothing else, within their budget, and does a file of them tell how it was made?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.cli import generate as trace_commands
from flow_dpo.cli import main
from flow_dpo.core.answer_stop import AnswerStop
from flow_dpo.core.engine import Engine
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.explore import Siblings
from flow_dpo.core.protocols import Backends
from flow_dpo.core.types import Problem, Request, Solution, TokenIds
from flow_dpo.engines.scripted import ScriptedEngine, ScriptedReply
from flow_dpo.models.render import Renderer
from flow_dpo.runs.adapters import one_pass
from flow_dpo.runs.files import read_jsonl
from flow_dpo.traces.generate import GenerateSettings, Tally, generate
from flow_dpo.traces.trace import SelectionSettings, Trace, read_traces
from flow_dpo.verify.extract import AnswerRule
from flow_dpo.verify.grader import AnswerGrader, GradingSettings
from flow_dpo.verify.verifier import Verifier
from flow_dpo.workers.in_process import InProcessWorkers
from tests.support.chat_models import chat_tokenizer
from tests.support.once import Once

RENDERER = Renderer(chat_tokenizer("llama"))
END = RENDERER.closing_id()
assert END is not None
PROBLEMS = [Problem(id=f"p{i}", question=f"{i} + 1 = ?", gold=str(i + 1), source="made/up") for i in range(4)]
FLOW = AnswerStop(chunk_tokens=400, max_chunks=4)


def script(attempts: dict[str, list[str]], stop: list[int]) -> ScriptedEngine:
    """An engine that writes a question's next attempt in one chunk; its Stop says the words of `stop` in turn."""
    said = {question: iter(words) for question, words in attempts.items()}
    words = iter(stop)

    def speak(request: Request, seed: int, excluded: TokenIds) -> ScriptedReply | Sequence[int]:
        if request.choices:
            return ScriptedReply(choice=next(words))
        text = RENDERER.to_text([request.prompt_ids])
        [question] = [question for question in said if question in text]
        return (*RENDERER.encode(next(said[question])), END)

    return ScriptedEngine(speak, end_ids={END})


def traces_of(
    engine: Engine,
    problems: Sequence[Problem],
    *,
    flow: AnswerStop = FLOW,
    rule: AnswerRule | None = None,
    selection: SelectionSettings | None = None,
    at_once: int = 1,
    **settings: Any,
) -> tuple[list[Trace], Tally]:
    rule = rule or AnswerRule()
    with Verifier(rule=rule) as verifier:
        grader = AnswerGrader(verifier, RENDERER, GradingSettings(rule=rule))
        workers = InProcessWorkers(Backends(engine=engine, renderer=RENDERER, grader=grader))
        batches = generate(
            flow, one_pass(flow), Siblings(), problems, workers, RENDERER, grader, {}, GenerateSettings(**settings),
            selection or SelectionSettings(), batches_at_once=at_once,
        )  # fmt: skip
        done = list(batches)
    return [trace for traces, _ in done for trace in traces], done[-1][1]


def test_only_the_attempt_that_produced_the_answer_is_a_trace() -> None:
    """Stop refuses the first attempt; the reopening words in the model's own mouth are no cut."""
    own = "Wait, this is wrong. Let me solve it again in a different way.\nso 2\nAnswer: 2"
    engine = script({"1 + 1": ["I say 3\nAnswer: 3", own]}, stop=[1, 0])
    [trace], tally = traces_of(engine, PROBLEMS[1:2], num_samples=1)
    assert trace.solution == own
    assert trace.token_ids == RENDERER.encode(own)
    assert trace.verdict.status == "correct"
    assert (trace.source, trace.dataset, trace.ended) == ("untrained_flow", "made/up", True)
    assert trace.messages[-1] == {"role": "user", "content": "1 + 1 = ?"}
    assert trace.messages[0]["role"] == "system"
    # The play, and the attempt by itself.
    assert tally.verdicts_used == 2
    assert tally.tokens_sampled == trace.tokens_spent == len(RENDERER.encode("I say 3\nAnswer: 3" + own)) + 2 + 2


def test_a_right_play_whose_last_attempt_is_not_right_by_itself_is_no_trace() -> None:
    """Read anywhere, the play's answer stands in the attempt that was given up without a word against it."""
    flow = replace(FLOW, prompts=replace(FLOW.prompts, reopen="\nOnce more.\n"))
    engine = script({"1 + 1": ["Answer: 2", "I give up"]}, stop=[1, 0])
    found, tally = traces_of(engine, PROBLEMS[1:2], num_samples=1, flow=flow, rule=AnswerRule(which="anywhere"))
    assert found == []
    assert (tally.correct_draws, tally.unsound_attempts, tally.problems_solved) == (1, 1, 0)


def test_words_that_close_a_line_are_nobodys() -> None:
    solution = Solution(pieces=("x", (5,), "again", (6,), " so ", (7, 8), "\n"), ended=False, attempt_start=3)
    assert solution.attempt == ((6,), " so ", (7, 8))
    assert replace(solution, pieces=((5,), "again"), attempt_start=2).attempt == ()


@pytest.mark.parametrize("max_chunks", [3, 1])
def test_a_whole_answer_that_fills_its_chunk_is_a_trace(max_chunks: int) -> None:
    """Accepted by Stop, or written in the last chunk: the next token shows whether "Answer: 2" was all, or 25."""
    flow = AnswerStop(chunk_tokens=len(RENDERER.encode("Answer: 2")), max_chunks=max_chunks)
    whole = script({"1 + 1": ["Answer: 2", ""]}, stop=[0])
    [trace], _ = traces_of(whole, PROBLEMS[1:2], flow=flow, num_samples=1)
    assert trace.token_ids == RENDERER.encode("Answer: 2")
    assert trace.ended
    cut = script({"1 + 1": ["Answer: 25", "5"]}, stop=[0])
    found, tally = traces_of(cut, PROBLEMS[1:2], flow=flow, num_samples=1)
    assert found == []
    assert tally.correct_draws == 0


def test_a_budget_is_a_maximum() -> None:
    """Each problem is drawn until it is solved: p0 once, p1 twice, p2 in vain."""
    attempts = {"0 + 1": ["Answer: 1"], "1 + 1": ["Answer: 7", "Answer: 2"], "2 + 1": ["Answer: 8"] * 3}
    found, tally = traces_of(script(attempts, stop=[0] * 6), PROBLEMS[:3], num_samples=3)
    assert [(t.problem_id, t.draw, t.draws_used) for t in found] == [("p0", 1, 1), ("p1", 2, 2)]
    assert (tally.draws, tally.num_problems_sampled, tally.problems_solved, tally.traces) == (6, 3, 2, 2)
    # Each draw is an answer, its end token, and Stop's word.
    assert found[1].tokens_spent == sum(len(RENDERER.encode(words)) + 2 for words in attempts["1 + 1"])
    assert tally.tokens_sampled == sum(len(RENDERER.encode(w)) + 2 for words in attempts.values() for w in words)


WORDS = ["a long way to it\nAnswer: 2", "Answer: 2", "a way to it\nAnswer: 2", "Answer: 2", "Answer: 3"]


@pytest.mark.parametrize(
    ("selection", "kept", "draws"),
    [
        (SelectionSettings(), [0], 1),
        (SelectionSettings(traces_per_problem=3), [0, 1, 2], 3),
        (SelectionSettings(take="shortest"), [1], 5),
        (SelectionSettings(take="shortest", traces_per_problem=2), [1, 2], 5),
        (SelectionSettings(take="shortest", traces_per_problem=9), [1, 2, 0], 5),
        (SelectionSettings(traces_per_problem=4), [0, 1, 2], 5),
        (SelectionSettings(traces_per_problem=4, deduplicate=False), [0, 1, 2, 1], 4),
    ],
)
def test_selection(selection: SelectionSettings, kept: list[int], draws: int) -> None:
    engine = script({"1 + 1": WORDS}, stop=[0] * 5)
    found, tally = traces_of(engine, PROBLEMS[1:2], num_samples=5, selection=selection)
    assert [trace.solution for trace in found] == [WORDS[index] for index in kept]
    assert tally.draws == draws
    assert all(trace.draws_used == draws for trace in found)


def test_ground_truth_is_the_data_sets_own_solution_where_it_is_right() -> None:
    """GSM8K's calculator notes go; a solution that states another answer, or none that is there, gives no trace."""
    problems = [
        replace(PROBLEMS[0], solution="0 + 1 = <<0+1=1>>1"),
        replace(PROBLEMS[1], solution="1 + 1 = 3\nAnswer: 3"),
        PROBLEMS[2],
        replace(PROBLEMS[3], solution="3 + 1 = 4\nAnswer: 4"),
    ]
    traces, tally = traces_of(script({}, stop=[]), problems, mode="ground_truth")
    assert [trace.solution for trace in traces] == ["0 + 1 = 1\nAnswer: 1", "3 + 1 = 4\nAnswer: 4"]
    assert {trace.source for trace in traces} == {"ground_truth"}
    assert traces[0].token_ids == RENDERER.encode(traces[0].solution)
    assert (tally.num_problems_sampled, tally.problems_solved, tally.draws, tally.tokens_sampled) == (4, 2, 0, 0)
    assert tally.verdicts_used == 3


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_enough_is_enough_however_many_batches_are_under_way(at_once: int) -> None:
    attempts = {problem.question[:5]: ["Answer: 77", f"Answer: {problem.gold}"] for problem in PROBLEMS}
    engine = script(attempts | {"0 + 1": ["Answer: 1"]}, stop=[0] * 8)
    traces, tally = traces_of(engine, PROBLEMS, max_traces=2, batch_problems=1, at_once=at_once, num_samples=2)
    assert [(trace.problem_id, trace.draw) for trace in traces] == [("p0", 1), ("p1", 2)]
    assert (tally.num_problems_sampled, tally.draws, tally.correct_draws, tally.traces) == (2, 3, 2, 2)


@pytest.fixture(scope="module")
def seed_traces(once: Once) -> Path:
    return once("traces", _sample) / "flow"


def _sample(folder: Path) -> None:
    words = ["--max_problems", "12", "--num_samples", "3", "--batch_problems", "5"]
    assert trace_commands.generate([*words, "--output_dir", str(folder / "flow")]) == 0


def test_a_folder_of_traces_says_how_it_was_made(seed_traces: Path) -> None:
    file = read_traces(seed_traces)
    header = file.header
    assert header["complete"]
    assert header["selection"].startswith("the first correct, at most 1 a problem")
    assert header["settings"]["generate"]["num_samples"] == 3
    assert header["settings"]["flow"]["chunk_tokens"] == 16
    assert header["counts"]["traces"] == len(file.traces) > 3
    assert header["counts"]["num_problems_sampled"] == 12
    assert header["cost"]["tokens_sampled"] > sum(trace.tokens_spent for trace in file.traces)
    assert header["cost"]["seconds"] > 0
    with Verifier() as verifier:
        for trace in file.traces:
            assert verifier.grade(trace.gold, trace.solution, ended=True).status == "correct"
            assert "Wait" not in trace.solution
    with pytest.raises(ConfigError, match="already holds traces"):
        trace_commands.generate(["--output_dir", str(seed_traces)])


def test_batches_change_nothing(seed_traces: Path, tmp_path: Path) -> None:
    words = [
        "--max_problems",
        "12",
        "--num_samples",
        "3",
        "--batch_problems",
        "64",
        "--output_dir",
        str(tmp_path / "t"),
    ]
    assert trace_commands.generate(words) == 0
    assert read_traces(tmp_path / "t").traces == read_traces(seed_traces).traces


def test_what_was_written_outlives_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = trace_commands.print_safe, iter(range(9))

    def interrupt(*words: Any) -> None:
        whole(*words)
        if next(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(trace_commands, "print_safe", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trace_commands.generate(
            ["--max_problems", "12", "--num_samples", "2", "--batch_problems", "4", "--mode", "single",
             "--output_dir", str(tmp_path / "t")]
        )  # fmt: skip
    file = read_traces(tmp_path / "t")
    assert not file.header["complete"]
    assert file.header["source"] == "self_generated"
    assert file.header["counts"]["num_problems_sampled"] == 8
    assert file.header["counts"]["traces"] == len(file.traces)


def test_bad_input_is_refused(tmp_path: Path, seed_traces: Path) -> None:
    with pytest.raises(ConfigError, match="num_samples of at least 1"):
        trace_commands.generate(["--num_samples", "0", "--output_dir", str(tmp_path / "no")])
    with pytest.raises(DataError, match="expected a run folder"):
        trace_commands.generate(["--run", str(tmp_path / "nowhere")])
    with pytest.raises(ConfigError, match="a run or an adapter"):
        trace_commands.generate(["--run", "a", "--adapter", "b"])
    with pytest.raises(DataError, match="no such file"):
        read_traces(tmp_path / "nowhere")
    row = read_jsonl(seed_traces / "traces.jsonl")[0]
    for change, message in [
        ({"verdict": {"status": "wrong", "answer": None, "reason": ""}}, "verdict 'wrong'"),
        ({"token_ids": "5 6"}, "expected a list of token ids .* in 'token_ids', found '5 6'"),
        ({"verdict": None}, "expected an object in 'verdict', found None"),
    ]:
        file = tmp_path / "bad.jsonl"
        file.write_text(json.dumps(row | change) + "\n")
        with pytest.raises(DataError, match=message):
            read_traces(file)
    (tmp_path / "bare.jsonl").write_text('{"question": "x"}\n')
    with pytest.raises(DataError, match="line 1: expected the schema 'trace/1', found none: another kind of file, or"):
        read_traces(tmp_path / "bare.jsonl")


def test_a_generate_that_found_no_trace_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"question": "Ann has 2 apples and finds 3 more. How many has she?", "answer": "never"}
    (tmp_path / "none.jsonl").write_text(json.dumps(row) + "\n")
    words = ["--dataset_name", str(tmp_path / "none.jsonl"), "--num_samples", "2", "--output_dir", str(tmp_path / "t")]
    assert main.main(["generate", "--mode", "single", *words]) == 1
    shown = capsys.readouterr()
    assert "1 problems: 0 traces on 0; 0 of 2 draws right" in shown.out
    assert "found none on 1 problems: 0 of 2 draws were right, 0 could not be graded" in shown.err
    assert "allow more draws (--num_samples)" in shown.err
    found = read_traces(tmp_path / "t", none_allowed=True)
    assert (found.traces, found.header["complete"], found.header["counts"]["draws"]) == ((), True, 2)
    with pytest.raises(DataError, match="found none; generate more"):
        read_traces(tmp_path / "t")
