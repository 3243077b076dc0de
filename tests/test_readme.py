"""Do the README's commands exist? Each is parsed, and what it leads to is exercised elsewhere."""

from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from flow_dpo.cli import compare as comparison_command
from flow_dpo.cli import generate, judge, main, train
from flow_dpo.cli import report as report_command
from flow_dpo.cli import view as view_command
from flow_dpo.cli.ask import parse_ask
from flow_dpo.cli.export import parse_export
from flow_dpo.cli.lm_eval import parse_lm_eval
from flow_dpo.cli.prompt import parse_prompt
from flow_dpo.cli.push import parse_push
from flow_dpo.cli.sft import parse_sft
from flow_dpo.evaluate.evaluate import EvaluationSettings
from flow_dpo.runs.adapters import SpeakingSettings
from flow_dpo.runs.settings import default_settings
from tools import docs_site

ROOT = Path(__file__).parent.parent
PAGES = [page for page in docs_site.pages() if page.name != "CHANGELOG.md" and "studies" not in page.parts]


def printed(start: str) -> list[str]:
    """Every line of a code block that begins with `start`, comments cut off."""
    blocks = [block for page in PAGES for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), re.DOTALL)]
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines = [re.sub(r"^(\S*/flow-dpo|torchrun .*-m flow_dpo) ", "flow-dpo ", line) for line in lines]
    return sorted({line for line in lines if line.startswith(start)})


def of_the_example_package() -> set[str]:
    """Names that only the installed plug-ins of examples/plugin have; tests/plugins uses them."""
    project = tomllib.loads((ROOT / "examples" / "plugin" / "pyproject.toml").read_text())["project"]
    return {name for group in project["entry-points"].values() for name in group}


def without(words: list[str], *starts: str) -> list[str]:
    """The words without the flags that begin so and their values: folders that the reader has and the test has not."""
    left = [*words]
    for word in words:
        if word.startswith(starts):
            del left[left.index(word) : left.index(word) + 2]
    return left


@pytest.mark.parametrize("line", printed("flow-dpo train"))
def test_train_commands_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # examples stand in the repository
    if "--help" in line:
        with pytest.raises(SystemExit) as done:
            main.main(shlex.split(line)[1:])
        assert not done.value.code
        return
    # A run to resume is a folder that the reader has and the test has not.
    words = [word for word in without(shlex.split(line)[2:], "--lora.init_") if word != "--resume"]
    words = words if "mine.yaml" not in words else without(words, "--config")
    for at in [at for at, word in enumerate(words) if word in of_the_example_package()][::-1]:
        del words[at - 1 : at + 1]
    settings = train.parse_train("flow-dpo train", words, {})
    assert settings.recipe.flow.roles


@pytest.mark.parametrize("line", printed("flow-dpo evaluate"))
def test_evaluate_commands_name_settings_that_exist(line: str) -> None:
    words = shlex.split(line)[2:]
    known = {*vars(EvaluationSettings()), *vars(SpeakingSettings()), "preset"}
    for section in default_settings("flow-dpo", "seed").sections().values():
        known |= set(vars(section)) if is_dataclass(section) else set()
    flags = {word.removeprefix("--").split("=")[0].rpartition(".")[2] for word in words if word.startswith("--")}
    assert flags <= known


@pytest.mark.parametrize("line", printed("flow-dpo generate"))
def test_generate_commands_parse(line: str) -> None:
    words = without(shlex.split(line)[2:], "--run")
    assert generate.parse_generate(words)["generate"].num_samples > 0


@pytest.mark.parametrize("line", printed("flow-dpo prompt"))
def test_prompt_commands_parse(line: str) -> None:
    assert parse_prompt(without(shlex.split(line)[2:], "--run"))


@pytest.mark.parametrize("line", printed("flow-dpo push"))
def test_push_commands_parse(line: str) -> None:
    assert parse_push(shlex.split(line)[2:])


@pytest.mark.parametrize("line", printed("flow-dpo lm-eval"))
def test_lm_eval_commands_parse(line: str) -> None:
    words = without(shlex.split(line)[2:], "--run")
    assert parse_lm_eval(words)


@pytest.mark.parametrize("line", printed("flow-dpo ask"))
def test_ask_commands_parse(line: str) -> None:
    words = shlex.split(line)[2:]
    assert parse_ask(["--model.model_name_or_path=seed", *words[1:]])


def test_every_printed_command_is_parsed_here() -> None:
    parsed = {"train", "evaluate", "generate", "prompt", "push", "lm-eval", "ask", "export", "sft", "compare", "judge",
              "report", "quickstart", "verify", "--help", "--version", "plugins",
              "view"}  # fmt: skip
    found = {shlex.split(line)[1] for line in printed("flow-dpo ")}
    assert found <= parsed, "a page prints a command that no test of this file parses: add one beside those above"


@pytest.mark.parametrize("line", printed("flow-dpo export"))
def test_export_commands_parse(line: str) -> None:
    assert parse_export(shlex.split(line)[2:]).source


@pytest.mark.parametrize("line", printed("flow-dpo sft"))
def test_sft_commands_name_settings_that_exist(line: str) -> None:
    words = shlex.split(line)[2:]
    traces = words.index("--traces")
    assert words[traces + 1] in {shlex.split(made)[-1] for made in printed("flow-dpo generate")}
    parsed, _ = parse_sft(without(words, "--traces", "--lora.init_"))
    assert parsed["training"].num_train_epochs > 0


@pytest.mark.parametrize("line", printed("flow-dpo compare"))
def test_compare_commands_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the settings files that are printed stand in the repository
    assert comparison_command.parse(shlex.split(line)[2:])["compare"].num_seeds > 1


@pytest.mark.parametrize("line", printed("flow-dpo judge"))
def test_judge_commands_parse(line: str) -> None:
    assert judge.parse_judge(shlex.split(line)[2:])["judge"].traces_a


@pytest.mark.parametrize("line", printed("flow-dpo report"))
def test_report_commands_parse(line: str) -> None:
    assert report_command.parse(shlex.split(line)[2:])[0]


@pytest.mark.parametrize("line", printed("flow-dpo view"))
def test_view_commands_parse(line: str) -> None:
    assert view_command.parse(shlex.split(line)[2:])[0]


@pytest.mark.parametrize("line", printed("make "))
def test_make_targets_exist(line: str) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert line.split()[1] in targets


@pytest.mark.parametrize("line", printed("python "))
def test_scripts_exist(line: str) -> None:
    words = line.split()[1:]
    assert (ROOT / (f"{words[1].replace('.', '/')}.py" if words[0] == "-m" else words[0])).exists()


def test_every_file_that_the_readme_names_exists() -> None:
    text = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / link).exists(), link


def test_every_command_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(
        name in shown
        for name in (
            "quickstart",
            "train",
            "evaluate",
            "generate",
            "export",
            "sft",
            "compare",
            "judge",
            "report",
            "verify",
            "view",
        )
    )
    assert main.main(["trian"]) == 2
    assert "did you mean train?" in capsys.readouterr().err


def test_refusals_are_one_line_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["train", "--betta", "1"]) == 1
    assert capsys.readouterr().err == "flow-dpo: unknown setting --betta; did you mean --beta or --objective.beta?\n"


def test_verify_grades_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "answers.jsonl"
    source.write_text('{"gold": "14", "model_output": "Answer: 14"}\n{"gold": "3", "model_output": "none"}\n')
    assert main.main(["verify", str(source), "--output", str(tmp_path / "out.jsonl")]) == 0
    assert '"correct"' in (tmp_path / "out.jsonl").read_text()
    assert "wrong" in capsys.readouterr().out
