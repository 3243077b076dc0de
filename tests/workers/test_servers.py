"""Are several vLLM servers, some of which are killed, what one is?

The servers are stand-ins that speak as a twin of the model, with the adapters that they load from their folders.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.cli import train
from flow_dpo.cli.main import main
from flow_dpo.core.errors import ConfigError, EngineError, WorkerError
from flow_dpo.core.loop import learn
from flow_dpo.core.types import Problem, Solution, Verdict
from flow_dpo.evaluate.run import evaluate_flow
from flow_dpo.learner.learner import Learner, LearnerSettings
from flow_dpo.runs.files import read_jsonl
from flow_dpo.runs.runtime import open_runtime
from tests.runs.test_training import FLOW, RECIPE, data  # noqa: F401 (a fixture)
from tests.runs.test_vllm_training import twin_of
from tests.support.chat_models import chat_model_folder
from tests.support.graders import FunctionGrader
from tests.support.pool_worlds import Seen
from tests.support.vllm_stand_in import StandIn


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return chat_model_folder("llama", tmp_path / "model")


@contextmanager
def serving(folder: Path, num: int) -> Iterator[list[StandIn]]:
    """Servers of one model."""
    with twin_of(folder) as first:
        more = [
            StandIn(first.next_logprobs, num_words=first.num_words, encode=first.encode, root=first.root)
            for _ in range(num - 1)
        ]
        for server in more:
            server.start()
        try:
            yield [first, *more]
        finally:
            for server in more:
                server.kill()


def words(servers: list[StandIn], folder: Path, data: Path) -> list[str]:  # noqa: F811
    return [
        "--model_name_or_path", str(folder), "--dataset_name", str(data), "--lora_r", "2", "--workers", "servers",
        "--base_url", ",".join(server.url for server in servers), "--workers.shard", "2", "--backoff_s", "0.01",
        "--engine.patience_s", "0.05",
    ]  # fmt: skip


def parity(items: Any) -> list[Verdict]:
    """Right is what holds an odd number of tokens: it makes pairs of a random model's words."""
    return [
        Verdict(status="correct" if sum(len(p) for p in solution.pieces) % 2 else "wrong", answer="x")
        for _, solution in items
    ]


def learned(servers: list[StandIn], folder: Path, data: Path, lag: int = 0) -> tuple[Seen, list[float]]:  # noqa: F811
    settings = train.parse_train("t", words(servers, folder, data), {})
    seen = Seen()
    grader = FunctionGrader(parity)
    with open_runtime(settings.runtime, FLOW, roles=FLOW.roles, seed=0, grader=grader) as runtime:
        learner = Learner(runtime.policy, LearnerSettings(learning_rate=1e-2, examples_per_update=2))
        learn(
            RECIPE, runtime.fitting, runtime.workers, learner, callbacks=[seen], seed=3, problems_per_batch=6, lag=lag
        )
        weights = [w.double().sum().item() for role in FLOW.roles for w in runtime.policy.weights(role)]
    assert learner.version > 1
    assert all(server.adapters == {} for server in servers), "they are unloaded at the end"
    return seen, weights


def comparable(seen: Seen) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.startswith("rollout/num_re")} for row in seen.rows]


def test_three_servers_of_which_one_is_killed_are_one(folder: Path, data: Path) -> None:  # noqa: F811
    with serving(folder, 1) as servers:
        alone, weights = learned(servers, folder, data, lag=1)
        num_asked = len(servers[0].asked)
    with serving(folder, 3) as servers:
        kills: list[int] = []
        lock = threading.Lock()

        def before(path: str) -> None:
            with lock:
                if path == "/v1/completions" and len(kills) < 2 and len(servers[1].asked) > 5 * (1 + len(kills)):
                    kills.append(1)
                    servers[1].kill()
                    threading.Timer(0.3, servers[1].start).start()

        servers[1].before = before
        found, weights_then = learned(servers, folder, data, lag=1)
        shares = [len(server.asked) for server in servers]
    assert kills
    assert min(shares) > 0
    assert sum(shares) >= num_asked, "what was lost was asked again"
    assert found.trees == alone.trees
    assert comparable(found) == comparable(alone)
    assert weights_then == weights


