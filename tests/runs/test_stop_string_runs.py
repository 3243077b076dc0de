"""Does a run with stop strings sample, learn, record and go on as any other?"""

from __future__ import annotations

from pathlib import Path

import pytest

from flow_dpo.cli import train as commands
from flow_dpo.cli.evaluate import evaluate
from flow_dpo.learner.learner import Learner
from flow_dpo.models.load import load_model
from flow_dpo.runs.files import read_jsonl
from tests.support.run_equality import assert_same_run

WORDS = (
    "--max_problems",
    "12",
    "--problems_per_batch",
    "6",
    "--examples_per_update",
    "6",
    "--stop_strings",
    '[" 7", " 2"]',
)


@pytest.mark.slow
def test_a_run_of_which_some_answers_end_with_a_stop_string(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commands.train([*WORDS, "--output_dir", str(tmp_path / "whole")]) == 0
    trees = read_jsonl(tmp_path / "whole" / "trees.jsonl")
    nodes = [node for tree in trees for node in tree["nodes"] if node["role"] == "answer"]
    stopped = [node for node in nodes if node["finish_reason"] == "stop_string"]
    assert len(stopped) > 5
    renderer = load_model("seed").renderer
    for node in stopped:
        ids = tuple(node["token_ids"])
        assert any(string in renderer.to_text((ids,)) for string in (" 7", " 2"))
        assert not any(string in renderer.to_text((ids[:-1],)) for string in (" 7", " 2"))
    # What was written is without the string, and it counts as ended: Stop has judged it.
    solutions = [rollout for tree in trees for rollout in tree["rollouts"] if rollout["ended"]]
    assert len(solutions) > 5
    assert not any(string in rollout["text"] for rollout in solutions for string in (" 7", " 2"))
    assert any(node["role"] == "stop" for tree in trees for node in tree["nodes"])
    rows = read_jsonl(tmp_path / "whole" / "metrics.jsonl")
    drifts = [row[name] for row in rows for name in row if name.endswith("logprob_drift")]
    assert drifts
    assert max(drifts) < 1e-3
    update, calls = Learner.update, iter(range(9))

    def interrupted(self: Learner, *words: object) -> object:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return update(self, *words)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            commands.train([*WORDS, "--output_dir", str(tmp_path / "torn")])
    assert commands.train(["--output_dir", str(tmp_path / "torn"), "--resume"]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "torn")
    words = ["--run", str(tmp_path / "torn"), "--max_problems", "4", "--output_dir", str(tmp_path / "evaluation")]
    assert evaluate(words) == 0
