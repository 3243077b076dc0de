"""Seeds by name, training problems of each seed's own, and a range of test problems."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flow_dpo.cli import compare as command
from flow_dpo.core.errors import ConfigError, LearningError
from flow_dpo.data.problems import DataSettings, load
from flow_dpo.evaluate.compare.provenance import MadeBy, TestSet, added
from flow_dpo.evaluate.compare.redraw import redrawn, redrawn_data
from flow_dpo.evaluate.compare.seed_results import ArmResult, SeedResult, write_seed
from flow_dpo.evaluate.compare.settings import CompareSettings
from flow_dpo.runs.resolve import read_settings

SEED = DataSettings(dataset_name="seed", max_problems=20, skip_problems=7)


def ids(data: DataSettings) -> set[str]:
    return {problem.id for problem in load(data).problems}


def a_file(folder: Path, rows: int) -> DataSettings:
    path = folder / "sums.jsonl"
    path.write_text(
        "".join(json.dumps({"question": f"{i} + 1?", "answer": f"#### {i + 1}"}) + "\n" for i in range(rows))
    )
    return DataSettings(dataset_name=str(path), max_problems=20, skip_problems=7)


@pytest.mark.parametrize("endless", [True, False])
def test_each_seed_has_problems_of_its_own_and_none_twice(tmp_path: Path, endless: bool) -> None:
    data = SEED if endless else a_file(tmp_path, 100)
    seen: list[set[str]] = []
    for seed in range(4):
        found = redrawn_data(data, 30, seed)
        trained, pool = ids(found["train"]), ids(found["pool"])
        assert (len(trained), len(pool)) == (20, 30)
        assert not trained & pool
        seen.append(trained)
    assert len({frozenset(each) for each in seen}) == 4
    if endless:
        assert not any(one & other for i, one in enumerate(seen) for other in seen[:i])


def test_the_flags_say_what_a_seed_has_of_its_own(tmp_path: Path) -> None:
    assert redrawn(SEED, 30, 0) == {"train": [], "pool": []}
    assert redrawn(SEED, 30, 2) == {
        "train": ["--data.skip_problems", "107"],
        "pool": ["--data.skip_problems", "127"],
    }
    shuffled = ["--data.shuffle_seed", "3"]
    assert redrawn(a_file(tmp_path, 100), 30, 3) == {"train": shuffled, "pool": shuffled}


def test_seeds_are_named_or_counted() -> None:
    assert CompareSettings(num_seeds=2).every_seed == (0, 1)
    assert CompareSettings(num_seeds=2, seeds=(5, 3, 9)).every_seed == (5, 3, 9)
    for seeds in ((1, 1), (-1,)):
        with pytest.raises(ConfigError, match="different seeds of 0 or more"):
            CompareSettings(seeds=seeds)
    with pytest.raises(ConfigError, match="one seed when a run stands"):
        CompareSettings(run="runs/train", seeds=(1, 2))


def commands_of(folder: Path, *flags: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The command lines of a comparison of two arms, none of which is run."""
    asked: dict[str, list[str]] = {}

    def note(words: list[str]) -> int:
        where = Path(words[words.index("--output_dir") + 1])
        asked[str(where.relative_to(folder))] = list(words)
        raise ConfigError("noted")

    monkeypatch.setattr(command, "COMMANDS", dict.fromkeys(("train", "generate", "sft", "evaluate"), note))
    words = ["--max_problems", "20", "--compare.arms", "[zero_shot,flow_itself]", "--compare.output_dir", str(folder)]
    with pytest.raises(ConfigError, match="noted"):
        command.compare([*words, *flags])
    return asked


def test_tests_begin_where_they_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--compare.tests.test_skip", "300", "--compare.tests.harder_split", "hard")
    commands_of(tmp_path, *flags, monkeypatch=monkeypatch)
    for name in ("held_out", "harder"):
        data: Any = read_settings(tmp_path / "settings" / f"{name}.yaml")["data"]
        assert (data["skip_problems"], data["dataset_split"]) == (300, "hard" if name == "harder" else "test")


