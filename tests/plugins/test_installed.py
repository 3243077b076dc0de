"""Do an installed package's recipe, credit and tracker work by name, and is nothing imported that was not named?"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flow_dpo.cli.main import main
from flow_dpo.core.errors import ConfigError
from flow_dpo.plugins.load import every_installed, fingerprint, load_object
from flow_dpo.runs.files import read_jsonl

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


@pytest.fixture
def lab(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what was installed, on the path."""
    shutil.copytree(site, tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in [name for name in sys.modules if name.startswith("flow_dpo_lab")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path / "site"


def test_its_names_work_and_its_code_is_part_of_a_resumption(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*TRAIN, "--recipe", "most-certain", "--report_to", "csv", "--output_dir", str(run)]) == 0
    rows = read_jsonl(run / "metrics.jsonl")
    with (run / "curves.csv").open(newline="") as file:
        curve = [(int(step), float(value)) for step, name, value in csv.reader(file) if name == "progressive/accuracy"]
    assert curve == [(row["problems_seen"], row["progressive/accuracy"]) for row in rows]
    facts = json.loads((run / "run.json").read_text())
    assert facts["recipe_file"] == fingerprint("most-certain", "recipe")
    assert facts["recipe_file"].startswith("flow-dpo-lab 0.1.0 ")
    # A changed module is refused by name.
    with (lab / "flow_dpo_lab" / "recipe.py").open("a") as file:
        file.write("# another version\n")
    assert main(["train", "--resume", "--output_dir", str(run)]) == 1
    assert "recipe_file: flow-dpo-lab 0.1.0" in capsys.readouterr().err


def test_a_credit_takes_the_place_of_the_recipes_and_its_fields_are_settings(lab: Path, tmp_path: Path) -> None:
    words = [*TRAIN, "--recipe", "online-dpo", "--credit", "certain-pairs", "--credit.margin", "2"]
    assert main([*words, "--output_dir", str(tmp_path / "run")]) == 0
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "credit_source: certain-pairs" in config
    assert {pair["margin"] for pair in read_jsonl(tmp_path / "run" / "pairs.jsonl")} <= {2.0}
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["plugins"] == {"credit": fingerprint("certain-pairs", "credit")}
    assert main(["train", "--resume", "--output_dir", str(tmp_path / "run")]) == 0


def broken(folder: Path, entries: str, *, name: str = "broken") -> None:
    """An installed package whose import fails."""
    (folder / f"{name}.py").write_text("raise AssertionError('imported')\n")
    info = folder / f"{name}-3.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 3.0\n")
    (info / "entry_points.txt").write_text(entries)


def test_the_list_imports_nothing_and_marks_what_is_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(
        tmp_path, "[flow_dpo.recipes]\nflow-dpo = broken:A\nmine = broken:B\n[flow_dpo.trackers]\nwandb = broken:C\n"
    )
    broken(tmp_path, "[flow_dpo.recipes]\nmine = other:B\n", name="other")
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
    with pytest.raises(ConfigError, match=r"expected one installed recipe 'mine', found those of .* uninstall one"):
        load_object("mine", kind="recipe")
    # A run that names none of them imports none of them.
    assert main([*TRAIN, "--output_dir", str(tmp_path / "run")]) == 0
    assert not {"broken", "other"} & set(sys.modules)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (facts["recipe_file"], "plugins" in facts) == (None, False), "the built-in was used"
