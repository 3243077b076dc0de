"""Does the whole loop do what it says, on tiny chat models of every family and on the embedded seed?"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from flow_dpo.cli import train
from flow_dpo.cli.evaluate import evaluate as cli_evaluate
from flow_dpo.core.answer_stop import AnswerStop, AnswerStopPrompts
from flow_dpo.core.errors import ConfigError, DataError, ModelError
from flow_dpo.core.loop import learn
from flow_dpo.core.protocols import Backends
from flow_dpo.core.types import Pair, Verdict
from flow_dpo.data.problems import load_problems
from flow_dpo.evaluate.run import evaluate_flow
from flow_dpo.learner.learner import Learner, LearnerSettings
from flow_dpo.models.load import load_model
from flow_dpo.recipes.presets import preset
from flow_dpo.report.compose import compose
from flow_dpo.report.html import render_page
from flow_dpo.report.sources import read_sources
from flow_dpo.runs import run_folder
from flow_dpo.runs.files import read_jsonl
from flow_dpo.runs.records import Prediction, read_rows
from flow_dpo.runs.runtime import Runtime, open_runtime
from flow_dpo.runs.settings import default_settings
from flow_dpo.verify.grader import AnswerGrader
from flow_dpo.workers.in_process import InProcessWorkers
from tests.support.chat_models import TEMPLATES, chat_model_folder
from tests.support.once import Once
from tests.support.run_equality import assert_same_run

KINDS = sorted(TEMPLATES)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "apples.jsonl"
    rows = [
        {"question": f"Anna has {i} apples. She buys 7 more. How many?", "answer": f"#### {i + 7}"} for i in range(12)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


class Parity:
    """A verifier for random models: right is what holds an even number of words' letters."""

    def begin(self, items: Sequence[tuple[str, str, bool]]) -> None:
        """Nothing takes long."""

    def grade_many(self, items: Sequence[tuple[str, str, bool]]) -> list[Verdict]:
        return [Verdict(status="correct" if len(text) % 2 else "wrong", answer="x") for _, text, _ in items]


class Keeper:
    """A recorder that keeps everything."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.pairs: list[Pair] = []

    def on_batch(self, row: dict[str, Any], trees: Any, pairs: Sequence[Pair]) -> None:
        self.rows.append(row)
        self.pairs.extend(pairs)


FLOW = AnswerStop(
    chunk_tokens=5, max_chunks=3, prompts=AnswerStopPrompts(answer_system="Be brief.", stop_system="Judge.")
)
RECIPE = replace(preset("flow-dpo-paper", "chat").recipe, flow=FLOW)


def tiny_workshop(folder: Path, data: Path, *, seed: int = 0) -> Any:
    settings = train.parse_train(
        "t", ["--model_name_or_path", str(folder), "--dataset_name", str(data), "--lora_r", "2"], {}
    )
    return open_runtime(settings.runtime, FLOW, roles=FLOW.roles, seed=seed)


def learn_with(
    runtime: Runtime, *, learning_rate: float = 1e-2, examples_per_update: int = 8
) -> tuple[Keeper, Learner]:
    settings = LearnerSettings(learning_rate=learning_rate, examples_per_update=examples_per_update)
    learner, keeper = Learner(runtime.policy, settings), Keeper()
    grader = AnswerGrader(Parity(), runtime.loaded.renderer)
    backends = Backends(engine=runtime.backends.engine, renderer=runtime.loaded.renderer, grader=grader)
    learn(
        RECIPE,
        runtime.fitting,
        InProcessWorkers(backends),
        learner,
        callbacks=[keeper],
        seed=3,
        problems_per_batch=6,
    )
    return keeper, learner


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_learns_from_exactly_what_it_sampled(kind: str, tmp_path: Path, data: Path) -> None:
    """The learner's own log-probabilities of the prompt ids and sampled ids are those recorded while sampling."""
    with tiny_workshop(chat_model_folder(kind, tmp_path / "model"), data) as runtime:
        keeper, learner = learn_with(runtime)
    assert learner.version > 0
    assert {pair.request.role for pair in keeper.pairs} == {"answer", "stop"}
    drifts = [value for row in keeper.rows for key, value in row.items() if key.endswith("/max_logprob_drift")]
    assert drifts
    assert max(drifts) < 1e-4
    ends = runtime.loaded.end_ids
    for pair in keeper.pairs:
        for completion in (pair.chosen, pair.rejected):
            # An end token is a label only where it was sampled, and enters no later prompt of the same solution.
            assert not ends & set(completion.content_ids)
            assert (completion.finish_reason == "stop") == bool(ends & set(completion.token_ids))


