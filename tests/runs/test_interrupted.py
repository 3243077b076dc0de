"""Is what was done kept, and nothing else begun, whenever a command is interrupted, refused or resumed?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml

import flow_dpo
from flow_dpo.cli import train as commands
from flow_dpo.cli.evaluate import evaluate
from flow_dpo.cli.generate import generate
from flow_dpo.core.errors import ConfigError, DataError, EngineError
from flow_dpo.core.protocols import Rollouts
from flow_dpo.core.types import Adapter, Completion, Problem, Request, Sampling
from flow_dpo.engines.local.engine import LocalEngine
from flow_dpo.learner.learner import Learner
from flow_dpo.runs import resumption, run_folder, runtime, training
from flow_dpo.runs.callbacks.run_keeper import RunKeeper
from flow_dpo.runs.files import read_jsonl
from flow_dpo.runs.journal import JournalEngine, JournalWorkers
from flow_dpo.traces.trace import TraceFolder
from tests.support.once import Once
from tests.support.run_equality import assert_same_run

WORDS = ("--max_problems", "6", "--problems_per_batch", "3", "--examples_per_update", "6", "--beta", "0.5")


def train(folder: Path, *more: str) -> int:
    return commands.train([*WORDS, "--output_dir", str(folder), *more])


@pytest.fixture(scope="module")
def whole(once: Once) -> Path:
    return once("interrupted", lambda folder: train(folder / "run")) / "run"


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


@pytest.mark.parametrize(
    "error", [None, torch.OutOfMemoryError("no room"), ValueError("in an objective of one's own")], ids=type
)
def test_interrupted_while_it_learned_a_batch_is_not_sampled_again(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[int], error: Exception | None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "run"
    interrupted(monkeypatch, Learner, "update", lambda: train(folder), error=error)
    assert f"flow-dpo train --output_dir {folder} --resume" in capsys.readouterr().out.replace("\n", "")
    first, kept = set(asked), read_jsonl(folder / "sampled.jsonl")
    assert len(first) == len(kept) - 1
    assert kept[-1]["whole"]
    asked.clear()
    assert commands.train(["--output_dir", str(folder), "--resume"]) == 0
    assert not first & set(asked)
    assert_same_run(whole, folder)
    assert not (folder / "sampled.jsonl").exists()


def test_an_error_is_not_hidden_by_one_while_its_work_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RunKeeper, "finish", Mock(side_effect=RuntimeError("no picture")))
    interrupted(monkeypatch, Learner, "update", lambda: train(tmp_path / "run"), error=ValueError("in an objective"))
    assert "could not save what was done: no picture" in capsys.readouterr().out
    assert read_jsonl(tmp_path / "run" / "sampled.jsonl")[-1]["whole"]


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


def test_what_other_adapters_sampled_is_not_taken_for_those_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[int]
) -> None:
    """With a learning rate that --allow let through, the same version has other weights."""
    folder, bare = tmp_path / "run", tmp_path / "bare"
    interrupted(
        monkeypatch, Learner, "update", lambda: train(folder, "--problems_per_batch", "2", "--examples_per_update", "2",
                                                      "--checkpoint_batches", "9"), after=2,
    )  # fmt: skip
    batches = [row for row in read_jsonl(folder / "sampled.jsonl") if "problems" in row]
    assert [row["policy_version"] for row in batches] == sorted({row["policy_version"] for row in batches})
    assert len(batches) == 3
    shutil.copytree(folder, bare)
    (bare / "sampled.jsonl").unlink()
    words = ["--resume", "--learning_rate", "0.01", "--allow", "learner.learning_rate"]
    num_asked: list[int] = []
    for each in (folder, bare):
        asked.clear()
        assert commands.train(["--output_dir", str(each), *words]) == 0
        num_asked.append(len(asked))
    assert num_asked[0] == num_asked[1] - batches[0]["num_completions"], "the first adapters are the same"
    assert_same_run(bare, folder)


def test_a_batch_is_known_by_the_weights_that_sampled_it(tmp_path: Path) -> None:
    """In memory alone: the engine would be asked again for what is not known."""
    problems, file = [Problem(id="p", question="", gold="")], tmp_path / "sampled.jsonl"
    request = Request(role="answer", prompt_ids=(1,))
    completion = Completion(
        token_ids=(2,), logprobs=(0.0,), sampled_logprobs=(0.0,), finish_reason="length", policy_version=1
    )

    def sampled(weights: str, **more: Any) -> bool:
        """Whether a batch under these weights is asked of the engine."""
        inner, asked = Mock(), list[int]()
        inner.submit.side_effect = lambda *_, **__: asked.append(1) or 0
        inner.poll.side_effect = lambda: [(0, completion)] if asked else []
        inner.take_stats.return_value = {}
        engine = JournalEngine(inner)

        def submit(*_: Any, seed: int) -> Future[Rollouts]:
            engine.submit(request, Sampling(), seed=seed)
            assert [each for _, each in engine.poll()] == [completion]
            done = Future[Rollouts]()
            done.set_result(Rollouts(trees=[], stats={}, spans=[]))
            return done

        journal = JournalWorkers(Mock(submit=submit), engine, file, weights=lambda: weights, **more)
        journal.refresh({"answer": Adapter(role="answer", version=1)})
        journal.submit(Mock(), Mock(), problems, seed=7)
        journal.keep()
        return bool(asked)

    assert [sampled("a"), sampled("a"), sampled("b"), sampled("b"), sampled("a")] == [True, False, True, False, False]
    assert sampled("a", context="another model")


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
    with pytest.raises(ConfigError, match="the same command sampled with other settings"):
        evaluate([*again, "--max_chunks", "3"])
    kept = [row["key"] for row in rows_of(tmp_path / "e", "sampled.jsonl") if "key" in row]
    interrupted(monkeypatch, LocalEngine, "poll", lambda: evaluate(again), after=1)  # before it has come as far again
    asked.clear()
    assert evaluate(again) == 0
    assert len(asked) <= num_asked - len(kept)
    one, two = (tmp_path / name / "predictions.jsonl" for name in ("whole", "e"))
    assert one.read_bytes() == two.read_bytes()
    assert not (tmp_path / "e" / "sampled.jsonl").exists()


@pytest.mark.parametrize(
    "words", [["--draws", "2"], ["--flow.judgement", "{bias: 0, stop: 1, likelihood: 40}", "--flow.threshold", "0.6"]]
)
def test_an_interrupted_evaluation_keeps_the_likelihoods_it_judges_by(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[int]
) -> None:
    words = ["--max_problems", "8", "--batch_problems", "4", *words]
    assert evaluate([*words, "--output_dir", str(tmp_path / "whole")]) == 0
    again = [*words, "--output_dir", str(tmp_path / "e")]
    num_asked = len(asked)
    interrupted(monkeypatch, LocalEngine, "poll", lambda: evaluate(again), after=num_asked // 3)
    asked.clear()
    assert evaluate(again) == 0
    assert len(asked) < num_asked
    for one, two in zip(*(rows_of(tmp_path / name, "predictions.jsonl") for name in ("whole", "e")), strict=True):
        # The rest of a batch is computed beside fewer requests: the last digits may differ.
        assert two == {name: pytest.approx(value) if isinstance(value, float) else value for name, value in one.items()}


def test_interrupted_traces_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[int]) -> None:
    words = ["--max_problems", "12", "--batch_problems", "4", "--num_samples", "2"]
    assert generate([*words, "--output_dir", str(tmp_path / "whole")]) == 0
    num_asked = len(asked)
    again = [*words, "--output_dir", str(tmp_path / "t")]
    error = EngineError("the server is gone")
    interrupted(monkeypatch, LocalEngine, "poll", lambda: generate(again), after=num_asked // 3, error=error)
    with pytest.raises(ConfigError, match=r"interrupted traces that were made differently \(data\.max_problems"):
        generate([*again, "--max_problems", "11"])
    asked.clear()
    assert generate(again) == 0
    assert len(asked) < num_asked
    assert (tmp_path / "t" / "traces.jsonl").read_bytes() == (tmp_path / "whole" / "traces.jsonl").read_bytes()
    headers = [yaml.safe_load((tmp_path / name / "traces.json").read_text()) for name in ("t", "whole")]
    assert headers[0]["counts"] == headers[1]["counts"]
    assert headers[0]["complete"]
    assert headers[0]["cost"]["tokens_sampled"] == headers[1]["cost"]["tokens_sampled"]


def test_traces_of_a_run_that_learned_on_are_not_continued(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first problems would be the old adapters', the rest the new ones'."""
    run, folder = tmp_path / "run", tmp_path / "t"
    shutil.copytree(whole, run)
    words = ["--run", str(run), "--max_problems", "4", "--batch_problems", "2", "--num_samples", "1"]
    again = [*words, "--mode", "single", "--output_dir", str(folder)]
    interrupted(monkeypatch, TraceFolder, "append", lambda: generate(again), after=1)
    assert json.loads((folder / "traces.json").read_text())["counts"]["num_problems_sampled"] == 2
    adapters = run_folder.latest_adapters(run)
    newer = {role: path.with_name(str(int(path.name) + 1)) for role, path in adapters.items()}
    for role, path in adapters.items():
        shutil.copytree(path, newer[role])
    with pytest.raises(ConfigError, match=rf"of the adapters .*{adapters['answer']}.*, found .*{newer['answer']}.*:"):
        generate(again)
    for path in newer.values():
        shutil.rmtree(path)
    config = adapters["stop"] / "adapter_config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(ConfigError, match="found other files there: the run has learned since; name another folder"):
        generate(again)
    config.write_text(config.read_text()[:-1])
    assert generate(again) == 0
    header = json.loads((folder / "traces.json").read_text())
    assert header["complete"]
    assert header["counts"]["num_problems_sampled"] == 4


def test_nothing_is_trained_that_was_not_updated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.train(["--max_problems", "2", "--output_dir", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert "Adapters: as at the start, since nothing was learned:" in said
    assert "an update takes 12 (--examples_per_update) or 48 of stop (--learner.roles.stop.examples_per_update)" in said
    traces = flow_dpo.generate_traces(tmp_path / "run", output_dir=tmp_path / "t", max_problems=4, num_samples=1)
    assert traces.header["source"] == "untrained_flow"
