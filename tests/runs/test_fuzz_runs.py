"""Is every settings file and every run folder, however broken, read cleanly or refused by name?"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_dpo.cli import train
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.learner.learner import Learner, LearnerSettings
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.runs import run_folder
from flow_dpo.runs.checkpoint import Checkpoints
from flow_dpo.runs.files import read_jsonl
from flow_dpo.runs.records import Metrics, from_json
from flow_dpo.runs.settings import TrainSettings, default_settings
from flow_dpo.runs.tree_rows import TreeRow
from tests.support.packed_builders import ROLES
from tests.support.record_examples import METRICS, TREE
from tests.support.tiny_models import tiny_model

SECTIONS = default_settings("flow-dpo", "seed").sections()
NAMES = sorted({*SECTIONS, *(name for part in SECTIONS.values() for name in getattr(part, "__dict__", {}))})
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(NAMES)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
DAMAGE = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=3)


def damaged(content: bytes, damage: list[tuple[int, int]]) -> bytes:
    found = bytearray(content)
    for at, byte in damage:
        if found:
            found[at % len(found)] = byte
    return bytes(found)


def settings_file(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "given.yaml"
        path.write_bytes(content)
        try:
            found = train.parse_train("t", ["--config", str(path)], {})
        except ConfigError:
            return
    assert isinstance(found, TrainSettings)
    assert yaml.safe_load(yaml.safe_dump(run_folder.plain(found.sections())))


SETTINGS = (st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=6), VALUES, max_size=4) | VALUES, DAMAGE)


def any_settings(value: Any, damage: list[tuple[int, int]]) -> None:
    text = yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")
    settings_file(text)
    settings_file(damaged(text, damage))


@settings(max_examples=60, deadline=None)
@given(*SETTINGS)
def test_any_settings_file_is_read_or_refused(value: Any, damage: list[tuple[int, int]]) -> None:
    any_settings(value, damage)


@pytest.mark.slow
@settings(max_examples=5_000, deadline=None)
@given(*SETTINGS)
def test_ten_thousand_settings_files(value: Any, damage: list[tuple[int, int]]) -> None:
    any_settings(value, damage)


@pytest.mark.parametrize("text", ["beta: 2024-99-99", 'beta: "\\UFFFFFFFF"', "beta: !!int ''", "[" * 5000])
def test_values_that_yaml_cannot_make_are_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "given.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"expected YAML in .*given\.yaml"):
        train.parse_train("t", ["--config", str(path)], {})


def test_a_group_that_is_no_mapping_is_named(tmp_path: Path) -> None:
    path = tmp_path / "given.yaml"
    path.write_text("engine:\n")
    with pytest.raises(ConfigError, match="expected names and values under engine"):
        train.parse_train("t", ["--config", str(path)], {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with one checkpoint."""
    path = tmp_path_factory.mktemp("runs") / "run"
    run = run_folder.RunFolder.create(path, {"flow": {"chunk_tokens": 4}}, {"device": "cpu"})
    run.record(from_json(Metrics, METRICS, "here"), [from_json(TreeRow, TREE, "here")])
    Checkpoints(path).write(small_learner(), 1, {"sizes": run.sizes(), "progressive": {}, "policy_version": 0})
    return path


def small_learner() -> Learner:
    policy = Policy(tiny_model("llama"), ROLES, LoraSettings(lora_r=2), seed=5)
    return Learner(policy, LearnerSettings(learning_rate=1e-3))


def damaged_run(folder: Path, which: int, damage: list[tuple[int, int]], cut: int | None) -> None:
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "run"
        shutil.copytree(folder, copy)
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        victim = files[which % len(files)]
        before = victim.read_bytes()
        after = damaged(before, damage)[:cut]
        victim.write_bytes(after)
        changed = after != before
        rows: list[list[Any]] = []
        try:
            newest = Checkpoints(copy).newest()
            assert newest is not None
            assert not (changed and "checkpoints" in victim.parts and victim.name != "checksums.json")
            run_folder.RunFolder(copy).reopen(newest[1]["sizes"])
            rows = [read_jsonl(copy / name) for name in run_folder.RECORDS if (copy / name).exists()]
            run_folder.read_facts(copy)
        except DataError as error:
            # Named: the file itself, or the folder whose checkpoints are damaged.
            refused = str(error)
        else:
            refused = ""
    if refused:
        assert str(copy) in refused
        return
    assert all(isinstance(row, dict) for file in rows for row in file)


CASES = (st.integers(0, 100), DAMAGE, st.none() | st.integers(0, 500))


@settings(max_examples=150, deadline=None)
@given(*CASES)
def test_any_damage_to_a_run_is_found_or_harmless(
    folder: Path, which: int, damage: list[tuple[int, int]], cut: int | None
) -> None:
    damaged_run(folder, which, damage, cut)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(*CASES)
def test_ten_thousand_damaged_runs(folder: Path, which: int, damage: list[tuple[int, int]], cut: int | None) -> None:
    damaged_run(folder, which, damage, cut)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["learner.json", "learner.safetensors"]), DAMAGE, st.none() | st.integers(0, 500))
def test_a_damaged_learner_is_refused_without_its_checksum_too(
    folder: Path, name: str, damage: list[tuple[int, int]], cut: int | None
) -> None:
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(folder / "checkpoints" / "00000001" / "learner", Path(place) / "learner")
        victim = Path(place) / "learner" / name
        victim.write_bytes(damaged(victim.read_bytes(), damage)[:cut])
        with contextlib.suppress(DataError):
            small_learner().load(Path(place) / "learner")


def test_rows_that_are_no_objects_are_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"a": 1}) + "\n[1]\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2"):
        read_jsonl(path)
