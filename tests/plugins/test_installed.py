"""Do installed plug-ins of every kind work by name, and is nothing imported that was not named?"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from flow_dpo.cli.main import main
from flow_dpo.cli.train import parse_train
from flow_dpo.core.errors import ConfigError
from flow_dpo.data.problems import load
from flow_dpo.plugins.load import KINDS, every_installed, fingerprint, load_object
from flow_dpo.runs.files import read_jsonl
from flow_dpo.runs.following import code_of_run, load_code
from flow_dpo.runs.settings import TrainSettings
from flow_dpo.verify.grader import GradingSettings
from flow_dpo.workers.grading import named_grader

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"
TRAIN = ["train", "--max_problems", "4", "--problems_per_batch", "2"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, installed by pip into a folder of its own, offline."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    words = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *words, "--target", str(folder / "site"), str(folder / "source")]
    subprocess.run(command, check=True, timeout=120)
    return folder / "site"


@pytest.fixture(scope="module")
def lab(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of what was installed, on the path."""
    folder = tmp_path_factory.mktemp("lab") / "site"
    shutil.copytree(site, folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(folder))
        for name in [name for name in sys.modules if name.startswith("flow_dpo_lab")]:
            patched.delitem(sys.modules, name)
        yield folder


def package(folder: Path, entries: str, code: str = "raise AssertionError('imported')\n", *, name: str) -> None:
    """An installed package of one module, whose import fails where it has no code."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-3.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 3.0\n")
    (info / "entry_points.txt").write_text(entries)


OFFERED = """[flow_dpo.recipes]
flow-dpo = broken:A
mine = broken:B
[flow_dpo.objectives]
never = broken:D
[flow_dpo.trackers]
wandb = broken:C
"""
OBJECTIVE = """
from dataclasses import dataclass
from flow_dpo import Dpo

CALLS = []


@dataclass(frozen=True, kw_only=True)
class Counted(Dpo):
    factor: float = 1.0

    def __call__(self, examples, policy, reference):
        CALLS.append((self.factor, len(examples)))
        return super().__call__(examples, policy, reference)
"""


@pytest.fixture(scope="module")
def run(lab: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an installed recipe, reward function and tracker."""
    run = tmp_path_factory.mktemp("installed") / "run"
    words = ["--recipe", "most-certain", "--reward", "answer,short", "--report_to", "csv"]
    assert main([*TRAIN, *words, "--output_dir", str(run)]) == 0
    return run


def test_a_recipe_and_a_tracker_by_name(run: Path) -> None:
    rows = read_jsonl(run / "metrics.jsonl")
    with (run / "curves.csv").open(newline="") as file:
        curve = [(int(step), float(value)) for step, name, value in csv.reader(file) if name == "progressive/accuracy"]
    assert curve == [(row["problems_seen"], row["progressive/accuracy"]) for row in rows]
    facts = json.loads((run / "run.json").read_text())
    assert facts["recipe_file"] == fingerprint("most-certain", "recipe")
    assert facts["recipe_file"].startswith("flow-dpo-lab 0.1.0 ")
    assert "plugins" not in facts, "what is installed and was not named is no part of the run"
    assert (run / "report.html").exists(), "the command line has the report made for trackers"


def test_a_reward_function_by_name(run: Path) -> None:
    values = [
        rollout["verdict"]["value"]
        for tree in read_jsonl(run / "trees.jsonl")
        for rollout in tree["rollouts"]
        if rollout["verdict"] is not None
    ]
    assert any(value not in (0, 1) for value in values)
    facts = json.loads((run / "run.json").read_text())
    assert facts["reward_files"] == {"answer": None, "short": fingerprint("short", "reward")}


