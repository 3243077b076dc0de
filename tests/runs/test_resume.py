"""Is a resumed run, bit for bit, the run that was never interrupted?"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import flow_dpo
from flow_dpo.cli import train as commands
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.learner.learner import Learner
from flow_dpo.runs import run_folder, runtime
from flow_dpo.runs.callbacks.run_keeper import last_saved
from flow_dpo.runs.files import read_jsonl
from flow_dpo.runs.records import read_metrics, rows_up_to, versions_after
from tests.support.once import Once
from tests.support.run_equality import assert_same_run

WORDS = ("--max_problems", "20", "--problems_per_batch", "8", "--examples_per_update", "12", "--save_updates", "3")
"""Versions 1, 3 and 5 after its batches: 3 is saved on the way, and 5 at the end."""


def train(folder: Path, *more: str) -> int:
    return commands.train([*WORDS, "--output_dir", str(folder), *more])


@pytest.fixture(scope="module")
def whole(once: Once) -> Path:
    return once("resume", lambda folder: train(folder / "run")) / "run"


def interrupt(folder: Path, monkeypatch: pytest.MonkeyPatch, *, after: int, more: Sequence[str] = ()) -> None:
    """Train until Ctrl-C comes inside batch `after` + 1, when it is learned from."""
    update, calls = Learner.update, iter(range(100))

    def interrupted(self: Learner, *words: Any) -> Any:
        if next(calls) == after:
            raise KeyboardInterrupt
        return update(self, *words)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(folder, *more)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_resumed_after_ctrl_c(after: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(tmp_path / "run", monkeypatch, after=after)
    # Only the folder need be named: the settings are the run's own.
    assert commands.train(["--output_dir", str(tmp_path / "run"), "--resume"]) == 0
    assert_same_run(whole, tmp_path / "run")


def test_which_adapters_are_saved_follows_from_the_versions_alone(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [last_saved(versions, 8) for versions in ([], [2, 7], [2, 8, 9], [2, 9, 16, 17])] == [0, 0, 8, 17]
    assert last_saved([2, 9], 0) == 0
    rows = read_metrics(whole / "metrics.jsonl")
    assert versions_after(rows) == [1, 3, 5]
    assert versions_after(rows) == [row["learn/version"] + row["learn/updates"] for row in rows]
    assert [len(rows_up_to(rows, version)) for version in range(6)] == [0, 1, 1, 2, 2, 3]
    # A round that begins with other adapters is a version of its own, which no update made.
    rounds = [{"learn/version": version, "learn/updates": 3} for version in (0, 3, 7, 10)]
    assert versions_after(rounds) == [3, 7, 10, 13]
    assert [len(rows_up_to(rounds, version)) for version in (3, 6, 7, 12, 13, 14)] == [1, 1, 2, 3, 4, 4]
    # An interruption saves version 1, too, which changes nothing of what is saved later.
    interrupt(tmp_path / "run", monkeypatch, after=1)
    assert saved(tmp_path / "run") == {"1"}
    assert commands.train(["--output_dir", str(tmp_path / "run"), "--resume"]) == 0
    assert (saved(whole), saved(tmp_path / "run")) == ({"3", "5"}, {"1", "3", "5"})
    # Ended between a checkpoint and the adapters that were to be saved with it.
    shutil.copytree(tmp_path / "run", tmp_path / "late")
    shutil.rmtree(tmp_path / "late" / "checkpoints" / "00000020")
    for folder in (tmp_path / "late" / "adapters").iterdir():
        shutil.rmtree(folder / "3")
    assert commands.train(["--output_dir", str(tmp_path / "late"), "--resume"]) == 0
    assert_same_run(whole, tmp_path / "late")


def saved(run: Path) -> set[str]:
    """Versions whose adapters all roles have."""
    return set.intersection(*({path.name for path in role.iterdir()} for role in (run / "adapters").iterdir()))


def test_rare_checkpoints_change_nothing(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(tmp_path / "run", monkeypatch, after=2, more=["--checkpoint_batches", "2"])
    with (tmp_path / "run" / "trees.jsonl").open("a") as file:
        file.write('{"torn": ')
    assert train(tmp_path / "run", "--resume", "--checkpoint_batches", "5") == 0
    assert_same_run(whole, tmp_path / "run")


def test_a_resumed_run_may_have_another_lag_and_loses_no_batch_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--problems_per_batch", "4", "--examples_per_update", "4", "--num_threads", "1"]
    interrupt(tmp_path / "run", monkeypatch, after=3, more=[*more, "--lag", "2"])
    before = [row["policy_version"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert before[:3] == [0, 0, 0]
    words = ["--output_dir", str(tmp_path / "run"), "--resume", "--lag"]
    with pytest.raises(ConfigError, match=r"--allow run\.lag\n  run\.lag: 2 then, 0 now"):
        commands.train([*words, "0"])
    assert commands.train([*words, "0", "--allow", "run.lag"]) == 0
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [row["problems_seen"] for row in rows] == [4, 8, 12, 16, 20]
    # The two that were in flight keep the versions that they were submitted with.
    assert [row["policy_version"] for row in rows[3:]] == [row["learn/version"] for row in rows[1:3]]
    assert rows[1]["learn/version"] < rows[3]["learn/version"]


def test_a_resumption_of_nothing_is_refused(whole: Path, tmp_path: Path) -> None:
    """It would train something else than was meant: the defaults' model on the defaults' problems."""
    with pytest.raises(ConfigError, match=r"expected a run to resume in .*run, found none"):
        train(tmp_path / "run", "--resume")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="found none"):
        flow_dpo.train(output_dir=tmp_path / "run", resume=True, quiet=True)
    shutil.copytree(whole, tmp_path / "gsm8k")
    with pytest.raises(ConfigError, match=r"did you mean .*gsm8k\?"):
        train(tmp_path / "gsm8", "--resume")
    config = tmp_path / "gsm8k" / "config.yaml"
    text = config.read_text()
    for torn in ("", text.split("learner:")[0]):
        config.write_text(torn)
        with pytest.raises(DataError, match=r"learner, run among the settings in .*the file is incomplete"):
            train(tmp_path / "gsm8k", "--resume")
    config.unlink()
    with pytest.raises(ConfigError, match=r"expected the settings of the run in .*config\.yaml, found no such file"):
        train(tmp_path / "gsm8k", "--resume")
    with pytest.raises(ConfigError, match="already holds a run"):
        train(tmp_path / "gsm8k")


def test_a_finished_run_resumed_stays_as_it_is(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    assert train(tmp_path / "run", "--resume") == 0
    assert_same_run(whole, tmp_path / "run")


def test_a_run_that_a_drift_stopped_is_resumed_with_a_higher_limit(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    assert train(tmp_path / "run", "--resume", "--max_logprob_drift", "0.5") == 0
    assert_same_run(whole, tmp_path / "run")


def test_a_resumed_run_may_name_the_precision_that_auto_stood_for(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    assert train(tmp_path / "run", "--resume", "--dtype", "float32") == 0
    assert_same_run(whole, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"--allow model\.dtype,dtype\n"):
        train(tmp_path / "run", "--resume", "--dtype", "bfloat16")


def test_other_settings_are_refused_by_name(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"--allow objective\.beta\n  objective\.beta: 1\.0 then, 0\.5 now"):
        train(tmp_path / "run", "--resume", "--beta", "0.5")
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "_code", lambda: "other")
        with pytest.raises(ConfigError, match=r"--allow code\n"):
            train(tmp_path / "run", "--resume")
    # More problems are other data, and a reasonable wish.
    more = ["--resume", "--max_problems", "28", "--output_dir", str(tmp_path / "run")]
    with pytest.raises(ConfigError, match=r"--allow data\.max_problems,data\n"):
        commands.train(more)
    assert commands.train([*more, "--allow", "data.max_problems,data"]) == 0
    assert [row["problems_seen"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")] == [
        8,
        16,
        20,
        28,
    ]
    assert run_folder.read_facts(tmp_path / "run")["resumed_with"]["differences"]["data.max_problems"] == [20, 28]


def test_names_that_nothing_bears_are_refused_before_anything_is_loaded(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, tmp_path / "run")

    def load(*_: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(runtime, "load_model", load)
    for name, near in [
        ("learner.learning_rat", r"learner\.learning_rate"),
        ("beta", r"objective\.beta"),
        ("learner", r"one by one: learner\.learning_rate"),
        ("dta", "data"),
        ("???", "--help lists all settings"),
    ]:
        with pytest.raises(ConfigError, match=f"in --allow, or code, .*, found '{re.escape(name)}'; .*{near}"):
            train(tmp_path / "run", "--resume", "--allow", f"data,{name}")
    # So is what differs, all of it at once: settings, code and data.
    monkeypatch.setattr(run_folder, "_code", lambda: "other")
    with pytest.raises(ConfigError, match=r"rate,objective\.beta,data\.max_problems,code,data\n  data\.max"):
        train(tmp_path / "run", "--resume", "--max_problems", "28", "--beta", "0.5",
              "--learner.roles.stop.learning_rate", "1e-4",
              "--allow", "learner.roles.stop.learning_rate,objective.beta")  # fmt: skip


def test_a_flipped_bit_is_found_and_the_one_before_is_taken(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    older, newest = sorted((tmp_path / "run" / "checkpoints").iterdir())
    flip(newest / "learner" / "learner.safetensors")
    assert train(tmp_path / "run", "--resume") == 0
    assert "00000020 is damaged (learner/learner.safetensors not as written)" in caplog.text
    assert_same_run(whole, tmp_path / "run")
    for folder in (older, newest):
        flip(folder / "loop.json")
    with pytest.raises(DataError, match="found 2, all damaged"):
        train(tmp_path / "run", "--resume")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_records_that_lost_what_was_committed_are_refused(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    content = (whole / "pairs.jsonl").read_bytes()
    (tmp_path / "run" / "pairs.jsonl").write_bytes(content[:-10])
    with pytest.raises(DataError, match=rf"expected at least the {len(content)} bytes"):
        train(tmp_path / "run", "--resume")


def test_two_processes_on_one_folder_are_refused(tmp_path: Path) -> None:
    with (
        run_folder.locked(tmp_path / "run"),
        pytest.raises(ConfigError, match=r"another process( \(pid \d+\))? writes to"),
    ):
        train(tmp_path / "run")


def test_adapters_of_an_interrupted_run_are_those_of_its_last_checkpoint(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(self: Learner, *_: Any) -> float:
        raise KeyboardInterrupt

    folder = tmp_path / "run"
    interrupt(folder, monkeypatch, after=1)
    rows = read_jsonl(folder / "metrics.jsonl")
    assert [path.name for path in run_folder.latest_adapters(folder).values()] == [str(rows[0]["learn/updates"])] * 2
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "_step", half)
        with pytest.raises(KeyboardInterrupt):
            train(folder, "--resume")
    train(folder, "--resume")
    assert_same_run(whole, folder)


def test_a_run_of_true_or_false_needs_no_value() -> None:
    settings = commands.parse_train(
        "t", ["--recipe=flow-dpo-paper", "--balance", "--greedy_trunk", "--beta", "0.5"], {}
    )
    assert settings.recipe.credit.balance
    assert settings.recipe.explore.greedy_trunk
    assert not commands.parse_train("t", ["--greedy_trunk", "false"], {}).recipe.explore.greedy_trunk


def test_facts_that_are_no_json_are_named(tmp_path: Path) -> None:
    assert run_folder.read_facts(tmp_path) == {}
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(DataError, match="found list"):
        run_folder.read_facts(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run\.json"):
        run_folder.read_facts(tmp_path)
