"""Do single roles use the adapters of another run where they are told to?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flow_dpo.core.errors import ConfigError
from flow_dpo.learner.policy import Policy
from flow_dpo.models.settings import LoraSettings
from flow_dpo.runs.adapters import load_adapters
from flow_dpo.runs.settings import SpeakingSettings
from tests.support.tiny_models import tiny_model

ROLES = ("answer", "stop")


def run(folder: Path, seed: int, *, base: str = "base") -> Path:
    """A run folder with the adapters of two updates, no two weights of which are another run's."""
    policy = Policy(tiny_model("llama"), ROLES, LoraSettings(lora_r=2), seed=seed)
    for role in ROLES:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in policy.weights(role):
                weight.copy_(torch.randn(weight.shape, generator=generator))
        policy.save_adapter(role, folder / "adapters" / role / "2")
    (folder / "config.yaml").write_text(f"model:\n  model_name_or_path: {base}\n")
    return folder


def test_one_role_is_of_another_run(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one", 1), run(tmp_path / "other", 2)
    policy = Policy(tiny_model("llama"), ROLES, LoraSettings(lora_r=2))
    loaded = load_adapters(policy, SpeakingSettings(run=str(one), role_runs={"stop": str(other)}))
    of = {"answer": one, "stop": other}
    for role, folder in of.items():
        path = folder / "adapters" / role / "2"
        assert loaded[role].path == str(path)
        saved = load_file(path / "adapter_model.safetensors")
        found = [weight.detach().clone() for weight in policy.weights(role)]
        assert len(found) == len(saved)
        assert sum(float(each.sum()) for each in found) == pytest.approx(
            sum(float(each.sum()) for each in saved.values()), abs=1e-4
        )


def test_a_role_that_it_has_not_and_another_base_are_refused(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one", 1), run(tmp_path / "other", 2, base="strange")
    policy = Policy(tiny_model("llama"), ROLES, LoraSettings(lora_r=2))
    with pytest.raises(ConfigError, match=r"a role of the flow \(answer, stop\).*found 'judge'"):
        load_adapters(policy, SpeakingSettings(run=str(one), role_runs={"judge": str(other)}))
    with pytest.raises(ConfigError, match="a run with the base base for stop, found strange"):
        load_adapters(policy, SpeakingSettings(run=str(one), role_runs={"stop": str(other)}))
