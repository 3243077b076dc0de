"""Does a run keep to itself? No pickle, no secret, no network, no file elsewhere, no markup out of hostile text."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from flow_dpo.cli import generate
from flow_dpo.cli.evaluate import evaluate as cli_evaluate
from flow_dpo.core.errors import ConfigError
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.resolve import Given
from tests.support.once import Once

GUARDED = """
import socket, sys

def refused(*words, **named):
    raise AssertionError("this run opened a network connection")

class Guarded(socket.socket):
    def connect(self, address):
        refused() if self.family != socket.AF_UNIX else super().connect(address)

socket.socket, socket.create_connection, socket.getaddrinfo = Guarded, refused, refused
from flow_dpo.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def run(once: Once) -> Path:
    """A small run in a process that has secrets, no network, and a home and a folder of its own."""
    return once("guarded", run_guarded) / "here" / "run"


def run_guarded(folder: Path) -> None:
    home, here = folder / "home", folder / "here"
    home.mkdir()
    here.mkdir()
    secrets = {"HF_TOKEN": "hf_topsecret", "WANDB_API_KEY": "topsecret", "AWS_SECRET_ACCESS_KEY": "topsecret"}
    paths = {"HOME": str(home), "PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    words = [
        "train",
        "--max_problems",
        "12",
        "--problems_per_batch",
        "6",
        "--examples_per_update",
        "8",
        "--output_dir",
        "run",
    ]
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, *words],
        cwd=here, env={**os.environ, **secrets, **paths}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert [path.name for path in here.iterdir()] == ["run"]
    # Of the home, at most caches of libraries.
    assert {path.name for path in home.iterdir()} <= {".cache", ".config", ".local", ".triton"}


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_nothing_is_pickled(run: Path) -> None:
    kinds = {path.suffix for path in files(run) if path.name != ".lock"}
    assert kinds == {".yaml", ".json", ".jsonl", ".safetensors", ".png"}
    for path in files(run):
        head = path.read_bytes()[:4]
        assert not head.startswith((b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")), path


def test_no_secret_is_written(run: Path) -> None:
    for path in files(run):
        assert b"topsecret" not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("group", "name", "flag"),
    [("model", "trust_remote_code", "--trust_remote_code"), ("flow", "programs", "--programs")],
)
def test_a_strangers_run_cannot_have_code_run(run: Path, tmp_path: Path, group: str, name: str, flag: str) -> None:
    """What a person must ask for is not taken from a folder, nor from traces, unless it is asked for again."""
    base = {group: {name: True}}
    with pytest.raises(ConfigError, match=f"the folder asks for {group}.{name} = True"):
        Given.read(["--run", "x"]).over(base, "the folder").refuse_unasked()
    Given.read(["--run", "x", flag]).over(base, "the folder").refuse_unasked()
    Given.read([f"--{group}.{name}=true"]).over(base, "the folder").refuse_unasked()
    Given.read([]).over({group: {name: False}}, "the folder").refuse_unasked()
    shutil.copytree(run, tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    config[group][name] = True
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(config))
    for command in (cli_evaluate, generate.generate):
        with pytest.raises(ConfigError, match="runs code from outside this package"):
            command(["--run", str(tmp_path / "run"), "--output_dir", str(tmp_path / "out")])


def test_hostile_words_are_shown_as_they_are() -> None:
    heard = io.StringIO()
    console = Console(file=heard, force_terminal=True, width=200)
    print_safe(console, "[bold red]x[/] [link=http://example.org]y[/link] \x1b]0;title\x07")
    shown = heard.getvalue()
    assert "[bold red]x[/]" in shown
    assert "[link=http://example.org]" in shown
    assert "\x1b" not in shown
