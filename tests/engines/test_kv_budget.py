"""Does a budget follow the device, and does a window that no budget holds become shorter instead of failing?"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM

from flow_dpo.core.errors import ConfigError
from flow_dpo.engines import kv_budget
from flow_dpo.engines.kv_budget import budgeted, token_bytes, window_within
from flow_dpo.engines.local.compatibility import probe
from flow_dpo.engines.settings import LocalSettings, VllmSettings
from flow_dpo.models import attention
from tests.support.tiny_models import KINDS, tiny_model

GIB = 2**30


@pytest.mark.parametrize(("machine", "budget"), [(64, 16.0), (24, 6.0), (4, 2.0)])
def test_a_cpu_gives_a_quarter_and_what_is_given_stays(
    machine: int, budget: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_budget, "host_memory", lambda: machine * GIB)
    model = tiny_model("qwen2")
    assert budgeted(LocalSettings(), model).kv_budget_gib == budget
    assert budgeted(VllmSettings(), model).kv_budget_gib == 2.0
    with torch.device("meta"):
        large = Phi3ForCausalLM(
            Phi3Config(num_hidden_layers=1, hidden_size=3072, intermediate_size=1 << 18, pad_token_id=0)
        )
    left = machine * GIB - 2 * 4 * large.num_parameters()
    assert budgeted(LocalSettings(), large).kv_budget_gib == max(2.0, round(min(machine / 4, left / 2 / GIB), 1))
    assert LocalSettings().kv_bytes == 2 * GIB
    given = LocalSettings(kv_budget_gib=0.5)
    assert budgeted(given, model) is given
    assert given.kv_bytes == GIB // 2


def test_a_containers_limit_is_found_in_both_versions_of_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("5:cpu,memory:/slurm/job_7\n1:name=systemd:/a:b\n0::/user.slice/x\n")
    found = kv_budget._limits(root, own)
    assert found == [
        root / "memory.max",
        root / "memory/memory.limit_in_bytes",
        root / "memory/slurm/job_7/memory.limit_in_bytes",
        root / "user.slice/x/memory.max",
    ]
    assert len(kv_budget._limits(root, tmp_path / "none")) == 2
    monkeypatch.setattr(kv_budget, "_limits", lambda: found)
    whole = kv_budget.host_memory()
    for file, text, limit in zip(
        found, ("max", "9223372036854771712", "3221225472", "1073741824"), (whole, whole, 3 * GIB, GIB), strict=True
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
        assert kv_budget.host_memory() == limit


def test_a_gpu_gives_a_share_of_what_is_free_after_the_weights() -> None:
    model = tiny_model("qwen2")
    assert budgeted(LocalSettings(), model, free=60 * GIB).kv_budget_gib == 30.0
    assert budgeted(VllmSettings(), model, free=60 * GIB).kv_budget_gib == pytest.approx(30.0, abs=0.1)
    assert budgeted(LocalSettings(), model, free=GIB // 2).kv_budget_gib == 1.0


@pytest.mark.parametrize("wrong", [0, -1.0])
def test_a_budget_of_nothing_is_refused(wrong: float) -> None:
    for settings in (LocalSettings, VllmSettings):
        with pytest.raises(ConfigError, match='kv_budget_gib above 0, or "auto"'):
            settings(kv_budget_gib=wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_counted_as_the_local_engine_holds_it(kind: str) -> None:
    model = tiny_model(kind)
    attention.prepare(model)
    assert token_bytes(model) == probe(model).token_bytes


def test_a_window_that_the_budget_cannot_hold_is_cut_and_told(caplog: pytest.LogCaptureFixture) -> None:
    """Phi-3-mini-128k: its window takes 48 GiB in half precision, where 8 GiB hold 21,840 tokens of it."""
    config = Phi3Config(
        num_hidden_layers=32, hidden_size=3072, num_attention_heads=32, num_key_value_heads=32,
        max_position_embeddings=131072, pad_token_id=0,
    )  # fmt: skip
    with torch.device("meta"):
        model = Phi3ForCausalLM(config).to(torch.bfloat16)
    assert token_bytes(model) * 131072 == 48 * GIB
    with caplog.at_level(logging.WARNING, logger="flow_dpo"):
        assert window_within(VllmSettings(kv_budget_gib=8), model, 131072) == 21840
    assert "the context window is cut from 131072 to 21840 tokens" in caplog.text
    caplog.clear()
    assert window_within(VllmSettings(kv_budget_gib=48), model, 131072) == 131072
    own = VllmSettings(kv_budget_gib=1, engine_args={"max_model_len": 9000})
    assert window_within(own, model, 9000) == 9000
    assert caplog.text == ""
