"""Are the rooms what they say, is what is pure pure, and is everything short? The arrows are held by `make check`."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "flow_dpo"

PURE = [
    "cli.ask",
    "cli.evaluate",
    "cli.export",
    "cli.judge",
    "cli.prompt",
    "cli.report",
    "cli.verify",
    "cli.view",
    "core.answer_stop",
    "core.credit",
    "core.divergence",
    "core.dpo",
    "core.engine",
    "core.errors",
    "core.explore",
    "core.metrics",
    "plugins.load",
    "core.prompts",
    "core.rollouts",
    "core.seeds",
    "recipes.single",
    "core.steps",
    "core.tree",
    "core.types",
    "data.datasets",
    "data.problems",
    "data.seed",
    "data.strict_json",
    "data.typed_json",
    "models.http_client",
    "engines.scripted",
    "engines.settings",
    "evaluate.asked",
    "evaluate.contamination",
    "evaluate.headers",
    "models.chat_client",
    "evaluate.judge.protocol",
    "evaluate.judge.results",
    "evaluate.pass_at_k",
    "evaluate.step_validity",
    "evaluate.votes",
    "evaluate.while_training",
    "learner.settings",
    "models.context_window",
    "models.settings",
    "recipes.cpl.flow",
    "recipes.dots.flow",
    "recipes.dots.lesson",
    "recipes.presets",
    "recipes.regenesis.flow",
    "report.compose",
    "report.html",
    "runs.bottleneck",
    "runs.callbacks.budget",
    "runs.headers",
    "runs.help_pages",
    "runs.records",
    "runs.resolve",
    "runs.settings",
    "runs.spans",
    "runs.tree_records",
    "traces.settings",
    "traces.trace",
    "trainer.config",
    "trainer.fields",
    "trainer.table",
    "verify.boxes",
    "verify.canonical",
    "verify.claim",
    "verify.closed_form",
    "verify.equivalence",
    "verify.expressions",
    "verify.extract",
    "verify.grader",
    "verify.sandbox",
    "verify.verifier",
    "verify.words",
    "workers.adapters",
    "workers.pool",
    "workers.settings",
    "workers.shard",
]
HEAVY = ("torch", "transformers", "peft", "datasets", "trl", "vllm", "matplotlib")


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py"
    }


def test_pure_modules_import_nothing_heavy() -> None:
    """Each is loaded as the first of the package, one after another in one process: the first that brings in something
    heavy is named."""
    code = (
        "import importlib, sys\n"
        f"for module in {PURE!r}:\n"
        "    for name in [name for name in sys.modules if name.startswith('flow_dpo')]:\n"
        "        del sys.modules[name]\n"
        "    importlib.import_module('flow_dpo.' + module)\n"
        f"    heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    assert not heavy, f'{module} imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_verify_starts_without_anything_heavy(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"gold": "5", "model_output": "Answer: 5"}\n')
    code = (
        "import sys; from flow_dpo.cli.main import main; "
        "assert main(['verify', sys.argv[1] + '/a.jsonl', '--output', sys.argv[1] + '/out']) == 0; "
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]; "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"num_correct": 1' in done.stdout


def test_files_and_functions_are_short() -> None:
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, f"{name} is longer than 400 lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 60, f"{name}.{node.name} has {length} lines"


def test_files_beside_the_package_are_short() -> None:
    for folder in ("tests", "benchmarks", "tools", "examples"):
        for path in sorted((PACKAGE.parent / folder).rglob("*.py")):
            num_lines = len(path.read_text(encoding="utf-8").splitlines())
            assert num_lines <= 400, f"{path} has {num_lines} lines"


def test_no_exception_is_swallowed() -> None:
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{name} line {node.lineno}: a bare except"
                caught = ast.unparse(node.type)
                assert caught not in ("Exception", "BaseException"), f"{name} line {node.lineno} catches {caught}"


def test_importing_the_package_does_nothing() -> None:
    code = "import sys, flow_dpo; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- rooms ----------------------------------------------------------------------------------------------------------


def layers() -> list[set[str]]:
    """The rooms by layer, the lowest first, as import-linter holds them."""
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    [contract] = [one for one in settings["tool"]["importlinter"]["contracts"] if one["type"] == "layers"]
    return [set(layer.split(" | ")) for layer in reversed(contract["layers"])]


ROOMS = sorted(set[str]().union(*layers()))


def permission(folder: Path) -> tuple[str, str]:
    """The docstring of a package's `__init__`: its question, and what stands behind "May import"."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    said = re.search(r"^May import ([^.]+)\.$", text, flags=re.MULTILINE)
    assert said, f"expected a line 'May import ....' in the docstring of {folder}/__init__.py, found {text!r}"
    return text.splitlines()[0], said[1]


def test_nothing_but_rooms_is_at_the_top() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    assert modules == {"__init__", "__main__"}
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)


def test_the_map_in_the_documentation_has_every_room() -> None:
    page = (PACKAGE.parent / "docs" / "extend.md").read_text(encoding="utf-8")
    listed = re.findall(r"^  (\w+)/ ", page, flags=re.MULTILINE)
    assert sorted(listed) == ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_its_question_and_what_it_imports(room: str) -> None:
    question, said = permission(PACKAGE / room)
    assert "?" in question, question
    below = set[str]()
    for layer in layers():
        if room in layer:
            break
        below |= layer
    named = set(ROOMS) - {room} if "every other room" in said else set(ROOMS) & set(re.findall(r"\w+", said))
    assert named == below, f"{room} says that it may import {sorted(named)}, the layers say {sorted(below)}"


def test_folders_within_a_room_say_what_they_are() -> None:
    for path in PACKAGE.glob("*/**/__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_tests_mirror_the_rooms() -> None:
    folders = {path.parent.name for path in (PACKAGE.parent / "tests").glob("*/__init__.py")}
    assert folders <= {*ROOMS, "contract", "support"}
    assert set(ROOMS) - folders <= {"workers"}, "workers is tested by what runs in it"
