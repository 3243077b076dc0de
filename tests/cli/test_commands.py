"""Does every command answer --help and refuse typos, whatever is installed and before anything heavy is loaded?"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from flow_dpo.cli import main as main_module
from flow_dpo.cli.main import _COMMANDS, main
from flow_dpo.core.errors import DataError
from flow_dpo.evaluate.compare.jobs import JobRunner, Work
from tests.support.once import Once

# Every command in turn, in a process in which `import trl` fails, as where it is not installed: the status, what was
# printed, and what is loaded by then.
HELP = """
import contextlib, io, json, sys
sys.modules["trl"] = None
from flow_dpo.cli.main import main
found = {}
for command in sys.argv[1:]:
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            status = main([command, "--help"])
    except SystemExit as ended:
        status = ended.code
    heavy = [name for name in ("transformers", "peft", "datasets", "vllm", "matplotlib") if name in sys.modules]
    found[command] = [status, out.getvalue(), heavy]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def helps(once: Once) -> dict[str, tuple[int, str, list[str]]]:
    def make(folder: Path) -> None:
        command = [sys.executable, "-c", HELP, *_COMMANDS]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (folder / "helps.json").write_text(done.stdout)

    return json.loads((once("helps", make) / "helps.json").read_text())


@pytest.mark.parametrize("command", _COMMANDS)
def test_help_answers_whatever_is_installed(command: str, helps: dict[str, tuple[int, str, list[str]]]) -> None:
    status, shown, heavy = helps[command]
    assert status == 0
    assert f"usage: flow-dpo {command}" in shown
    assert heavy == []


def test_sft_without_trl_says_so_once_it_is_to_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trl.trainer.sft_trainer", None)
    assert main(["sft", "--output_dir", str(tmp_path / "out")]) == 1
    assert "flow-dpo sft needs TRL" in capsys.readouterr().err
    assert main(["sft", "--num_tracs", "3"]) == 1
    assert "did you mean --num_traces" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["verify", "a.jsonl", "--outputs", "x"], "--output"),
        (["export", "--sorce", "x"], "--source"),
        (["judge", "--verdict_formt", "text"], "--verdict_format"),
        (["report", "x", "--output_di", "1"], "--output_dir"),
        (["compare", "--num_seed", "1"], "--num_seeds"),
        (["train", "--preset", "papper"], "paper"),
        (["train", "--recipe", "vinepo"], "vineppo"),
        (["evaluate", "--engine", "vlm"], "vllm"),
        (["quickstart", "--engine_kind", "vllm_serve"], "vllm_server"),
        (["trian"], "train"),
    ],
)
def test_a_misspelled_name_is_refused_with_the_nearest(
    words: list[str], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) in (1, 2)
    assert f"did you mean {near}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "somewhere"], "expected --name value, found 'somewhere'"),
        (["verify"], "expected: flow-dpo verify FILE --output OUT"),
        (["verify", "a", "b", "--output", "x"], "expected: flow-dpo verify FILE --output OUT"),
        (["verify", "a"], "expected: flow-dpo verify FILE --output OUT"),
    ],
)
def test_words_that_belong_nowhere_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 1
    assert message in capsys.readouterr().err


def test_a_comparison_asks_for_a_recipes_file_only_of_what_it_made(tmp_path: Path) -> None:
    """Runs of other recipes bring their own names along, which a flag would override."""
    said: dict[str, list[str]] = {}

    def command(words: Sequence[str]) -> int:
        said[Path(words[words.index("--output_dir") + 1]).name] = list(words)
        return 0

    commands = dict.fromkeys(("train", "generate", "sft", "evaluate"), command)
    asked = ["--recipe=mine.py:MINE", "--model.trust_remote_code=true"]
    do = JobRunner(tmp_path / "seed0", 0, tmp_path / "settings", run=commands, code_flags=asked)
    for name, recipe in (("mine", "mine.py:MINE"), ("other", "grpo")):
        header = {"schema": "traces/1", "settings": {"recipe": recipe}}
        for kind, file, settings in (("run", "config.yaml", {"recipe": recipe}), ("traces", "traces.json", header)):
            (tmp_path / f"{name}-{kind}").mkdir()
            (tmp_path / f"{name}-{kind}" / file).write_text(json.dumps(settings))
        run = Work(name=name, folder=tmp_path / f"{name}-run", costs={})
        do.evaluate(f"{name}-evaluated", "held_out", run=run)
        # What was fine-tuned leaves facts of its cost behind, which the stand-in does not.
        with pytest.raises((DataError, KeyError)):
            do.sft(f"{name}-tuned", Work(name=name, folder=tmp_path / f"{name}-traces", costs={}))
    for name, has in (("mine", True), ("other", False)):
        for words in (said[f"{name}-evaluated"], said[f"{name}-tuned"]):
            assert ("--recipe=mine.py:MINE" in words) is has
            assert "--model.trust_remote_code=true" in words


def test_a_slow_import_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def slow(_: list[str]) -> int:
        time.sleep(0.3)
        return 0

    monkeypatch.setattr(main_module, "SILENT_S", 0.01)
    monkeypatch.setitem(sys.modules, "torch", sys.modules.get("torch", SimpleNamespace()))
    monkeypatch.setattr(main_module.importlib, "import_module", lambda _: SimpleNamespace(train=slow, verify=slow))
    monkeypatch.delitem(sys.modules, "flow_dpo.runs.runtime", raising=False)
    assert (main_module.main(["train"]), main_module.main(["verify"])) == (0, 0)
    assert capsys.readouterr().err == "flow-dpo: loading torch and transformers\n"
    monkeypatch.setitem(sys.modules, "flow_dpo.runs.runtime", SimpleNamespace(open_runtime=None))
    assert main_module.main(["train"]) == 0
    assert capsys.readouterr().err == ""
