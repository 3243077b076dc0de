"""Does the whole loop learn through a vLLM server as it does through the engine in this process?

The server is a stand-in that speaks as a twin of the model, with the adapters that it loads from their folders.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from flow_dpo.cli import train
from flow_dpo.core.errors import ConfigError, EngineError
from flow_dpo.learner.learner import Learner
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.models.load import ModelSettings, load_model
from flow_dpo.runs.files import read_jsonl
from flow_dpo.runs.runtime import Runtime, open_runtime
from flow_dpo.workers import grading
from tests.runs.test_training import FLOW, Keeper, Parity, data, learn_with  # noqa: F401 (a fixture)
from tests.support.chat_models import chat_model_folder
from tests.support.run_equality import assert_same_run, without_seconds
from tests.support.vllm_stand_in import StandIn


@contextmanager
def twin_of(folder: Path) -> Iterator[StandIn]:
    """A server of this model."""
    loaded = load_model(ModelSettings(model_name_or_path=str(folder)))
    policy = Policy(AutoModelForCausalLM.from_pretrained(folder), FLOW.roles, LoraSettings(lora_r=2))
    held: dict[str, str] = {}
    known: dict[tuple[str, tuple[int, ...]], list[float]] = {}
    lock = threading.Lock()

    def logprobs(adapter: str, prefix: tuple[int, ...]) -> list[float]:
        role = Path(adapter).parent.name if adapter else None
        with lock, torch.inference_mode():
            if role is not None and held.get(role) != adapter:
                policy.load_adapter(role, adapter)
                held[role] = adapter
            if (adapter, prefix) not in known:
                with policy.using(role) as model:
                    logits = model(input_ids=torch.tensor([prefix]), use_cache=False).logits[0, -1]
                known[adapter, prefix] = logits.double().log_softmax(-1).tolist()
            return known[adapter, prefix]

    num_words = loaded.model.config.vocab_size
    with StandIn(logprobs, num_words=num_words, encode=loaded.renderer.encode, root=str(folder)) as server:
        yield server


def shop_of(folder: Path, data: Path, *words: str, served: Path | None = None) -> Any:  # noqa: F811
    settings = train.parse_train(
        "t", ["--model_name_or_path", str(folder), "--dataset_name", str(data), "--lora_r", "2", *words], {}
    )
    return open_runtime(settings.runtime, FLOW, roles=FLOW.roles, seed=0, served=served)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return chat_model_folder("llama", tmp_path / "model")


def _learned(runtime: Runtime) -> tuple[Keeper, Learner]:
    runtime.fitting = runtime.fitting[:6]
    return learn_with(runtime, examples_per_update=0)


def _comparable(keeper: Keeper) -> list[dict[str, Any]]:
    rows = without_seconds(keeper.rows)
    return [{name: value for name, value in row.items() if not name.startswith("rollout/num_re")} for row in rows]


def test_what_is_learned_was_said_by_the_adapters_in_force(folder: Path, data: Path, tmp_path: Path) -> None:  # noqa: F811
    """The learner's log-probabilities under each version are those that came over HTTP, of that very version."""
    with twin_of(folder) as server:
        words = ("--engine", "vllm_server", "--base_url", server.url)
        with shop_of(folder, data, *words, served=tmp_path / "served") as runtime:
            keeper, learner = learn_with(runtime, examples_per_update=2)
            at_work = sorted(path.name for path in (tmp_path / "served").glob("*/*"))
            asked = {one["model"].split("-v")[1].split("-")[0] for one in server.asked[-20:]}
        assert server.adapters == {}
    assert learner.version > 1
    assert at_work == [str(learner.version)] * 2
    assert asked <= {str(version) for version in range(1, learner.version + 1)}
    assert not (tmp_path / "served").exists()
    drifts = [value for row in keeper.rows for key, value in row.items() if key.endswith("/max_logprob_drift")]
    assert drifts
    assert max(drifts) < 1e-4
    assert {pair.request.role for pair in keeper.pairs} == {"answer", "stop"}
    assert all(row["rollout/refresh_s"] > 0 for row in keeper.rows if row["learn/updates"])