def test_updates_raise_the_chosen_against_the_rejected(tmp_path: Path, data: Path) -> None:
    with tiny_workshop(chat_model_folder("llama", tmp_path / "model"), data) as runtime:
        runtime.fitting = runtime.fitting[:6]
        keeper, learner = learn_with(runtime, learning_rate=3e-3, examples_per_update=0)
        again = learner.update(RECIPE.objective, keeper.pairs)
    assert keeper.rows[0]["learn/answer/margin"] == pytest.approx(0.0, abs=1e-6)
    for role in ("answer", "stop"):
        assert again[f"learn/{role}/margin"] > 0
        assert again[f"learn/{role}/loss"] < keeper.rows[0][f"learn/{role}/loss"]


@pytest.fixture(scope="module")
def seed_runs(once: Once) -> tuple[Path, Path]:
    """Two runs of the same command on the embedded seed."""

    def make(folder: Path) -> None:
        words = ["--max_problems", "24", "--problems_per_batch", "12", "--examples_per_update", "16"]
        for name in ("one", "two"):
            assert train.train([*words, "--output_dir", str(folder / name)]) == 0

    folder = once("training", make)
    return folder / "one", folder / "two"


def test_two_runs_of_one_seed_are_equal(seed_runs: tuple[Path, Path]) -> None:
    assert_same_run(*seed_runs)


def test_a_run_folder_holds_what_the_docs_say(seed_runs: tuple[Path, Path]) -> None:
    folder = seed_runs[0]
    rows = read_jsonl(folder / "metrics.jsonl")
    wanted = [
        "problems_seen",
        "progressive/accuracy",
        "progressive/window_accuracy",
        "pairs/answer",
        "pairs/stop",
        "skipped/answer",
        "skipped/stop",
        "ungraded_rate",
        "learn/answer/loss",
        "learn/stop/window",
        "learn/answer/margin",
        "learn/answer/chosen_logprobs",
        "rollout/tokens",
        "rollout/seconds",
        "learn/seconds",
        "policy_version",
    ]
    assert len(rows) == 2
    assert [key for key in wanted if any(key not in row for row in rows)] == []
    assert "learn/stop/verdict_loss" in rows[-1], "a window has an update once there are as many words as it takes"
    trees, pairs = read_jsonl(folder / "trees.jsonl"), read_jsonl(folder / "pairs.jsonl")
    assert len(trees) == 24
    assert len(pairs) == sum(row["pairs/answer"] + row["pairs/stop"] for row in rows)
    for pair in pairs:
        assert pair["chosen_verdict"]["status"] == "correct"
        assert pair["rejected_verdict"]["status"] == "wrong"
        assert pair["prompt"].endswith("<assistant>") or pair["role"] == "answer"
        assert pair["chosen"] != pair["rejected"]
    facts = json.loads((folder / "run.json").read_text())
    assert (
        facts["versions"]["torch"] == torch.__version__.split("+")[0] or facts["versions"]["torch"] == torch.__version__
    )
    assert len(facts["data_fingerprint"]) == 64
    assert (folder / "progressive.png").stat().st_size > 10_000
    assert facts["shared_prefixes"] is True
    assert "flex_attention" not in facts, "it was not tried on a CPU"
    config = (folder / "config.yaml").read_text()
    assert "chunk_tokens: 16" in config
    assert "max_tokens: 1024" in config, "numbers in place of auto, so that a resumed run has the same rows"
    assert "gradient_checkpointing: false" in config