def test_parts_and_a_grader_take_their_places_and_nothing_else_is_imported(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package(tmp_path, OFFERED, name="broken")
    package(tmp_path, "[flow_dpo.recipes]\nmine = other:B\n", name="other")
    monkeypatch.syspath_prepend(str(tmp_path))
    mine, run = tmp_path / "mine.py", tmp_path / "run"
    mine.write_text(OBJECTIVE)
    words = ["--recipe", "online-dpo", "--credit", "certain-pairs", "--credit.margin", "2"]
    words += ["--objective", f"{mine}:Counted", "--objective.factor", "3", "--grader", f"{mine}:Lengths"]
    mine.write_text(OBJECTIVE + GRADER)
    assert main([*TRAIN, *words, "--examples_per_update", "1", "--output_dir", str(run)]) == 0
    # 1. Settings and checksums are those of what was named.
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["credit_source"], config["grading"]["grader"]) == ("certain-pairs", f"{mine}:Lengths")
    facts = json.loads((run / "run.json").read_text())
    of_file = hashlib.sha256(mine.read_bytes()).hexdigest()
    assert facts["plugins"] == {"credit": fingerprint("certain-pairs", "credit"), "objective": of_file,
                                "grader": of_file}  # fmt: skip
    assert facts["recipe_file"] is None, "the built-in was used"
    # 2. They did the work.
    graded = [each for tree in read_jsonl(run / "trees.jsonl") for each in tree["rollouts"] if each["verdict"]]
    assert {each["verdict"]["reason"] for each in graded} == {"by its length"}
    pairs = read_jsonl(run / "pairs.jsonl")
    assert {pair["margin"] for pair in pairs} == {2.0}
    calls = sys.modules[load_object(f"{mine}:Counted", kind="objective").__module__].CALLS
    assert {factor for factor, _ in calls} == {3.0}
    assert sum(num for _, num in calls) == len(pairs)
    # 3. Nothing else was imported; what a resumed run must share is refused by name.
    assert not {"broken", "other"} & set(sys.modules)
    assert main(["train", "--resume", "--output_dir", str(run)]) == 0
    capsys.readouterr()
    with mine.open("a") as file:
        file.write("# another version\n")
    with (lab / "flow_dpo_lab" / "recipe.py").open("a") as file:
        file.write("# another version\n")
    assert main(["train", "--resume", "--output_dir", str(run)]) == 1
    said = capsys.readouterr().err
    for kind in ("credit flow-dpo-lab 0.1.0 ", "objective ", "grader "):
        assert kind in said
    assert "--allow plugins" in said


GRADER = """

from flow_dpo import Verdict


class Lengths:
    def __init__(self, renderer):
        self.renderer = renderer

    def begin(self, problem, solution):
        pass

    def check(self, items):
        return [self.verdict(len(self.renderer.to_text(solution.pieces))) for _, solution in items]

    def check_texts(self, items):
        return [self.verdict(len(text)) for _, text, _ in items]

    def grade(self, trees):
        for tree in trees:
            for rollout in tree.rollouts:
                text = self.renderer.to_text(rollout.solution.pieces)
                tree.grade(rollout.id, text, self.verdict(len(text)))

    def verdict(self, length):
        return Verdict(status="correct" if length % 2 else "wrong", reason="by its length")
"""


def test_the_documented_commands_parse(lab: Path) -> None:
    lines = (EXAMPLE.parents[1] / "docs" / "plugins.md").read_text().splitlines()
    found = [line.removeprefix("$ flow-dpo train ") for line in lines if line.startswith("$ flow-dpo train ")]
    parsed = [parse_train("flow-dpo train", line.split(), {}) for line in found]
    assert [type(settings.recipe.credit).__name__ for settings in parsed] == [
        "CertainPairs",
        "AttemptCredit",
        "CertainPairs",
        "AttemptCredit",
    ]
    assert parsed[1].runtime.grading.rewards == ("answer", "short")
    assert set(parsed[3].code()["plugins"]) == {"grader", "schema"}
    groups = set(re.findall(r"`flow_dpo\.(\w+)s` \|$", "\n".join(lines), flags=re.MULTILINE))
    assert groups == set(KINDS), "the table has every kind"


def test_a_schema_and_a_grader_of_choices(lab: Path, tmp_path: Path) -> None:
    rows = [
        {"question": "2 + 3?", "options": ["A)4", "B)5"], "rationale": "", "correct": "B"},
        {"question": "2 + 2?", "options": ["A)4", "B)5"], "rationale": "2 + 2 = 4", "correct": "C"},
    ]
    path = tmp_path / "aqua.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--dataset_name", str(path), "--schema", "aqua", "--grader", "letter"]
    runtime = parse_train("flow-dpo train", words, {}).runtime
    found = load(runtime.data)
    [problem] = found.problems
    assert (problem.question.splitlines()[:2], problem.gold) == (["2 + 3?", "A)4"], "B")
    assert found.skipped_reasons == {"expected the letter of an option in 'correct'": 1}
    [kept] = load(replace(runtime.data, max_problems=1), columns=True).problems
    assert kept.columns["options"] == ["A)4", "B)5"]
    source = named_grader(runtime.grading)
    assert callable(source)
    grader = source(cast(Any, None))
    verdicts = grader.check_texts([(problem, text, True) for text in ("A, no: B.", "It is A", "42")])
    assert [verdict.status for verdict in verdicts] == ["correct", "wrong", "wrong"]


