"""Is what was graded of a file kept, and a file that cannot be graded refused by its row?"""

from __future__ import annotations

from pathlib import Path

import pytest

from flow_dpo.core.errors import ConfigError, DataError
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


@pytest.mark.parametrize(
    ("output", "made"),
    [
        ("v/qwen2.5-0.5B", ["v/qwen2.5-0.5B/summary.json", "v/qwen2.5-0.5B/verdicts.jsonl"]),
        ("v/qwen2.5-1.5B", ["v/qwen2.5-1.5B/summary.json", "v/qwen2.5-1.5B/verdicts.jsonl"]),
        ("graded.jsonl", ["graded.jsonl", "graded.summary.json"]),
        ("qwen2.5-0.5B.json", ["qwen2.5-0.5B.json", "qwen2.5-0.5B.summary.json"]),
        ("there.5B", ["there.5B", "there.5B.summary.json"]),  # a file already
        ("folder.jsonl", ["folder.jsonl/summary.json", "folder.jsonl/verdicts.jsonl"]),  # a folder already
    ],
)
def test_a_dot_in_a_name_makes_no_file_of_a_folder(output: str, made: list[str], tmp_path: Path) -> None:
    source, place = tmp_path / "rows.jsonl", tmp_path / "place"
    source.write_text('{"gold": "1", "model_output": "1"}\n')
    (place / "folder.jsonl").mkdir(parents=True)
    (place / "there.5B").touch()
    verify_file(source, place / output)
    found = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    assert [name for name in found if name != "there.5B" or output == name] == made
    assert '"status": "correct"' in next(place.glob(f"**/{Path(made[-1 if '/' in made[0] else 0]).name}")).read_text()


def test_a_file_without_an_ending_is_not_written_over(tmp_path: Path) -> None:
    source, other = tmp_path / "rows.jsonl", tmp_path / "notes"
    source.write_text('{"gold": "1", "model_output": "1"}\n')
    other.write_text("mine")
    with pytest.raises(ConfigError, match=r"expected a folder in --output, found the file .*notes in its way"):
        verify_file(source, other)
    assert other.read_text() == "mine"