def test_pairs_and_trees_tell_the_same_story(seed_runs: tuple[Path, Path]) -> None:
    """A pair's words are the words of the two nodes that it names, and its prompt is what the tree says was before."""
    trees = {tree["problem"]["id"]: tree for tree in read_jsonl(seed_runs[0] / "trees.jsonl")}
    for pair in read_jsonl(seed_runs[0] / "pairs.jsonl"):
        tree = trees[pair["problem_id"]]
        chosen, rejected = tree["nodes"][pair["node"]], tree["nodes"][pair["rejected_node"]]
        assert pair["chosen_ids"] == chosen["token_ids"]
        assert pair["rejected_ids"] == rejected["token_ids"]
        assert chosen["parent"] == rejected["parent"]
        for side, status in ((chosen, "correct"), (rejected, "wrong")):
            # The verdict on its attempt is that of the rollout which ended with it, accepted.
            nodes = [node for node in tree["nodes"] if node["rollout"] == side["rollout"]]
            last = [node for node in nodes if node["tags"][-1] == side["tags"][-1]][-1]
            accepted = [node for node in tree["nodes"] if (node["parent"], node["choice"]) == (last["parent"], 0)]
            verdict = tree["rollouts"][accepted[0]["rollout"]]["verdict"] if last["role"] == "stop" else None
            assert (verdict["status"] if verdict else "wrong") == status


def test_adapters_are_peft_folders(seed_runs: tuple[Path, Path]) -> None:
    for path in run_folder.latest_adapters(seed_runs[0]).values():
        loaded = load_model(default_settings("flow-dpo", "seed").runtime.model)
        base = AutoModelForCausalLM.from_pretrained(loaded.model.name_or_path, dtype=torch.float32)
        with warnings.catch_warnings():
            # PEFT 0.21 asks transformers 5 a question by its old name.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            model = PeftModel.from_pretrained(base, str(path))
        ids = torch.tensor([[5, 6, 7, 8]])
        with torch.no_grad():
            adapted, plain = model(input_ids=ids).logits, loaded.model(input_ids=ids).logits
        assert not torch.equal(adapted, plain)


def test_evaluate_writes_predictions_and_a_summary(seed_runs: tuple[Path, Path], tmp_path: Path) -> None:
    for mode in ("flow", "single"):
        out = tmp_path / mode
        words = ["--run", str(seed_runs[0]), "--mode", mode, "--max_problems", "20", "--output_dir", str(out)]
        assert cli_evaluate(words) == 0
        summary = json.loads((out / "summary.json").read_text())
        assert summary["versions"]["torch"]
        assert summary["command"]
        assert summary["num_problems"] == 20
        assert {"accuracy", "interval", "num_correct", "num_ungraded", "tokens"} <= set(summary)
        steps = summary["steps_of_right_answers"]
        assert steps["num_solutions"] == steps["num_checked"] == summary["num_correct"]
        assert 0 <= steps["num_invalid"] < max(steps["num_checked"], 1)
        assert summary["dataset"] == "seed/test"
        rows = read_jsonl(out / "predictions.jsonl")
        assert sum(row["verdict"]["status"] == "correct" for row in rows) == summary["num_correct"]
        with pytest.raises(ConfigError, match="already holds an evaluation"):
            cli_evaluate(words)


