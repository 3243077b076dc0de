"""Are ranks that cannot work together refused, before a model is loaded and with the reason?"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from flow_dpo.core.errors import ConfigError
from flow_dpo.engines.settings import VllmSettings
from flow_dpo.engines.settings import default_settings as default_engine
from flow_dpo.learner.settings import RowSettings
from flow_dpo.models.settings import ModelSettings
from flow_dpo.ranks.environment import Place
from flow_dpo.ranks.group import Ranks
from flow_dpo.runs import following, run_folder
from flow_dpo.runs.settings import TrainSettings, default_settings
from flow_dpo.workers.settings import WorkersSettings


class OtherRank:
    """A group whose second rank found other facts."""

    def __init__(self, **facts: Any) -> None:
        self._facts = facts

    def gather(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        return [value, value | self._facts]


def compare(**facts: Any) -> None:
    following._compare_environments(cast(Ranks, OtherRank(**facts)), torch.device("cuda:0"))


def test_other_code_versions_or_devices_on_a_rank_are_refused() -> None:
    compare()
    versions = run_folder.environment()["versions"]
    with pytest.raises(ConfigError, match=r"found versions\.torch '1\.0' on rank 1 and '.*' on rank 0: use the same"):
        compare(versions={**versions, "torch": "1.0"})
    with pytest.raises(ConfigError, match="same code, versions and kind of device on all ranks, found code 'abc' on r"):
        compare(code="abc")
    with pytest.raises(ConfigError, match="found device 'cpu' on rank 1 and 'cuda' on rank 0"):
        compare(device="cpu")


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(following, "device_of", lambda model: torch.device(model.device))
    gpu, cpu = ModelSettings(device="cuda"), ModelSettings(device="cpu")
    with pytest.raises(ConfigError, match="a GPU for each of the 3 ranks of this machine, found 2: start as many"):
        following._check_device(gpu, Place(rank=4, num=6, local_rank=1, local_num=3))
    following._check_device(gpu, Place(rank=3, num=4, local_rank=1, local_num=2))
    following._check_device(cpu, Place(rank=3, num=6, local_rank=0, local_num=3))
    assert taken == [1]
    with pytest.raises(ConfigError, match="so that each of the 2 ranks takes its own GPU, found 'cuda:1'"):
        following._check_device(ModelSettings(device="cuda:1"), Place(rank=0, num=2, local_num=2))


def sharing(engine: str, kind: Any) -> TrainSettings:
    settings = default_settings("flow-dpo", "seed")
    return replace(
        settings,
        learner=replace(settings.learner, rows=RowSettings(shard_base=True)),
        runtime=replace(settings.runtime, engine=default_engine(engine), workers=WorkersSettings(kind=kind)),
    )


def test_a_shared_base_wants_an_engine_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    two = Place(rank=0, num=2)
    for engine, given in (("local", None), ("plain", None), ("vllm", lambda loaded, policy: None)):
        with pytest.raises(ConfigError, match=r"an engine outside of this process with --learner.rows.shard_base true"):
            following._check_sharing(sharing(engine, "here"), two, given)
    merged = sharing("vllm", "here")
    merged = replace(merged, runtime=replace(merged.runtime, engine=VllmSettings(sync="merged")))
    with pytest.raises(ConfigError, match="found one that needs the learner's own model"):
        following._check_sharing(merged, two, None)
    with caplog.at_level(logging.WARNING):
        following._check_sharing(sharing("local", "ray"), two, None)
        following._check_sharing(sharing("plain", "ray"), two, None)
        following._check_sharing(sharing("vllm", "here"), two, None)
        assert not caplog.records
        following._check_sharing(sharing("vllm", "here"), Place(), None)
    assert "--learner.rows.shard_base has no effect in one process" in caplog.text