def test_seeds_are_added_to_a_comparison_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = commands_of(tmp_path, "--compare.seeds", "[4]", monkeypatch=monkeypatch)
    more = commands_of(tmp_path, "--compare.seeds", "[7]", monkeypatch=monkeypatch)
    assert {name.partition("/")[0] for name in first} == {"seed4"}
    assert {name.partition("/")[0] for name in more} == {"seed7"}


def test_a_seed_whose_results_are_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder may be gone, but not its settings others."""
    commands_of(tmp_path / "first", "--compare.seeds", "[4]", monkeypatch=monkeypatch)
    settings: Any = read_settings(tmp_path / "first" / "config.yaml")
    made = MadeBy(commands=(), pieces=(), test_sets={})
    costs = dict.fromkeys(("tokens_sampled", "tokens_learned", "verdicts_used", "seconds"), 0.0)
    arm = ArmResult(verdicts={"held_out/greedy": ("1",)}, costs=costs, folders={}, steps={"traces": (0, 0)})
    arms = {"zero_shot": arm, "flow_itself": arm}
    result = SeedResult(seed=4, questions={"held_out": ("q",)}, arms=arms, failed={}, made=made, settings=settings)
    for folder in (tmp_path / "added", tmp_path / "other"):
        folder.mkdir()
        write_seed(folder, result)
    more = commands_of(tmp_path / "added", "--compare.seeds", "[4,7]", monkeypatch=monkeypatch)
    assert {name.partition("/")[0] for name in more} == {"seed7"}
    words = ["--max_problems", "21", "--compare.arms", "[zero_shot]", "--compare.output_dir", str(tmp_path / "other")]
    with pytest.raises(
        ConfigError, match=r"seed4.json.gz was made with other settings.*\n  data.max_problems: 20 then"
    ):
        command.compare([*words, "--compare.seeds", "[4]"])


def test_validation_problems_may_be_in_no_seeds_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--compare.rates.candidates", "[0.001]", "--compare.rates.validation_problems", "5")
    own = ("--compare.redraw_problems", "--compare.pool.pool_problems", "30", "--compare.seeds", "[0,40]")
    where = ("--compare.rates.validation_split", "train", "--compare.rates.validation_skip", "2010")
    words = ["--max_problems", "20", "--compare.arms", "[zero_shot]", "--compare.output_dir", str(tmp_path)]
    with pytest.raises(ConfigError, match="those of seed 40"):
        command.compare([*words, *flags, *own, *where])


def test_what_was_learned_of_a_test_stays_known_if_the_arms_that_are_added_have_no_test() -> None:
    """Stops are measured on a fixed set, and have no test of their own."""
    held_out = TestSet(dataset="seed/test", num_problems=10, learned=("q1",))
    known = MadeBy(commands=("a",), pieces=({"num_pieces": 1},), test_sets={"held_out": held_out})
    for commands in (("a", "b"), ("b",)):  # the folders of the earlier arms are still there, or gone
        found = added(known, MadeBy(commands=commands, pieces=({"num_pieces": 2},), test_sets={}))
        assert found.test_sets == {"held_out": held_out}
        assert found.commands == ("a", "b")


def test_an_arm_whose_learning_goes_wrong_fails_with_its_reason_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise LearningError("expected a finite loss, found nan")

    made: dict[str, Any] = {}

    def collect(path: Path, seed: int, outcomes: dict[str, Any], primary: str) -> SeedResult:
        made.update(outcomes)
        provenance = MadeBy(commands=(), pieces=(), test_sets={})
        return SeedResult(seed=seed, questions={}, arms={}, failed={}, made=provenance)

    monkeypatch.setattr(command, "EVERY", {"bad": SimpleNamespace(make=broken)})
    monkeypatch.setattr(command.seed_results, "collect", collect)
    do: Any = SimpleNamespace(path=tmp_path, settings={}, of=lambda _: SimpleNamespace(trained_at={}))
    monkeypatch.setitem(command.EVERY, "good", SimpleNamespace(make=lambda *_: "an outcome"))
    sizes: Any = SimpleNamespace(tests=("held_out/greedy",))
    command._one_seed(do, 0, ["bad", "good"], sizes)
    assert made == {"bad": "expected a finite loss, found nan", "good": "an outcome"}