def test_a_run_over_a_server_that_is_killed_five_times_is_the_run(
    folder: Path,
    data: Path,  # noqa: F811
) -> None:
    def run(before: Callable[[StandIn], None]) -> tuple[Keeper, int]:
        with twin_of(folder) as server:
            before(server)
            words = ("--engine", "vllm_server", "--base_url", server.url, "--backoff_s", "0.01")
            with shop_of(folder, data, *words) as runtime:
                keeper, _ = _learned(runtime)
            return keeper, len(server.asked)

    quiet, num_asked = run(lambda server: None)
    kills: list[int] = []

    def deadly(server: StandIn) -> None:
        lock, answered = threading.Lock(), [0]

        def before(path: str) -> None:
            with lock:
                answered[0] += path == "/v1/completions"
                if len(kills) < 5 and answered[0] > (len(kills) + 1) * num_asked // 7:
                    kills.append(answered[0])
                    server.kill()
                    server.start()

        server.before = before

    killed, _ = run(deadly)
    assert len(kills) == 5
    assert _comparable(killed) == _comparable(quiet)
    assert killed.pairs == quiet.pairs
    assert sum(row["rollout/num_retries"] for row in killed.rows) >= 5


class Closing(Parity):
    """What a workshop opens in the verifier's place."""

    def __init__(self, **_: Any) -> None: ...

    def __enter__(self) -> Closing:
        return self

    def __exit__(self, *_: object) -> None: ...


def test_a_run_whose_server_stayed_away_is_resumed_to_the_same(
    folder: Path,
    data: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grading, "Verifier", Closing)
    with twin_of(folder) as server:
        words = ["--recipe", "flow-dpo-paper", "--model_name_or_path", str(folder), "--dataset_name", str(data)]
        words += [
            "--lora_r",
            "2",
            "--chunk_tokens",
            "5",
            "--max_chunks",
            "3",
            "--max_problems",
            "12",
            "--problems_per_batch",
            "4",
        ]
        words += [
            "--examples_per_update",
            "8",
            "--engine",
            "vllm_server",
            "--base_url",
            server.url,
            "--patience_s",
            "0",
        ]
        assert train.train([*words, "--output_dir", str(tmp_path / "whole")]) == 0
        num_asked = len(server.asked)

        def before(_: str) -> None:
            if len(server.asked) == num_asked + num_asked // 2:
                server.before = lambda _: None
                server.kill()

        server.before = before
        with pytest.raises(EngineError, match="what was learned so far is kept: check the server, and resume"):
            train.train([*words, "--output_dir", str(tmp_path / "broken")])
        assert not (tmp_path / "broken" / "served").exists()
        server.start()
        assert train.train(["--output_dir", str(tmp_path / "broken"), "--resume"]) == 0
        assert server.adapters == {}
    rows = read_jsonl(tmp_path / "whole" / "metrics.jsonl")
    assert sum(row["learn/updates"] for row in rows) > 1
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_other_weights_in_the_servers_place_stop_the_run(folder: Path, data: Path) -> None:  # noqa: F811
    """Under the same name and path: they are heard."""
    with twin_of(folder) as server:
        num_words = server.num_words

        def before(_: str) -> None:
            if len(server.asked) == 40:
                server.before = lambda _: None
                server.kill()
                server.next_logprobs = lambda *_: [-math.log(num_words)] * num_words
                server.start()

        words = ("--engine", "vllm_server", "--base_url", server.url, "--backoff_s", "0.01")
        with shop_of(folder, data, *words) as runtime:
            server.before = before
            with pytest.raises(ConfigError, match="expected the weights of"):
                _learned(runtime)


def test_a_server_of_another_model_is_refused_before_anything_is_played(
    folder: Path,
    data: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    other = chat_model_folder("llama", tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    model.save_pretrained(other)
    with (
        twin_of(other) as server,
        pytest.raises(ConfigError, match="weights of"),
        shop_of(folder, data, "--engine", "vllm_server", "--base_url", server.url),
    ):
        raise AssertionError("it was taken")


def test_a_shorter_window_of_the_server_is_respected(folder: Path, data: Path) -> None:  # noqa: F811
    with twin_of(folder) as server:
        server.max_model_len = 40
        words = ("--engine", "vllm_server", "--base_url", server.url)
        with pytest.raises(ConfigError, match="window of 40 tokens"), shop_of(folder, data, *words):
            pass


def test_settings_of_updates_reach_every_engine_alike(folder: Path, data: Path) -> None:  # noqa: F811
    """As many problems, pairs and updates of the same kinds as through the engine in this process."""
    with shop_of(folder, data) as runtime:
        local, _ = _learned(runtime)
    with (
        twin_of(folder) as server,
        shop_of(folder, data, "--engine", "vllm_server", "--base_url", server.url) as runtime,
    ):
        served, _ = _learned(runtime)
    assert [row["problems_seen"] for row in served.rows] == [row["problems_seen"] for row in local.rows]
    # The trunks of the first batch are drawn by the same rule with the same numbers; the stand-in has our generator.
    assert served.rows[0]["rollout/trunk_tokens"] == local.rows[0]["rollout/trunk_tokens"]
