"""Grading a file of answers and gold answers row by row: `flow-dpo verify`."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import DataError, StorageError, expect
from flow_dpo.core.types import Verdict
from flow_dpo.data.strict_json import parse_object
from flow_dpo.evaluate.statistics import ungraded_reasons
from flow_dpo.runs.writable import check_writable
from flow_dpo.verify.extract import AnswerRule
from flow_dpo.verify.verifier import STANDALONE, Verifier

BATCH = 500
"""Rows between two progress reports."""


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """Settings of `flow-dpo verify`."""

    output: str = ""
    """Where the verdicts go: a folder, or a file that ends in .jsonl or .json, such as graded.jsonl."""
    timeout_s: float = 5.0
    """Seconds of processor time after which an answer counts as ungraded; a busy machine changes no verdict."""
    num_workers: int = 2
    """Processes that compare formulas."""

    def __post_init__(self) -> None:
        expect(self, "above 0", lambda value: value > 0, "timeout_s")
        expect(self, "of 1 at least", lambda value: value >= 1, "num_workers")


def verify_file(
    path: str | Path,
    output: str | Path,
    *,
    rule: AnswerRule = STANDALONE,
    timeout_s: float = 5.0,
    num_workers: int = 2,
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Grade a JSONL file of `{"gold", "model_output"}` rows, and write each row with the result added.

    "status", "reason" and "extracted_answer" are added. `output` is a folder, which gets `verdicts.jsonl` and
    `summary.json`, or a file that ends in .jsonl or .json, such as `graded.jsonl`, with `graded.summary.json` beside
    it. Any other dot belongs to a folder's name, as in `qwen2.5-0.5B`, unless a file of that name exists. The summary
    counts statuses; for rows with an `is_correct` of their own it counts agreement, separately for rows that name a
    `policy` or are `disputed`. `accuracy` is the share of correct rows among all rows, `accuracy_graded` among those
    that could be graded.
    `on_batch` is called with the number of rows done and the total. Verdicts are written batch by batch; those of an
    interrupted call remain, without a summary. Raises `DataError` for a file without rows, or with a broken one.
    """
    source, target = Path(path), Path(output)
    table, summary_file = _places(target)
    check_writable(table.parent, flag="--output")
    if table.exists() and table.samefile(source):
        raise DataError(f"expected another file than the input for the output, found {table} for both; name another")
    rows = list(_rows(source))
    if not rows:
        raise DataError(f"expected rows to grade in {source}, found none")
    items = [(str(row["gold"]), row["model_output"], True) for row in rows]
    verdicts: list[Verdict] = []
    try:
        table.parent.mkdir(parents=True, exist_ok=True)
        summary_file.unlink(missing_ok=True)  # it belongs to other verdicts
        with Verifier(rule=rule, timeout_s=timeout_s, num_workers=num_workers) as verifier, open(table, "w") as file:
            for start in range(0, len(items), BATCH):
                graded = verifier.grade_many(items[start : start + BATCH])
                for row, verdict in zip(rows[start : start + BATCH], graded, strict=True):
                    found = {"status": verdict.status, "reason": verdict.reason, "extracted_answer": verdict.answer}
                    file.write(json.dumps({**row, **found}) + "\n")  # ASCII: UTF-8 cannot hold a lone surrogate
                file.flush()
                verdicts += graded
                if on_batch is not None:
                    on_batch(len(verdicts), len(items))
        summary = _summary(source, rows, verdicts)
        summary_file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"could not write {table}: {error}; free some space, or name another --output") from error
    return summary


def _places(target: Path) -> tuple[Path, Path]:
    """The files for verdicts and summary."""
    named = target.suffix.lower() in (".jsonl", ".json")
    # `os.path` takes a name that is too long as neither; it is then refused as one that cannot be written to.
    if os.path.isdir(target) or not (named or (target.suffix and os.path.isfile(target))):
        return target / "verdicts.jsonl", target / "summary.json"
    stem = target.name.removesuffix(target.suffix) if named else target.name
    return target, target.with_name(f"{stem}.summary.json")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"expected a JSONL file at {path}, found {error}; give a file of rows to grade") from error
    except UnicodeDecodeError as error:
        row = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, row {row}: expected UTF-8 text, found byte 0x{error.object[error.start]:02x}; save it as UTF-8, "
            "and unpack it if it is packed"
        ) from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        # Half surrogate pairs are hostile text like any other: graded, and written back in ASCII.
        fields = parse_object(line, f"{path}, row {number}", any_text=True)
        for name, kinds in (("gold", (str, int, float)), ("model_output", (str,))):
            if not isinstance(fields.get(name), kinds) or isinstance(fields[name], bool):
                raise DataError(
                    f"{path}, row {number}: expected a text in {name!r}, found {fields.get(name)!r:.80} among the "
                    f"fields {', '.join(sorted(fields))}; name the columns gold and model_output"
                )
        yield fields


def _summary(source: Path, rows: Sequence[dict[str, Any]], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    counts = Counter(verdict.status for verdict in verdicts)
    graded = counts["correct"] + counts["wrong"]
    # An answer that could not be graded counts as not right, so the headline is the lower of the two.
    summary: dict[str, Any] = {
        "file": str(source),
        "num_rows": len(rows),
        **{f"num_{status}": counts[status] for status in ("correct", "wrong", "ungraded")},
        "accuracy": counts["correct"] / len(rows) if rows else None,
        "accuracy_graded": counts["correct"] / graded if graded else None,
        "ungraded_reasons": ungraded_reasons(verdicts),
    }
    if any(isinstance(row.get("is_correct"), bool) for row in rows):
        groups: dict[str, Counter[str]] = {}
        for row, verdict in zip(rows, verdicts, strict=True):
            if isinstance(row.get("is_correct"), bool):
                agrees = verdict.right == float(row["is_correct"])
                name = "num_ungraded" if verdict.right is None else "num_agree" if agrees else "num_disagree"
                groups.setdefault(_group(row), Counter()).update([name])
        summary["against_labels"] = {name: dict(sorted(groups[name].items())) for name in sorted(groups)}
    return summary


def _group(row: dict[str, Any]) -> str:
    """Labels that follow one grader's convention, or are disputed, are counted separately."""
    if row.get("disputed"):
        return "disputed"
    return f"policy: {row['policy']}" if row.get("policy") else "agreed"
