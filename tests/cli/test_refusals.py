"""Is a value that does not fit refused in one plain line that names the flag, and a folder that cannot be written to
before anything is computed?"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import flow_dpo
from flow_dpo.cli.main import _Messages, main
from flow_dpo.cli.train import parse_train
from flow_dpo.core.answer_stop import AnswerStop
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.explore import Group, Siblings
from flow_dpo.data.problems import DataSettings
from flow_dpo.evaluate.evaluate import EvaluationSettings
from flow_dpo.evaluate.run import _measure_open
from flow_dpo.recipes.presets import RECIPES
from flow_dpo.recipes.single import Single
from flow_dpo.runs.given_objects import GivenObjects, problem_set
from flow_dpo.runs.run_folder import locked, refuse_others, refuse_used
from flow_dpo.runs.writable import check_writable


def refused(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_train("flow-dpo train", words, {})
    message = str(caught.value)
    assert "\n" not in message
    assert "class" not in message, "a type of Python's is no word for a user"
    return message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--max_problems ten", "expected a whole number or null for --max_problems, found 'ten'"),
        ("--data.max_problems 1.5", "expected a whole number or null for --data.max_problems, found '1.5'"),
        ("--learning_rate abc", "expected a number for --learning_rate, found 'abc'"),
        ("--beta nan", "expected a number for --beta, found 'nan'"),
        ("--resume maybe", "expected true or false for --resume, found 'maybe'"),
        ("--dtype bf16", "or float16 for --dtype, found 'bf16'; did you mean bfloat16?"),
        ("--learner.reference.kind bse", "base or snapshot for --learner.reference.kind, found 'bse'; did you"),
        ("--on_refused_end maybe", "expected reopen or accept for --on_refused_end, found 'maybe'"),
        ("--flow critique", "expected --flow FILE.py:NAME, a flow of your own, found 'critique'"),
        ("--objective Ipo", "of --objective (--beta, --label_smoothing, --sft_weight, --margin_weight), found"),
        ("--credit X", "found 'X' for all of them; --recipe chooses its kind"),
        ("--run x", "one of the settings of --run (--output_dir, --seed, --problems_per_batch, --lag, ...)"),
        ("--roles answer", "expected a list, each a text, as in '[a, b]' for --roles, found 'answer'"),
        ("--tag_weights {finished:2}", "as in '{name: value}' with a space after the colon for --tag_weights, found"),
        ("--flow.prompts.examples [{question: q, solutoin: s}]", "a list, each {question: ..., solution: ...}, as in"),
        ("--max_problems", "expected a value after --max_problems, found none"),
        ("--recipe", "expected a value after --recipe, found none"),
    ],
)  # fmt: skip
def test_what_is_of_another_type_is_refused_in_words(words: str, message: str) -> None:
    assert message in refused("--recipe=flow-dpo-paper", *words.split(" ", 1))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--temperature 0", "--temperature: expected temperature above 0 (greedy_trunk takes the likeliest token)"),
        ("--choice_temperature -1", "--choice_temperature: expected choice_temperature above 0"),
        ("--top_p 2", "--top_p: expected top_p above 0 and at most 1, found 2.0"),
        ("--max_problems -5", "--max_problems: expected max_problems of 1 or more, or none for all, found -5"),
        ("--skip_problems -1", "--skip_problems: expected skip_problems of 0 or more, found -1"),
        ("--problems_per_batch 0", "--problems_per_batch: expected problems_per_batch of 1 or more, found 0"),
        ("--chunk_tokens 0", "--chunk_tokens: expected chunk_tokens of 1 or more, found 0"),
        ("--flow.max_chunks 0", "--flow.max_chunks: expected max_chunks of 1 or more, found 0"),
        ("--num_alternatives -1", "--num_alternatives: expected num_alternatives of 0 or more, found -1"),
        ("--num_threads -1", "--num_threads: expected num_threads from 0 to 4096, found -1"),
        ("--num_threads 5000", "--num_threads: expected num_threads from 0 to 4096, found 5000"),
        ("--max_problems 99999999999999999999", "--max_problems: expected max_problems to be at most 9223372036854775"),
        ("--beta 1e400", "--beta: expected beta to be a finite number, found inf"),
        ("--recipe=flow-dpo-paper --sft_weight -1e999", "--sft_weight: expected sft_weight to be a finite number"),
        ("--model_name_or_path=", "expected model_name_or_path to be a folder, a hub id or seed, found none"),
        ("--window 0", "--window: expected window of 1 or more, found 0"),
        ("--checkpoint_batches 0", "--checkpoint_batches: expected"),
        ("--save_updates -1", "--save_updates: expected"),
        ("--budget_tokens -1", "--budget_tokens: expected"),
        ("--kv_budget_gib 0", "--kv_budget_gib: expected"),
        ("--output_dir=", "--output_dir: expected output_dir to name a folder, found ''"),
        ("--recipe=grpo --num_rollouts 0", "--num_rollouts: expected num_rollouts of 1 or more, found 0"),
        ("--recipe=dots --temperature 0", "--temperature: expected temperature above 0"),
        ("--recipe=regenesis --explore.plan_tokens 0", "--explore.plan_tokens: expected plan_tokens of 1 or more"),
        ("--recipe=cpl --max_plan_steps 0", "--max_plan_steps: expected"),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_refused_by_its_flag(words: str, message: str) -> None:
    assert message in refused(*words.split(" "))


def test_a_file_is_named_with_the_setting_in_it(tmp_path: Path) -> None:
    file = tmp_path / "given.yaml"
    for text, message in [
        ("learner: {learning_rate: fast}", f"{file}: expected a number for learner.learning_rate, found 'fast'"),
        ("temperature: 0", f"{file}: explore.temperature: expected temperature above 0"),
        ("dtype: bf16", f"{file}: expected auto, float32, bfloat16 or float16 for model.dtype, found 'bf16'; did"),
    ]:
        file.write_text(text)
        assert message in refused("--config", str(file))
    file.write_text("max_problems: yes")
    assert f"{file}: expected a whole number or null for data.max_problems, found True" in refused(
        "--config", str(file)
    )
    file.write_text("1: 2")
    assert refused("--config", str(file)).endswith("unknown setting 1 in " + str(file) + "; --help lists all settings")
    file.write_text("beta: {{")
    assert refused("--config", str(file)).startswith(f"expected YAML in {file}, line 1: ")
    assert refused("--config") == "expected a YAML file after --config, found none"
    assert "or --help" in refused("--hlep")
    # The flag overrides what is wrong in the file, and what is wrong in the file's other settings stays wrong.
    file.write_text("output_dir: 5")
    assert parse_train("flow-dpo train", ("--config", str(file), "--output_dir", "here"), {}).run.output_dir == "here"
    file.write_text("max_problems: ten")
    assert str(file) in refused("--config", str(file), "--beta", "0.5")


def test_parts_made_in_python_are_refused_as_well() -> None:
    makes: list[Callable[[], object]] = [
        lambda: Siblings(temperature=0),
        lambda: Siblings(top_p=0),
        lambda: Siblings(num_alternatives=-1),
        lambda: Group(num_rollouts=0),
        lambda: AnswerStop(chunk_tokens=0),
        lambda: Single(max_tokens=0),
        lambda: EvaluationSettings(batch_problems=0),
    ]
    for make in makes:
        with pytest.raises(ConfigError, match=r"expected \w+ (of|above) [01]"):
            make()
    objects: dict[str, Any] = {"flow": "x", "grader": 5, "callbacks": 5}
    for name, value in objects.items():
        with pytest.raises(ConfigError, match=f"expected {name} to have"):
            GivenObjects(**{name: value})
    with pytest.raises(ConfigError, match="the name of a data set, problems or rows with columns, found 5"):
        problem_set(cast(Any, 5), DataSettings())
    runtime: Any = SimpleNamespace(recipe=RECIPES["flow-dpo"]["seed"].recipe)
    with pytest.raises(ConfigError, match="unknown setting num_sample of an open runtime; did you mean num_samples"):
        _measure_open(runtime, GivenObjects(), {"num_sample": 3})


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_refuses_no_temperature(name: str) -> None:
    assert "--temperature: expected" in refused("--recipe", name, "--temperature", "0")


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_trial_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b" / "c")
    assert not (tmp_path / "a").exists()
    (tmp_path / "kept").mkdir()
    check_writable(tmp_path / "kept" / "b")
    assert list((tmp_path / "kept").iterdir()) == []


def places(tmp_path: Path) -> Sequence[tuple[str, str]]:
    file = tmp_path / "file"
    file.write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    return [
        (str(file), "the file"),
        (str(file / "below" / "it"), "found the file"),
        (str(link), "found the file"),
        ("/dev/null/run", "found the file /dev/null in its way"),
        (f"/proc/{tmp_path.name}", "can be written to"),  # the superuser, too, can make nothing there
        (str(tmp_path / ("n" * 300)), "can be written to"),
    ]


COMMANDS = {
    "train": ("--max_problems", "2"),
    "evaluate": ("--max_problems", "2"),
    "generate": ("--max_problems", "2"),
    "export": ("--source", "{traces}"),
    "sft": ("--traces", "{traces}"),
    "judge": ("--traces_a", "{traces}", "--traces_b", "{traces}", "--base_url", "http://127.0.0.1:9/v1"),
    "report": ("{traces}",),
    "compare": ("--max_problems", "2", "--compare.arms", "[zero_shot]"),
}


@pytest.mark.parametrize("command", [*COMMANDS, "verify"])
def test_a_folder_that_cannot_be_written_to_is_refused_first(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 1, one line and no traceback; nothing is loaded and nothing is written anywhere."""
    traces = tmp_path / "traces.jsonl"
    traces.write_text(TRACE)
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"gold": "5", "model_output": "Answer: 5"}\n')
    monkeypatch.setattr("flow_dpo.models.load.load_model", lambda *_: pytest.fail("a model was loaded"))
    flag = "--output" if command == "verify" else "--output_dir"
    words = (str(answers),) if command == "verify" else COMMANDS[command]
    for place, message in places(tmp_path):
        before = sorted(tmp_path.rglob("*"))
        assert main([command, *(word.format(traces=traces) for word in words), flag, place]) == 1, place
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert message in said, (place, said)
        assert sorted(tmp_path.rglob("*")) == before, place


