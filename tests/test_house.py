"""Do arrows point one way, and is the core pure?"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "flow_dpo"

PURE = [
    "cli.report",
    "cli.verify",
    "core.answer_stop",
    "core.credit",
    "core.divergence",
    "core.engine",
    "core.errors",
    "core.explore",
    "core.metrics",
    "core.prompts",
    "core.rollouts",
    "core.seeds",
    "core.single",
    "core.steps",
    "core.tree",
    "core.types",
    "data.datasets",
    "data.problems",
    "data.seed",
    "data.strict_json",
    "data.typed_json",
    "engines.http_client",
    "engines.scripted",
    "evaluate.contamination",
    "evaluate.headers",
    "evaluate.judge.chat_client",
    "evaluate.judge.protocol",
    "evaluate.judge.results",
    "evaluate.pass_at_k",
    "evaluate.step_validity",
    "models.context_window",
    "recipes.cpl.flow",
    "recipes.dots.flow",
    "recipes.dots.sandbox",
    "recipes.regenesis.flow",
    "report.compose",
    "report.html",
    "report.markdown",
    "runs.callbacks.budget",
    "runs.headers",
    "runs.records",
    "runs.tree_records",
    "traces.trace",
    "verify.closed_form",
    "verify.equivalence",
    "verify.extract",
    "verify.grader",
    "verify.verifier",
]
HEAVY = ("torch", "transformers", "peft", "datasets", "trl", "vllm", "matplotlib")


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py"
    }


@pytest.mark.parametrize("module", PURE)
def test_pure_core_imports_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, flow_dpo.{module}; "
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]; "
        "assert not heavy, heavy"
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
