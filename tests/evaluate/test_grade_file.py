"""Is what was graded of a file kept, and a file that cannot be graded refused by its row?"""

from __future__ import annotations

from pathlib import Path

import pytest

from flow_dpo.core.errors import DataError
from flow_dpo.evaluate.grade_file import BATCH, verify_file


def test_verdicts_of_an_interrupted_file_are_kept(tmp_path: Path) -> None:
    source, out = tmp_path / "rows.jsonl", tmp_path / "out"
    source.write_text('{"gold": "1", "model_output": "1"}\n' * (2 * BATCH))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify_file(source, out, on_batch=interrupt)
    assert (out / "verdicts.jsonl").read_text().count('"correct"') == BATCH
    assert not (out / "summary.json").exists()
    source.write_bytes(b'{"gold": "1"}\n{"gold": "caf\xe9"}\n')
    with pytest.raises(DataError, match="row 2: expected UTF-8 text, found byte 0xe9"):
        verify_file(source, out)
    source.write_text("\n")
    with pytest.raises(DataError, match=r"expected rows to grade in .*, found none"):
        verify_file(source, out)
