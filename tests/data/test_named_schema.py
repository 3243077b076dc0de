"""Is a schema of a file or plug-in used for rows as the built-in ones are, and refused by its name where it fails?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.data.problems import DataSettings, load_problems
from flow_dpo.trainer.data import problems as problems_of

MINE = """
from flow_dpo import Problem
from flow_dpo.data.columns import BadRow
from flow_dpo.data.schemas import Schema


def read(row):
    if row["label"] is None:
        raise BadRow("expected a label")
    return Problem(id="", question=row["prompt"], gold=row["more"]["gold"])


MINE = Schema(columns=frozenset({"prompt", "label"}), read=read)
EMPTY = Schema(columns=frozenset(), read=lambda row: Problem(id="", question="q", gold=" "))
OTHER = {"prompt"}
"""


def test_a_schema_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    mine = f"{tmp_path}/mine.py"
    rows = [{"prompt": "2 + 3?", "label": None}, {"prompt": "2 + 4?", "label": 1, "more": {"gold": "6"}}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_problems(str(path), schema=f"{mine}:MINE")
    assert [(each.question, each.gold, each.id) for each in found] == [("2 + 4?", "6", "rows/train/1")]
    assert found.skipped_reasons == {"expected a label": 1}
    [row] = problems_of(rows, DataSettings(schema=f"{mine}:MINE")) or ()
    assert (row.question, row.gold) == ("2 + 4?", "6")
    # What it cannot read is refused by its name.
    path.write_text(json.dumps({"prompt": "2 + 3?", "label": 1}) + "\n")
    with pytest.raises(DataError, match=r"from the schema .*MINE, found KeyError: 'more' in the row \{'prompt'"):
        load_problems(str(path), schema=f"{mine}:MINE")
    with pytest.raises(DataError, match=r"with a question and a gold answer from the schema .*EMPTY, found Problem"):
        load_problems(str(path), schema=f"{mine}:EMPTY")
    path.write_text('{"prompt": "2 + 3?", "gold": "5"}\n')
    with pytest.raises(DataError, match=r"expected the columns of .*MINE, label, prompt; label is missing from"):
        load_problems(str(path), schema=f"{mine}:MINE")
    with pytest.raises(ConfigError, match=r"Schema in .*OTHER for --schema, found \{'prompt'\}"):
        load_problems(str(path), schema=f"{mine}:OTHER")
    with pytest.raises(ConfigError, match="expected schema or columns, found both"):
        DataSettings(schema="aqua", answer_column="gold")
