"""Does the page of TRL's fields say what the code does?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import flow_dpo
from flow_dpo.trainer.fields import FIELDS
from flow_dpo.trainer.table import markdown

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "trl-fields.md"


def test_the_page_is_written_from_the_table() -> None:
    """To write it: python -m flow_dpo.trainer.table > docs/trl-fields.md"""
    assert PAGE.read_text(encoding="utf-8") == markdown()
    for name in FIELDS:
        assert f"`{name}`" in markdown()


@pytest.mark.parametrize("name", ["docs/trainer.md", "examples/trainer.py"])
@pytest.mark.slow
def test_what_is_printed_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each Python block by itself, in an empty folder, on fewer problems."""
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = [text] if name.endswith(".py") else re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        assert set(re.findall(r"flow_dpo\.(\w+)", block)) <= set(dir(flow_dpo))
        fewer = re.sub(r"eval_steps=\d+", "eval_steps=1", re.sub(r"max_problems=\d+", "max_problems=8", block))
        exec(compile(fewer, name, "exec"), {"__name__": "__main__"})
    assert (tmp_path / "runs" / "trainer" / "evaluations.jsonl").exists()