def test_an_installed_flow_engine_and_exploration_are_named_with_their_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (EXAMPLE.parent / "custom_flow.py").read_text() + MORE
    entries = "[flow_dpo.flows]\ncritique = critiques:Critique\n[flow_dpo.engines]\nsame = critiques:SAME\n"
    package(tmp_path, entries + "[flow_dpo.explores]\nfew = critiques:Few\n", code, name="critiques")
    package(tmp_path, OFFERED, name="broken")
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["--flow", "critique", "--flow.solution_tokens", "7", "--engine", "same", "--engine.lanes", "3"]
    words += ["--explore", "few", "--explore.num_rollouts", "3"]
    settings = parse_train("flow-dpo train", words, {})
    assert type(settings.recipe.flow).__module__ == "critiques"
    assert (settings.flow_source, settings.recipe.flow.solution_tokens) == ("critique", 7)
    assert settings.runtime.engine.lanes == 3
    assert (type(settings.recipe.explore).__name__, settings.recipe.explore.num_rollouts) == ("Few", 3)
    assert TrainSettings.from_sections(settings.sections()) == settings
    facts = settings.code()
    expected = fingerprint("critique", "flow")
    assert expected is not None
    assert expected.startswith("critiques 3.0 ")
    assert (facts["flow_file"], facts["plugins"]) == (expected, {"engine": expected, "explore": expected})
    # Followers load the same, and refuse another version.
    sources = code_of_run(settings)
    assert sources == (("flow", "critique", expected), ("explore", "few", expected))
    monkeypatch.delitem(sys.modules, "critiques")
    load_code(sources)
    assert "critiques" in sys.modules
    (tmp_path / "critiques.py").write_text(code + "# another version\n")
    assert settings.code()["plugins"]["engine"] != expected
    with pytest.raises(ConfigError, match=r"same code for critique on all ranks, found critiques 3\.0 \w+ here and"):
        load_code(sources)
    assert "broken" not in sys.modules


MORE = """

from flow_dpo.core.explore import Group
from flow_dpo.engines.settings import EngineKind


@dataclass(frozen=True, kw_only=True)
class SameSettings:
    lanes: int = 2


@dataclass(frozen=True, kw_only=True)
class Few(Group):
    num_rollouts: int = 2


SAME = EngineKind(settings=SameSettings, open="critiques:never")
"""


def test_the_list_imports_nothing_and_marks_what_is_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package(tmp_path, OFFERED, name="broken")
    package(tmp_path, "[flow_dpo.recipes]\nmine = other:B\n", name="other")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["plugins"]) == 0
    lines = {tuple(line.split()[:2]): line for line in capsys.readouterr().out.splitlines()}
    assert "never used: a built-in has this name" in lines["recipe", "flow-dpo"]
    assert "never used: a built-in has this name" in lines["tracker", "wandb"]
    assert "broken 3.0" in lines["recipe", "flow-dpo"]
    assert "refused: several packages" in lines["recipe", "mine"]
    assert {each.place for each in every_installed()} >= {"broken:A", "broken:B", "broken:C", "other:B"}
    assert not {"broken", "other"} & set(sys.modules)
    assert fingerprint("flow-dpo", "recipe") is not None
    assert fingerprint("", "recipe") is None, "no name stands for nothing"
    with pytest.raises(ConfigError, match=r"expected one installed recipe 'mine', found those of .* uninstall one"):
        load_object("mine", kind="recipe")
    # Settings that name none of them import and record none of them.
    assert parse_train("flow-dpo train", [], {}).code() == {"recipe_file": None, "flow_file": None}
    assert not {"broken", "other"} & set(sys.modules)


def test_what_is_no_grader_and_what_is_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("NONE = 3\nRows = dict\n")
    with pytest.raises(ConfigError, match=r"expected a grader \(begin, check, grade, check_texts\) in .*, found 3"):
        named_grader(GradingSettings(grader=f"{tmp_path}/mine.py:NONE"))
    with pytest.raises(ConfigError, match="expected grader or rewards, found both: a and b"):
        GradingSettings(grader="a", rewards=("b",))
    with pytest.raises(ConfigError, match="installed grader for --grader, found 'nobody'; installed:"):
        named_grader(GradingSettings(grader="nobody"))