TRACE = (
    '{"schema": "trace/1", "problem_id": "p/1", "question": "1 + 1 = ?", "gold": "2", "dataset": "p", '
    '"worked_solution": "", "level": "", "subject": "", "messages": [{"role": "user", "content": "1 + 1 = ?"}], '
    '"solution": "Answer: 2", "token_ids": [5, 6], "ended": true, '
    '"verdict": {"status": "correct", "answer": "2", "reason": ""}, "source": "self_generated", "draw": 1, '
    '"draws_used": 1, "tokens_spent": 3}\n'
)


def test_an_error_of_the_system_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Sequence[str]) -> int:
        raise PermissionError(13, "Permission denied", "runs/x")

    monkeypatch.setattr("flow_dpo.cli.verify.verify", fails)
    assert main(["verify"]) == 1
    assert capsys.readouterr().err == "flow-dpo: could not read or write: [Errno 13] Permission denied: 'runs/x'\n"


def test_a_name_that_is_none_is_refused_in_every_mapping(tmp_path: Path) -> None:
    """Whatever names roles: a misspelled one would be dropped, and its role learn at another rate, or not at all."""
    for recipe, setting, names, message in [
        (
            "flow-dpo-paper",
            "learner.roles",
            {"anwser": {"learning_rate": 1e-4}},
            r"roles of the flow \(answer, stop\) in .* did you mean answer",
        ),
        ("flow-dpo-paper", "credit.roles", ["anwser"], r"\(answer, stop\) in .*'anwser'; did you mean answer"),
        ("flow-dpo-paper", "credit.tag_weights", {"finishd": 2.0}, r"tags of the flow .*'finishd'; did you mean fini"),
        ("malt", "credit.sft_roles", ["refien"], r"in credit.sft_roles, found 'refien'; did you mean refine"),
        ("malt", "credit.pair_roles", ["answer"], r"\(generate, verify, refine\) in credit.pair_roles, found 'answer'"),
        ("cpl", "credit.valued_by", "value", r"\(plan, answer\) in credit.valued_by, found 'value'"),
        ("cpl", "explore.valued_by", "value", r"\(plan, answer\) in explore.valued_by, found 'value'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            flow_dpo.train("seed", recipe=recipe, output_dir=tmp_path / "run", quiet=True, settings={setting: names})
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["--run", "--adapter"])
def test_an_empty_name_of_a_run_is_not_the_untrained_model(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as of a shell's variable that was never set."""
    assert main(["evaluate", flag, "", "--output_dir", "unused"]) == 1
    assert f"expected a folder in {flag}, found none" in capsys.readouterr().err


def test_no_command_writes_into_a_folder_without_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    """It would be the one that the user stands in."""
    for command in ("train", "evaluate", "generate", "export", "sft", "compare", "judge", "report x"):
        assert main([*command.split(), "--output_dir", ""]) == 1
        assert "expected output_dir to name a folder, found ''" in capsys.readouterr().err, command


def test_a_folder_holds_one_thing(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    refuse_others(tmp_path, own="summary.json")
    with pytest.raises(ConfigError, match="already holds an evaluation"):
        refuse_used(tmp_path, resumes=True)
    (tmp_path / "config.yaml").write_text("seed: 1")
    with pytest.raises(ConfigError, match="already holds a run"):
        refuse_others(tmp_path, own="summary.json")
    with pytest.raises(ConfigError, match="add --resume to continue it"):
        refuse_used(tmp_path, resumes=True)
    with pytest.raises(ConfigError, match="holds a run; name another"):
        refuse_used(tmp_path)
    with pytest.raises(ConfigError, match="~ is not expanded"):
        check_writable(Path("~/flow-dpo"))


def test_a_folder_in_use_is_refused_with_its_process(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "run"),
        pytest.raises(ConfigError, match=rf"another process( \(pid {os.getpid()}\))? writes to"),
        locked(tmp_path / "run"),
    ):
        pass


def test_messages_go_to_the_standard_error_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """While progress is drawn another stream stands there, which writes above it."""
    handler, late = _Messages(), io.StringIO()
    monkeypatch.setattr("sys.stderr", late)
    handler.emit(logging.LogRecord("flow_dpo", logging.WARNING, "", 0, "kept above", (), None))
    assert late.getvalue() == "kept above\n"
