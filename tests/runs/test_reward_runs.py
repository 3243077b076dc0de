"""Does a run learn by reward functions, go on with them, and run no code that nobody named?"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

import flow_dpo
from flow_dpo.cli.main import main
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.data.problems import DataSettings
from flow_dpo.evaluate.during import watchers
from flow_dpo.evaluate.while_training import WhileTrainingSettings
from flow_dpo.verify.grader import GradingSettings

ROWS = [
    {"prompt": [{"role": "user", "content": f"Mia has {n} shells. She buys 4 shells. How many has she?"}], "least": 2}
    for n in range(8)
]
SMALL: dict[str, Any] = {"run.problems_per_batch": 4, "explore.num_rollouts": 4}


def lines(completions: list[Any], least: list[int], **_: Any) -> list[float]:
    texts = [one if isinstance(one, str) else one[0]["content"] for one in completions]
    return [text.count("\n") / least[0] for text in texts]


def test_the_trainer_learns_rows_without_answers_by_a_function(tmp_path: Path) -> None:
    args = flow_dpo.FlowDPOConfig(output_dir=str(tmp_path / "run"), settings=SMALL)
    flow_dpo.FlowDPOTrainer("seed", reward_funcs=lines, args=args, train_dataset=ROWS, recipe="grpo").train()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["rewards/lines/mean"] == row["reward"] > 0 for row in rows)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    # The function, its weight, and a checksum of its source, which a resumed run must share.
    assert re.fullmatch(rf"{__name__}:lines x 1 \([0-9a-f]{{8}}\)", facts["given"]["grader"])
    tree = json.loads((tmp_path / "run" / "trees.jsonl").read_text().splitlines()[0])
    verdict = tree["rollouts"][0]["verdict"]
    assert verdict["value"] == tree["rollouts"][0]["text"].count("\n") / 2
    assert "columns" not in tree["problem"]


def test_a_failing_function_leaves_a_run_that_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    code = "def few(completions):\n    return [1 / (1 + len(text)) for text in completions]\n"
    reward, run = tmp_path / "rewards.py", tmp_path / "run"
    reward.write_text(code)
    flags = ["--recipe", "grpo", "--problems_per_batch", "4", "--num_rollouts", "4", "--max_problems", "8"]
    flags = ["train", "--reward", f"{reward}:few", *flags, "--output_dir"]
    assert main([*flags, str(tmp_path / "whole")]) == 0
    count = tmp_path / "count"
    reward.write_text(
        f"import pathlib\nP = pathlib.Path({str(count)!r})\ndef few(completions):\n"
        "    P.write_text('x' if not P.exists() else 'xx')\n    assert P.read_text() == 'x'\n"
        "    return [1 / (1 + len(text)) for text in completions]\n"
    )
    assert main([*flags, str(run)]) != 0
    assert json.loads((run / "metrics.jsonl").read_text())["problems_seen"] == 4
    reward.write_text(code)
    resume = ["train", "--output_dir", str(run), "--resume"]
    assert main(resume) != 0  # other code
    assert main([*resume, "--allow", "reward_files"]) == 0
    for name in ("trees.jsonl", "scored.jsonl"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # The code that a folder names is not run unless a flag names it.
    shutil.move(run, tmp_path / "foreign")
    assert main(["evaluate", "--run", str(tmp_path / "foreign"), "--output_dir", str(tmp_path / "e")]) != 0
    assert not (tmp_path / "e").exists()


def test_what_cannot_grade_is_refused(tmp_path: Path) -> None:
    def needs(completions: list[str], colour: list[str]) -> list[float]:
        return [0.0 for _ in completions]

    with pytest.raises(ConfigError, match="colour"):
        flow_dpo.train("seed", max_problems=2, output_dir=tmp_path / "a", reward_funcs=needs, quiet=True)
    with pytest.raises(ConfigError, match="both"):
        flow_dpo.train("seed", output_dir=tmp_path / "b", reward_funcs=lines, grader=object(), quiet=True)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="boom"):
        flow_dpo.train("seed", max_problems=2, output_dir=tmp_path / "c", reward_funcs=_boom, quiet=True)


def _boom(completions: list[str]) -> list[float]:
    raise RuntimeError("boom")


def test_a_run_that_python_graded_is_told_where_the_verifier_grades_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def long(completions: list[str], **_: Any) -> list[float]:
        return [float(len(each) > 40) for each in completions]

    run = str(tmp_path / "run")
    flow_dpo.train("seed", max_problems=4, output_dir=run, quiet=True, reward_funcs=[long])
    words = ["--run", run, "--max_problems", "2"]
    for command in (["evaluate", *words], ["generate", *words, "--max_traces", "1"]):
        caplog.clear()
        assert main([*command, "--output_dir", str(tmp_path / command[0])]) in (0, 1)
        assert [m for m in caplog.messages if m.startswith(f"{run} was graded by ") and "here the verifier grades" in m]
    caplog.clear()
    flow_dpo.evaluate_flow(run, max_problems=2, output_dir=str(tmp_path / "by it"), reward_funcs=[long])
    assert main(["evaluate", "--max_problems", "2", "--output_dir", str(tmp_path / "base")]) == 0
    assert not [message for message in caplog.messages if "was graded by" in message]


def test_the_next_command_allows_the_code_that_the_run_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewards = tmp_path / "by length.py"
    rewards.write_text("def short(completions, **_):\n    return [1.0 / (1 + len(each)) for each in completions]\n")
    words = ["train", "--max_problems", "2", "--output_dir", str(tmp_path / "run"), "--reward", f"{rewards}:short"]
    assert main(words) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Next:")]
    following = shlex.split(line.partition(" evaluate ")[2])
    assert (
        main(["evaluate", *following[:-3], *following[-1:], "--max_problems", "2", "--output_dir", str(tmp_path / "e")])
        == 0
    )


def test_held_out_problems_have_the_columns_that_functions_read(tmp_path: Path) -> None:
    """And no gold answer, as those that are trained on; where they lack a column, nothing is begun."""
    rewards = tmp_path / "limits.py"
    rewards.write_text("def limit(completions, most):\n    return [float(len(each)) for each in completions]\n")
    for split, row in (("train", {"most": 3}), ("test", {"most": 2.5}), ("other", {"least": 2})):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"prompt": "2 + 2 = ?", **row}) + "\n")
    data, grading = DataSettings(dataset_name=str(tmp_path)), GradingSettings(rewards=(f"{rewards}:limit",))
    [made] = watchers(data, WhileTrainingSettings(eval_steps=1), grading)
    [problem] = cast("Any", made).args[0].problems
    assert (problem.gold, problem.columns["most"]) == ("", 2.5)
    with pytest.raises(ConfigError, match=r"expected the arguments of the reward function limit among .*found most"):
        watchers(data, WhileTrainingSettings(eval_steps=1, eval_split="other"), grading)