def test_a_run_goes_through_servers_from_the_command_line(
    folder: Path,
    data: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Training with `--workers servers` and on with fewer servers, and an evaluation of what was learned."""
    rest = ["--max_problems", "4", "--problems_per_batch", "2", "--chunk_tokens", "4", "--max_chunks", "2"]
    with serving(folder, 2) as servers:
        assert main(["train", *words(servers, folder, data), *rest, "--output_dir", str(tmp_path / "run")]) == 0
        rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
        assert [row["rollout/workers"] for row in rows] == [2, 2]
        assert not (tmp_path / "run" / "served").exists()
        # Fewer servers, or others, may go on with it.
        fewer = ["--resume", "--output_dir", str(tmp_path / "run"), "--base_url", servers[1].url]
        assert main(["train", *fewer]) == 0
        asked = len(servers[0].asked) + len(servers[1].asked)
        engine = ["--workers", "servers", "--base_url", ",".join(server.url for server in servers)]
        more = ["--run", str(tmp_path / "run"), "--dataset_split", "train", "--max_problems", "4"]
        assert main(["evaluate", *more, *engine, "--output_dir", str(tmp_path / "evaluation")]) == 0
        assert len(servers[0].asked) + len(servers[1].asked) > asked
        assert len(read_jsonl(tmp_path / "evaluation" / "predictions.jsonl")) == 4


def refused(folder: Path, data: Path, more: list[str]) -> str:  # noqa: F811
    settings = train.parse_train("t", ["--model_name_or_path", str(folder), "--dataset_name", str(data), *more], {})
    with pytest.raises(ConfigError) as raised, open_runtime(settings.runtime, FLOW, seed=0):
        pass
    return str(raised.value)


def test_what_cannot_be_is_refused_before_anything_is_loaded(
    folder: Path,
    data: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flow_dpo.runs.runtime.load_model", lambda _: pytest.fail("loaded"))
    several = ["--base_url", "http://127.0.0.1:9,http://127.0.0.1:10"]
    assert "--workers servers" in refused(folder, data, ["--engine", "vllm_server", *several])
    found = refused(folder, data, ["--engine", "local", "--workers", "servers"])
    assert "found --engine local" in found
    assert "--workers ray" in found
    assert "--workers servers" in refused(folder, data, ["--engine", "vllm_server", "--workers", "ray"])
    with pytest.raises(ConfigError, match="each base_url once"):
        train.parse_train("t", ["--workers", "servers", "--base_url", "http://h:1,http://h:1"], {})


def test_every_server_must_be_there_at_the_start(folder: Path, data: Path) -> None:  # noqa: F811
    with serving(folder, 2) as servers:
        settings = train.parse_train("t", words(servers, folder, data), {})
        servers[1].kill()
        with pytest.raises(ConfigError, match=f"{servers[1].url}.*start it"), open_runtime(settings.runtime, FLOW):
            pass
        servers[1].start()


@pytest.mark.parametrize("fault", ["gone", "another"])
def test_a_server_that_stays_away_or_comes_back_as_another_ends_the_run(
    fault: str,
    folder: Path,
    data: Path,  # noqa: F811
) -> None:
    with serving(folder, 1) as servers:
        [server] = servers
        settings = train.parse_train(
            "t", [*words(servers, folder, data), "--workers.patience_s", "0.5", "--workers.tries", "9"], {}
        )

        def before(path: str) -> None:
            if path == "/v1/completions" and len(server.asked) == 20:
                server.asked.append({})
                server.kill()
                if fault == "another":
                    server.max_model_len -= 1
                    server.start()

        with open_runtime(settings.runtime, FLOW, roles=FLOW.roles, seed=0) as runtime:
            server.before = before
            runtime.workers.refresh(runtime.learner().adapters)
            future = runtime.workers.submit(RECIPE.explore, FLOW, runtime.fitting[:6], seed=3)
            kind = WorkerError if fault == "gone" else (ConfigError, EngineError)
            message = server.url if fault == "gone" else "start it as it was"
            with pytest.raises(kind, match=message):
                future.result(timeout=60)
        if fault == "gone":
            server.start()


class Clumsy:
    """A grader that two threads at once would break."""

    def __init__(self) -> None:
        self.inside = 0
        self.broken = False

    def _busy(self, work: Callable[[], Any]) -> Any:
        self.inside += 1
        threading.Event().wait(0.002)
        self.broken |= self.inside > 1
        self.inside -= 1
        return work()

    def begin(self, problem: Problem, solution: Solution) -> None:
        self._busy(lambda: None)

    def check(self, items: Any) -> list[Verdict]:
        return self._busy(lambda: parity(items))

    def check_texts(self, items: Any) -> list[Verdict]:
        return self.check([(one, Solution(pieces=(text,), ended=ended)) for one, text, ended in items])

    def grade(self, trees: Any) -> None:
        for tree in trees:
            for rollout in tree.rollouts:
                tree.grade(rollout.id, "", self.check([(tree.problem, rollout.solution)])[0])


def test_a_grader_of_ones_own_has_one_caller_at_a_time(folder: Path, data: Path) -> None:  # noqa: F811
    grader = Clumsy()
    with serving(folder, 3) as servers:
        settings = train.parse_train("t", words(servers, folder, data), {})
        with open_runtime(settings.runtime, FLOW, roles=FLOW.roles, seed=0, grader=grader) as runtime:
            found = evaluate_flow(runtime, runtime.fitting[:8], batch_problems=8)
    assert found["num_draws"] == 8
    assert not grader.broken
