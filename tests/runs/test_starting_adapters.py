"""Does a run begin with the adapters that it is given, with their shape, and compare with them?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from flow_dpo.cli import train as commands
from flow_dpo.cli.evaluate import evaluate
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.learner.learner import Learner
from flow_dpo.models.settings import LoraSettings
from flow_dpo.runs import published, run_folder
from flow_dpo.runs.adapters import run_settings
from flow_dpo.runs.files import read_jsonl
from flow_dpo.runs.starting_adapters import starting_folders
from tests.support.once import Once
from tests.support.run_equality import assert_same_run

WORDS = ("--max_problems", "8", "--problems_per_batch", "4", "--examples_per_update", "4")


def train(folder: Path, *more: str) -> None:
    assert commands.train([*WORDS, "--output_dir", str(folder), *more]) == 0


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return sorted(some) == sorted(others) and all(torch.equal(some[name], others[name]) for name in some)


@pytest.fixture(scope="module")
def first(once: Once) -> Path:
    """A run of another shape and kind than the default's."""
    shape = ("--lora_r", "4", "--lora_alpha", "6", "--use_rslora", "--use_dora")
    folder = once("starting_adapters", lambda folder: train(folder / "run", *shape)) / "run"
    assert max(int(path.name) for path in run_folder.latest_adapters(folder).values()) > 0
    return folder


def interrupt(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> dict[str, Any]:
    """Train until Ctrl-C comes inside the second update; what the learner held at the first."""
    held, update = dict[str, Any](), Learner.update

    def interrupted(self: Learner, *words: Any) -> Any:
        if held:
            raise KeyboardInterrupt
        for adapter in self.policy.adapters:
            named = zip(self.policy.names(adapter), self.policy.weights(adapter), strict=True)
            held[adapter] = {name: weight.clone() for name, weight in named}
        return update(self, *words)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            commands.train([*WORDS, "--output_dir", str(folder), *more])
    return held


def test_a_run_begins_where_another_ended_and_compares_with_that(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = interrupt(tmp_path / "torn", monkeypatch, "--lora.init_from", str(first))
    # 1. The weights are the other run's, and so is the reference policy.
    latest = run_folder.latest_adapters(first)
    for role, folder in latest.items():
        assert same(held[role], weights(folder))
        assert same(held[f"reference_{role}"], weights(folder))
    config = yaml.safe_load((tmp_path / "torn" / "config.yaml").read_text())
    assert {name: config["lora"][name] for name in ("lora_r", "lora_alpha", "use_rslora", "use_dora")} == {
        "lora_r": 4, "lora_alpha": 6, "use_rslora": True, "use_dora": True,
    }  # fmt: skip
    assert config["learner"]["reference"]["kind"] == "snapshot"
    # 2. Resumed it is the run that nothing interrupted; what it began with is compared.
    train(tmp_path / "whole", "--lora.init_from", str(first))
    assert commands.train(["--output_dir", str(tmp_path / "torn"), "--resume"]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "torn")
    rows = read_jsonl(tmp_path / "whole" / "metrics.jsonl")
    assert all(row.get("learn/answer/logprob_drift", 0.0) < 1e-3 for row in rows)
    facts = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert sorted(facts["starting_adapters"]) == ["answer", "stop"]
    # 3. The run's own adapters are what an evaluation loads, without the ones that it began with.
    assert not {"init_from", "init_roles"} & set(run_settings(tmp_path / "whole")["lora"])
    out = tmp_path / "evaluation"
    assert evaluate(["--run", str(tmp_path / "whole"), "--max_problems", "4", "--output_dir", str(out)]) == 0


def test_a_changed_beginning_is_refused_at_a_resume(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run_folder.latest_adapters(first)["stop"], tmp_path / "stop")
    run = tmp_path / "run"
    held = interrupt(
        run,
        monkeypatch,
        "--lora.init_roles.stop",
        str(tmp_path / "stop"),
        "--learner.reference.kind",
        "base",
        "--learner.reference.every",
        "0",
    )
    assert not any(name.startswith("reference_") for name in held)
    assert same(held["stop"], weights(tmp_path / "stop"))
    assert not any(weight.any() for name, weight in held["answer"].items() if ".lora_B" in name)
    shutil.copytree(run_folder.latest_adapters(first)["answer"], tmp_path / "stop", dirs_exist_ok=True)
    with pytest.raises(ConfigError, match=r"--allow starting_adapters\n  starting_adapters: stop"):
        commands.train(["--output_dir", str(run), "--resume"])
    shutil.rmtree(tmp_path / "stop")
    with pytest.raises(DataError, match=r"expected an adapter in PEFT's layout|expected the weights of an adapter"):
        commands.train(["--output_dir", str(run), "--resume"])


def test_an_adapter_alone_is_answers(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = run_folder.latest_adapters(first)["answer"]
    held = interrupt(tmp_path / "run", monkeypatch, "--lora.init_from", str(adapter))
    assert same(held["answer"], weights(adapter))
    assert not any(weight.any() for name, weight in held["stop"].items() if ".lora_B" in name)


def test_a_run_on_the_hub_is_downloaded(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "local_run", {"me/first@v2": first}.__getitem__)
    found = starting_folders(LoraSettings(init_from="me/first@v2"), ("answer", "stop"))
    assert found == run_folder.latest_adapters(first)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--lora.init_from", "no/such/run"], "expected a run folder with adapters"),
        (["--lora.init_roles.stop", "no/such/adapter"], "expected an adapter in PEFT's layout"),
        (["--lora.init_from", "FIRST", "--lora_r", "8"], "the adapter was made with r = 4, this policy has 8"),
        (["--lora.init_from", "FIRST", "--use_dora", "false"], "the adapter was made with use_dora = True"),
        (["--lora.init_roles.planner", "ANSWER"], r"expected roles of the flow \(answer, stop\) in init_roles"),
    ],
)
def test_what_cannot_be_begun_with_is_refused(words: list[str], error: str, first: Path, tmp_path: Path) -> None:
    places = {"FIRST": str(first), "ANSWER": str(run_folder.latest_adapters(first)["answer"])}
    with pytest.raises((ConfigError, DataError, ValueError), match=error):
        commands.train([*WORDS, "--output_dir", str(tmp_path / "run"), *(places.get(word, word) for word in words)])
    assert not (tmp_path / "run" / "config.yaml").exists()