def test_draws_are_voted_on_and_another_stop_judges_them(
    seed_runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The candidates of the untrained model, kept as a file; the untrained Stop and a run's on them."""
    drawn, run = tmp_path / "drawn", str(seed_runs[0])
    words = ["--draws", "2", "--max_problems", "12", "--output_dir"]
    assert cli_evaluate([*words, str(drawn)]) == 0
    assert cli_evaluate([*words, str(tmp_path / "trained"), "--run", run]) == 0
    said = capsys.readouterr().out
    assert said.count("weighted by P(Yes)") == 2
    own = read_rows(drawn / "predictions.jsonl", Prediction)
    trained = read_rows(tmp_path / "trained" / "predictions.jsonl", Prediction)
    assert len(own) == 24
    assert [row.yes for row in own] != [row.yes for row in trained]
    votes = json.loads((drawn / "summary.json").read_text())["votes"]["by_k"]
    assert votes["2"]["tokens"] == sum(row.tokens for row in own) / 12
    found = {}
    for name, more in (("untrained", []), ("trained", ["--run", run])):
        where = tmp_path / f"stop_{name}"
        assert cli_evaluate(["--candidates", str(drawn), "--output_dir", str(where), *more]) == 0
        assert "right over wrong: area" in capsys.readouterr().out
        found[name] = json.loads((where / "summary.json").read_text())["candidates"]
        judged = read_rows(where / "predictions.jsonl", Prediction)
        assert [replace(row, yes=None) for row in judged] == [replace(row, yes=None) for row in own]
        same = [row.yes == pytest.approx(old.yes, abs=1e-4) for row, old in zip(judged, own, strict=True) if old.yes]
        assert all(same) if name == "untrained" else not any(same)
    assert found["untrained"]["sha256"] == found["trained"]["sha256"]
    with open_runtime("seed") as runtime:
        assert evaluate_flow(runtime, candidates=str(drawn))["candidates"] == found["untrained"]
        assert evaluate_flow(runtime, load_problems("seed", max_problems=2), draws=2)["votes"]["by_k"].keys() == {
            "1",
            "2",
        }
    with pytest.raises(ConfigError, match="judged whole"):
        cli_evaluate(["--candidates", str(drawn), "--max_problems", "3", "--output_dir", str(tmp_path / "part")])
    # All of it in one report; the candidates' accuracy is no evaluation of the run's.
    folders = [drawn, tmp_path / "trained", tmp_path / "stop_untrained", tmp_path / "stop_trained"]
    page = render_page(compose(read_sources(folders), command="c"))
    for text in ("Votes, all rules", "What each threshold would give", "fixed set", found["trained"]["sha256"][:12]):
        assert text in page
    accuracy, stop = page.split('aria-label="Accuracy"')[1].split('aria-label="Stop on a fixed set of candidates')[:2]
    assert ">drawn<" in accuracy
    assert "stop_<wbr>untrained" not in accuracy
    assert "stop_<wbr>untrained" in stop


def test_bad_input_is_refused_before_work(tmp_path: Path, data: Path, seed_runs: tuple[Path, Path]) -> None:
    model = chat_model_folder("llama", tmp_path / "model")
    bare = chat_model_folder("llama", tmp_path / "bare", template=False)
    (tmp_path / "empty").mkdir()
    ours = ["--model_name_or_path", str(model), "--dataset_name", str(data)]
    cases: list[tuple[list[str], type[Exception], str]] = [
        (["--model_name_or_path", str(tmp_path / "empty")], ModelError, r"config\.json"),
        (["--model_name_or_path", str(bare), "--dataset_name", str(data)], ModelError, "chat_template"),
        ([*ours, "--question_column", "text", "--answer_column", "answer"], DataError, "text.*question"),
        (["--dataset_name", str(tmp_path / "nowhere.jsonl")], DataError, "nowhere"),
        (["--output_dir", str(seed_runs[0])], ConfigError, "already holds a run"),
        ([*ours, "--chunk_tokens", "600"], ConfigError, "room for one completion"),
        ([*ours, "--chunk_tokens", "9" * 17], ConfigError, "room for one completion"),
        ([*ours, "--chunk_tokens", "100", "--max_chunks", "9"], ConfigError, "longest rollout"),
        ([*ours, "--flow.prompts.no", "Yes"], ModelError, "different tokens"),
        ([*ours, "--chunk_tokens", "5", "--lora_target_modules", "[nonesuch]"], ModelError, "nonesuch"),
        (["--dataset_split", "nonesuch"], DataError, "nonesuch"),
    ]
    for index, (words, error, message) in enumerate(cases):
        output = [] if "--output_dir" in words else ["--output_dir", str(tmp_path / f"out{index}")]
        with pytest.raises(error, match=message):
            train.train([*words, *output])
        assert not (tmp_path / f"out{index}").exists(), f"case {index} began to write"


def test_an_interrupted_run_keeps_what_it_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flow_dpo.runs.callbacks import progress

    def interrupt(self: Any, row: dict[str, Any], trees: Any, pairs: Any) -> None:
        if row["problems_seen"] >= 16:
            raise KeyboardInterrupt

    monkeypatch.setattr(progress.ProgressBar, "on_batch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train.train(["--max_problems", "32", "--problems_per_batch", "8", "--output_dir", str(tmp_path / "run")])
    assert len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) == 2
    assert set(run_folder.latest_adapters(tmp_path / "run")) == {"answer", "stop"}
    assert (tmp_path / "run" / "progressive.png").exists()


def test_merging_that_cannot_be_is_refused_before_play() -> None:
    words = ["--dtype", "bfloat16", "--merge_adapters", "always", "--max_problems", "4"]
    settings = train.parse_train("test", words, {})
    flow = settings.recipe.flow
    with (
        pytest.raises(ModelError, match=r"bfloat16: use --merge_adapters never"),
        open_runtime(settings.runtime, flow, roles=flow.roles, seed=0),
    ):
        pass
