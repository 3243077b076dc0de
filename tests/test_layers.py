"""Do arrows point one way, and is the core pure?"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "flow_dpo"

LAYERS = [
    {"errors", "types", "seeds"},
    {"address"},
    {"closed_form", "extract", "tree", "attention", "deviation", "seed", "grading_worker", "data_files", "strict_json"}
    | {"chat_endpoint", "steps", "wording", "sandbox", "sandbox_worker", "voices"},
    {"answers", "grading_pool", "render", "problems", "flows", "engines", "credit", "measures", "policy", "packing"},
    {"equations", "verify", "grade", "fit", "layouts", "speaker", "models", "scores", "custom"},
    {"logprobs", "objectives", "explore"},
    {"gradients"},
    {"learner_state"},
    {"learner", "runs", "config"},
    {"recipes", "checkpoint", "traces", "overlap"},
    {"online", "progress", "watch", "sources", "export", "budget", "judging", "engine_kinds"},
    {"evaluate", "build", "generate", "sft", "judgements", "judges", "report"},
    {"training"},
    {"commands", "trace_commands", "verify_command", "judge_commands"},
    {"comparison"},
    {"cli"},
]
"""From left to right: a module imports from layers to its left, and within its own folder."""

PURE = [
    "errors", "types", "seeds", "tree", "extract", "answers", "closed_form", "verify", "flows.answer_stop",
    "flows.single", "flows.plan_solve", "steps", "deviation",
    "speaker", "explore", "credit", "grade", "fit", "measures",
    "engines.base", "engines.scripted", "seed", "problems", "scores", "overlap", "traces", "equations",
    "wording", "flows.guidelines", "flows.trajectories", "sandbox",
    "strict_json", "verify_command", "judging", "judgements", "chat_endpoint", "address", "budget",
    "report.compose", "report.command", "report.page", "report.markdown",
]  # fmt: skip
HEAVY = ("torch", "transformers", "peft", "datasets", "trl", "vllm", "matplotlib")


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py"
    }


def imported(path: Path) -> set[str]:
    """Names of our own modules that a file imports, dotted and without the package's name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("flow_dpo"):
            inside = node.module.removeprefix("flow_dpo").lstrip(".")
            found |= {inside} if inside else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("flow_dpo.") for a in node.names if a.name.startswith("flow_dpo.")}
    return found


def layer(module: str) -> int:
    top = module.split(".")[0]
    for index, names in enumerate(LAYERS):
        if top in names:
            return index
    raise AssertionError(f"{module} stands in no layer: add it to LAYERS where it belongs")


@pytest.mark.parametrize("module", modules())
def test_arrows_point_left(module: str) -> None:
    for other in imported(modules()[module]):
        same_folder = module.split(".")[0] == other.split(".")[0] and "." in module
        earlier = layer(other) < layer(module)
        assert earlier or same_folder, f"{module} imports {other}, which is not to its left"


def test_engines_and_flows_import_base_only() -> None:
    for name, path in modules().items():
        if name in ("engines.local", "flows.single", "flows.trajectories"):
            continue
        for other in imported(path):
            if name.startswith("flows.") and other.startswith("flows."):
                assert other == "flows.base", f"{name} imports {other}"


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
        "import sys; from flow_dpo import cli; "
        "assert cli.main(['verify', sys.argv[1] + '/a.jsonl', '--output', sys.argv[1] + '/out']) == 0; "
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
    for folder in ("tests", "benchmarks", "seed"):
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
