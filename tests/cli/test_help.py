"""Is --help short, complete on request, in the names typed, and answered (every typo too) without torch?"""

from __future__ import annotations

import subprocess
import sys

import pytest

from flow_dpo.cli.main import _COMMANDS, main
from flow_dpo.recipes.presets import _LINES, GPU, PRESET_LINES, PRESET_NAMES, RECIPES
from flow_dpo.runs.help_pages import _USUAL
from flow_dpo.runs.setting_names import Names
from flow_dpo.runs.settings import default_settings

HEAVY = ("torch", "transformers", "peft", "datasets", "scipy", "matplotlib", "trl", "vllm", "safetensors")

# Every command line in turn, in one process: the first that loads something heavy is named.
LIGHT = """
import sys
from flow_dpo.cli.main import main
for words in {lines!r}:
    try:
        status = main(words)
    except SystemExit as ended:
        status = ended.code
    heavy = [name for name in {heavy!r} if name in sys.modules]
    assert not heavy, (words, heavy)
    assert status == (0 if "--help" in words else 1), (words, status)
"""


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_helps_and_typos_load_nothing_heavy() -> None:
    typos = [
        "--learning_rte 1", "--learning_rate abc", "--max_problems ten", "--temperature 0", "--recipe vinepo",
        "--preset papper", "--dtype bf16", "--engine vlm", "--engine vllm --gpu_memry 1", "--flow critique",
        "--resume maybe", "--config nowhere.yaml", "--flow nowhere.py:Name", "somewhere",
    ]  # fmt: skip
    lines = [[command, "--help"] for command in _COMMANDS]
    lines += [["train", "--recipe", recipe, "--help", "all"] for recipe in RECIPES]
    lines += [["train", "--recipe", recipe, "--beta", "none"] for recipe in RECIPES]
    lines += [["train", *typo.split()] for typo in typos]
    lines += [[command, "--outptu_dir", "x"] for command in _COMMANDS if command != "verify"]
    code = LIGHT.format(lines=lines, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_short_page_has_what_is_used_most(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    page = help_of(capsys, "train", "--help")
    assert len(page.splitlines()) <= 64 + len(RECIPES)
    assert max(map(len, page.splitlines())) <= 130
    for name in (*RECIPES, *PRESET_NAMES):
        assert f"\n  {name} " in page
    for flag in ("--flow FILE.py:NAME", "--reward FILE.py:NAME",
                 "--engine local|plain|vllm|vllm_server", "--workers here|processes|servers|ray",
                 "--output_dir TEXT", "--learning_rate NUMBER", "--max_problems N", "--resume "):  # fmt: skip
        assert f"\n  {flag}" in page
    assert "--run.output_dir TEXT" not in page
    assert "--schedule" not in page
    assert "\n  flow-dpo train --model_name_or_path Qwen" in page, "its examples"


def test_all_settings_are_there_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    page = help_of(capsys, "train", "--help", "all")
    names = Names(default_settings("flow-dpo", "seed").sections())
    for name in names.defaults:
        typed = {
            "engine_kind": "engine", "flow_source": "flow", "workers.kind": "workers", "grading.rewards": "reward"
        }.get(name)  # fmt: skip
        assert f"\n  --{typed or names.shortest(name)}" in page, name
    assert "--learner.roles.NAME.learning_rate" in page


def test_a_group_and_a_setting_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    group = help_of(capsys, "train", "--help", "learner")
    assert "--schedule" in group
    assert "learner.rows: " in group
    assert "--output_dir" not in group
    one = help_of(capsys, "train", "--recipe", "grpo", "--help", "kl_coef")
    assert one.startswith("--kl_coef NUMBER\n  in full    --objective.kl_coef\n")
    assert "0 leaves the reference out." in one
    assert "default    plain" in help_of(capsys, "train", "--engine", "plain", "--help=engine_kind")
    assert main(["train", "--help", "lerning_rate"]) == 1
    assert "did you mean learning_rate" in capsys.readouterr().err
    assert main(["train", "--learning_rte", "1", "--help"]) == 1


def test_every_name_on_the_pages_has_its_line() -> None:
    assert set(_LINES) == set(RECIPES)
    assert set(PRESET_LINES) == {*PRESET_NAMES, GPU}
    known = Names(default_settings("flow-dpo", "chat").sections()).defaults
    of_others = {"grading.rewards", "trackers.report_to", "while_training.eval_steps"}
    assert {name for wanted in _USUAL.values() for name in wanted} <= {*known, *of_others}
