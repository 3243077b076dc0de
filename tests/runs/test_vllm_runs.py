"""Does `flow-dpo train` learn through a real vLLM, started as a user starts it?

Marked `vllm`: `make test-vllm` runs them in the environment that `make setup-vllm` makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.vllm_server import BLOCK, ENVIRONMENT
from flow_dpo.cli import train
from flow_dpo.engines.vllm.client import VllmClient, VllmServerSettings
from flow_dpo.models.load import SEED_FOLDER
from flow_dpo.runs.files import read_jsonl
from tests.support.vllm_servers import serving

pytestmark = pytest.mark.vllm
IN_PROCESS = ("--engine", "vllm", "--block_tokens", str(BLOCK), "--engine.engine_args", "{max_model_len: 512}")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@contextmanager
def playing_with(kind: str, tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """Flags of the engine."""
    if kind == "vllm":
        yield IN_PROCESS
        return
    with serving(SEED_FOLDER, tmp_path / "vllm.log", "--max-model-len", "512") as server:
        yield ("--engine", "vllm_server", "--base_url", server.url)
        client = VllmClient(VllmServerSettings(base_url=server.url), api_key="")
        assert [one.id for one in client.models()] == ["base"], "adapters are unloaded at the end"


def _trained(folder: Path, *words: str, examples_per_update: int = 2) -> list[dict[str, Any]]:
    fixed = ["--max_problems", "12", "--problems_per_batch", "4", "--examples_per_update", str(examples_per_update)]
    fixed += ["--output_dir", str(folder)]
    assert train.train([*fixed, *words]) == 0
    assert not (folder / "served").exists()
    return read_jsonl(folder / "metrics.jsonl")


def _most_drift(rows: list[dict[str, Any]]) -> float:
    """Between the learner's log-probabilities under an adapter and those that vLLM told of the same tokens."""
    return max(value for row in rows for name, value in row.items() if name.endswith("/max_logprob_drift"))


@pytest.mark.parametrize("kind", ["vllm", "vllm_server"])
def test_a_run_learns_from_what_the_adapters_in_force_have_said(kind: str, tmp_path: Path) -> None:
    with playing_with(kind, tmp_path) as words:
        rows = _trained(tmp_path / "run", *words)
    assert sum(row["learn/updates"] for row in rows[:-1]) > 0, "the last batch is played by adapters that have learned"
    assert _most_drift(rows) < 1e-3
    assert all(row["rollout/refresh_s"] > 0 for row in rows if row["learn/updates"])


def test_one_role_speaks_with_merged_weights(tmp_path: Path) -> None:
    words = ("--recipe", "online-dpo", "--preset", "seed", "--learner.learning_rate", "1e-3")
    rows = _trained(tmp_path / "run", *words, *IN_PROCESS, "--engine.sync", "merged", examples_per_update=1)
    assert sum(row["learn/updates"] for row in rows[:-1]) > 0
    assert _most_drift(rows) < 1e-3
