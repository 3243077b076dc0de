"""Is what was done kept, and nothing else begun, whenever a command is interrupted, refused or resumed?"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import flow_dpo
from flow_dpo.cli import train as commands
from flow_dpo.cli.evaluate import evaluate
from flow_dpo.cli.generate import generate
from flow_dpo.core.errors import ConfigError, DataError, EngineError
from flow_dpo.engines.local.engine import LocalEngine
from flow_dpo.learner.learner import Learner
from flow_dpo.runs import resumption, run_folder, runtime, training
from flow_dpo.runs.files import read_jsonl
from tests.support.run_equality import assert_same_run

WORDS = ("--max_problems", "6", "--problems_per_batch", "3", "--examples_per_update", "6", "--beta", "0.5")


def train(folder: Path, *more: str) -> int:
    return commands.train([*WORDS, "--output_dir", str(folder), *more])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder)
    return folder


class Interruption:
    """Raises at the n-th call of something, once; counts all calls."""

    def __init__(self, after: int, error: BaseException | None = None) -> None:
        self.after, self.calls, self.error = after, 0, error or KeyboardInterrupt()

    def around(self, whole: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.after + 1:
                raise self.error
            return whole(*args, **kwargs)

        return wrapped


def interrupted(
    monkeypatch: pytest.MonkeyPatch, holder: Any, name: str, run: Any, *, after: int = 0, error: Any = None
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(holder, name, Interruption(after, error).around(getattr(holder, name)))
        with pytest.raises(type(error) if error else KeyboardInterrupt):
            run()


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("holder", "name"),
    [(training, "load"), (runtime, "load_model"), (runtime, "Policy"), (run_folder.RunFolder, "empty"),
     (run_folder.RunFolder, "note")],
)  # fmt: skip
def test_ended_before_anything_was_sampled_a_run_goes_on_with_its_own_settings(
    holder: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    interrupted(monkeypatch, holder, name, lambda: train(folder))
    assert f"flow-dpo train --output_dir {folder} --resume" in capsys.readouterr().out.replace("\n", "")
    typed = commands.parse_train("t", [*WORDS, "--output_dir", str(folder)], {}).sections()
    resumed = commands.parse_train("t", ["--output_dir", str(folder), "--resume"], {}).sections()
    found = run_folder.differences(run_folder.plain(typed), run_folder.plain(resumed))
    planned = {
        name: values for name, values in found.items() if values[0] == "auto"
    }  # the same numbers at every resume
    assert {name: values for name, values in found.items() if name not in planned} == {"run.resume": (False, True)}
    assert set(planned) == {
        "engine.kv_budget_gib", "learner.rows.gradient_checkpointing", "learner.rows.max_tokens"
    }  # fmt: skip


def test_ended_while_it_loaded_a_run_resumes_to_the_whole_one(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From Python, too: what is not given is as it was in the folder, not as it is by default."""
    interrupted(monkeypatch, runtime, "load_model", lambda: train(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"objective\.beta: 0\.5 then, 0\.7 now"):
        flow_dpo.train(output_dir=tmp_path / "run", resume=True, quiet=True, beta=0.7)
    flow_dpo.train(output_dir=tmp_path / "run", resume=True, quiet=True)
    assert_same_run(whole, tmp_path / "run")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["max_problems"] == 6


def test_what_is_refused_before_it_samples_leaves_the_folder_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    for more in (["--model_name_or_path", str(tmp_path)], ["--dataset_name", str(tmp_path / "none.jsonl")],
                 ["--learner.roles.stopp.learning_rate", "1e-4"], ["--credit.roles", "[anwser]"]):  # fmt: skip
        with pytest.raises((ConfigError, DataError, flow_dpo.FlowDpoError)):
            train(folder, *more)
        assert not folder.exists(), more
    # A process that was killed before its settings were whole leaves nothing that stands in the way.
    interrupted(monkeypatch, run_folder.RunFolder, "_write_config", lambda: train(folder))
    assert not (folder / "config.yaml").exists()
    run_folder.refuse_used(folder)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts what the engine is asked to sample, besides the check of the model at opening, whose seeds are small."""
    seeds: list[int] = []
    submit = LocalEngine.submit

    def counted(self: LocalEngine, *args: Any, **kwargs: Any) -> int:
        if kwargs["seed"] > 1_000:
            seeds.append(kwargs["seed"])
        return submit(self, *args, **kwargs)

    monkeypatch.setattr(LocalEngine, "submit", counted)
    return seeds


def test_interrupted_while_it_learned_a_batch_is_not_sampled_again(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[int]
) -> None:
    folder = tmp_path / "run"
    interrupted(monkeypatch, Learner, "update", lambda: train(folder))
    first, kept = set(asked), read_jsonl(folder / "sampled.jsonl")
    assert len(first) == len(kept) - 1
    assert kept[-1]["whole"]
    asked.clear()
    assert commands.train(["--output_dir", str(folder), "--resume"]) == 0
    assert not first & set(asked)
    assert_same_run(whole, folder)
    assert not (folder / "sampled.jsonl").exists()


def test_interrupted_while_it_sampled_the_user_chooses_between_bytes_and_time(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(monkeypatch, LocalEngine, "poll", lambda: train(tmp_path / "run"), after=37)
    kept = read_jsonl(tmp_path / "run" / "sampled.jsonl")
    assert len(kept) > 10
    assert not kept[-1]["whole"]
    assert f"Kept {len(kept) - 1} turns" in capsys.readouterr().out.replace("\n", " ")
    shutil.copytree(tmp_path / "run", tmp_path / "quick")
    # Byte for byte, the batch sampled again; or from what there is, to the same tokens.
    asked.clear()
    assert commands.train(["--output_dir", str(tmp_path / "run"), "--resume"]) == 0
    assert_same_run(whole, tmp_path / "run")
    num_asked = len(asked)
    asked.clear()
    assert commands.train(["--output_dir", str(tmp_path / "quick"), "--resume", "--reuse_sampled"]) == 0
    assert len(asked) == num_asked - (len(kept) - 1)
    assert (tmp_path / "quick" / "pairs.jsonl").read_bytes() == (whole / "pairs.jsonl").read_bytes()


def test_other_versions_are_told_one_by_one() -> None:
    old = {"torch": "2.12.0", "numpy": "2.4.6", "peft": None}
    assert resumption._shown(old, {**old, "torch": "2.13.0"}) == "torch 2.12.0 then, 2.13.0 now"
    assert resumption._shown("a" * 64, "b" * 64) == "aaaaaaaaaaaa then, bbbbbbbbbbbb now"
    assert resumption._shown(["a"], None) == "['a'] then, None now"


# ---- evaluations and traces ------------------------------------------------------------------------------------------


def rows_of(folder: Path, name: str) -> Sequence[Mapping[str, Any]]:
    return read_jsonl(folder / name)


def test_an_interrupted_evaluation_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--max_problems", "12", "--batch_problems", "4"]
    assert evaluate([*words, "--output_dir", str(tmp_path / "whole")]) == 0
    num_asked = len(asked)
    asked.clear()
    again = [*words, "--output_dir", str(tmp_path / "e")]
    interrupted(monkeypatch, LocalEngine, "poll", lambda: evaluate(again), after=num_asked // 3)
    assert "the same command continues from it" in capsys.readouterr().out.replace("\n", " ")
    num_before = len(rows_of(tmp_path / "e", "sampled.jsonl"))
    assert num_before > num_asked // 4
    with pytest.raises(ConfigError, match="the same command with other settings"):
        evaluate([*again, "--max_chunks", "3"])
    kept = [row["key"] for row in rows_of(tmp_path / "e", "sampled.jsonl") if "key" in row]
    interrupted(monkeypatch, LocalEngine, "poll", lambda: evaluate(again), after=1)  # before it has come as far again
    asked.clear()
    assert evaluate(again) == 0
    assert len(asked) <= num_asked - len(kept)
    one, two = (tmp_path / name / "predictions.jsonl" for name in ("whole", "e"))
    assert one.read_bytes() == two.read_bytes()
    assert not (tmp_path / "e" / "sampled.jsonl").exists()


def test_interrupted_traces_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[int]) -> None:
    words = ["--max_problems", "12", "--batch_problems", "4", "--num_samples", "2"]
    assert generate([*words, "--output_dir", str(tmp_path / "whole")]) == 0
    num_asked = len(asked)
    again = [*words, "--output_dir", str(tmp_path / "t")]
    error = EngineError("the server is gone")
    interrupted(monkeypatch, LocalEngine, "poll", lambda: generate(again), after=num_asked // 3, error=error)
    with pytest.raises(ConfigError, match=r"interrupted and made otherwise \(data\.max_problems"):
        generate([*again, "--max_problems", "11"])
    asked.clear()
    assert generate(again) == 0
    assert len(asked) < num_asked
    assert (tmp_path / "t" / "traces.jsonl").read_bytes() == (tmp_path / "whole" / "traces.jsonl").read_bytes()
    headers = [yaml.safe_load((tmp_path / name / "traces.json").read_text()) for name in ("t", "whole")]
    assert headers[0]["counts"] == headers[1]["counts"]
    assert headers[0]["complete"]
    assert headers[0]["cost"]["tokens_sampled"] == headers[1]["cost"]["tokens_sampled"]


def test_nothing_is_trained_that_was_not_updated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.train(["--max_problems", "2", "--output_dir", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert "Adapters: as they were made, for nothing was learned:" in said
    assert "an update takes 12 (--examples_per_update) or 48 of stop (--learner.roles.stop.examples_per_update)" in said
    traces = flow_dpo.generate_traces(tmp_path / "run", output_dir=tmp_path / "t", max_problems=4, num_samples=1)
    assert traces.header["source"] == "untrained_flow"
