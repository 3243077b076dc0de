"""Does the page of TRL's fields say what the code does?"""

from __future__ import annotations

from pathlib import Path

from flow_dpo.trainer.fields import FIELDS
from flow_dpo.trainer.table import markdown

PAGE = Path(__file__).parents[2] / "docs" / "trl-fields.md"


def test_the_page_is_written_from_the_table() -> None:
    """To write it: python -m flow_dpo.trainer.table > docs/trl-fields.md"""
    assert PAGE.read_text(encoding="utf-8") == markdown()
    for name in FIELDS:
        assert f"`{name}`" in markdown()
