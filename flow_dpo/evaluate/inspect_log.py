"""An evaluation as an Inspect AI log, for `inspect view` and `inspect_ai.log.read_eval_log`.

    export(Path("runs/gsm8k-test"), Path("runs/log"))      # runs/log/2026-11-28T15-04-05+00-00_gsm8k-test_a1b2.json

A draw on a problem is a sample, and its number the epoch. Question, gold answer, sampled text, verdict and answer
become input, target, output and score: "C" right, "I" wrong, "N" not graded, which Inspect's accuracy counts as ours
does. Written as version 2 of the format, without the package. Invariant: the same evaluation gives the same bytes.
Source: `inspect_ai.log.EvalLog`, inspect-ai 0.3.285.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import ConfigError, DataError, StorageError
from flow_dpo.core.types import Verdict
from flow_dpo.evaluate.headers import EvaluationSummary
from flow_dpo.runs import headers
from flow_dpo.runs.files import write_whole
from flow_dpo.runs.records import Prediction, read_rows
from flow_dpo.runs.writable import check_writable

_VALUES = {"correct": "C", "wrong": "I", "ungraded": "N"}
_SCORER = "verifier"


def is_evaluation(source: Path) -> bool:
    """Whether a folder was written by `flow-dpo evaluate`."""
    return (source / "summary.json").is_file() and (source / "predictions.jsonl").is_file()


def export(source: Path, output_dir: Path) -> tuple[Path, int]:
    """Write the log; returns its path and the number of samples.

    Raises `DataError` if the source is not an evaluation, or one of given candidates, whose solutions this model did
    not write; `ConfigError` if the log already exists.
    """
    if not is_evaluation(source):
        raise DataError(
            f"expected an evaluation with summary.json and predictions.jsonl in {source}, found none; make one with "
            "flow-dpo evaluate"
        )
    summary = headers.read_header(source / "summary.json", EvaluationSummary)
    if summary.get("candidates"):
        raise DataError(f"expected an evaluation that sampled solutions, found Stop's word on given ones in {source}")
    rows = read_rows(source / "predictions.jsonl", Prediction)
    made = datetime.fromtimestamp(int((source / "summary.json").stat().st_mtime), tz=UTC).isoformat()
    log = log_of(summary, rows, task=source.resolve().name, made=made)
    check_writable(output_dir)
    path = output_dir / f"{made.replace(':', '-')}_{_file_name(log['eval']['task'])}_{log['eval']['task_id']}.json"
    if path.exists():
        raise ConfigError(f"{path} already exists; name another folder with --output_dir, or remove it")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(log, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise StorageError(f"could not write the log to {path}: {error}; free some space, and rerun") from error
    return path, len(rows)


def log_of(summary: Mapping[str, Any], rows: Sequence[Prediction], *, task: str, made: str) -> dict[str, Any]:
    """The log as a JSON object. `made` is its time, in ISO 8601, UTC."""
    model = str(summary.get("model") or "not known")
    identity = hashlib.sha256(
        json.dumps([summary, [row.solution for row in rows]], sort_keys=True).encode()
    ).hexdigest()
    ids = list(dict.fromkeys(row.id for row in rows))
    epochs = max((row.draw for row in rows), default=1)
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "eval_id": identity[:22],
            "run_id": identity[22:44],
            "created": made,
            "task": task,
            "task_id": identity[42:64],
            "task_args": dict(summary.get("settings") or {}),
            "solver": (summary.get("settings") or {}).get("mode") or "flow",
            "dataset": {"name": summary.get("dataset"), "samples": len(ids), "sample_ids": ids, "shuffled": False},
            "model": model,
            "model_args": {"adapters": dict(summary.get("adapters") or {})},
            "config": {"epochs": epochs},
            "packages": {name: version for name, version in (summary.get("versions") or {}).items() if version},
            "metadata": {"made by": "flow-dpo", "command": summary.get("command"), "decoding": summary.get("decoding")},
            "scorers": [{"name": _SCORER}],
        },
        "plan": {"name": "plan", "steps": [], "config": {}},
        "results": {
            "total_samples": len(rows),
            "completed_samples": len(rows),
            "scores": [_score(summary, rows)],
        },
        "stats": {"started_at": made, "completed_at": made},
        "samples": [_sample(row, model) for row in rows],
    }


def _score(summary: Mapping[str, Any], rows: Sequence[Prediction]) -> dict[str, Any]:
    """The accuracy with its 95 % interval, and the accuracy of graded draws only."""
    low, high = summary["interval"]
    values = {
        "accuracy": summary.get("accuracy"),
        "accuracy_low_95": low,
        "accuracy_high_95": high,
        "accuracy_graded": summary.get("accuracy_graded"),
    }
    found = {name: {"name": name, "value": value} for name, value in values.items() if value is not None}
    return {"name": _SCORER, "scorer": _SCORER, "scored_samples": len(rows), "unscored_samples": 0, "metrics": found}


def _sample(row: Prediction, model: str) -> dict[str, Any]:
    verdict = row.verdict or Verdict(status="ungraded")
    message = {"role": "assistant", "content": row.solution, "source": "generate"}
    return {
        "id": row.id,
        "epoch": row.draw,
        "input": row.question,
        "target": row.gold,
        "messages": [{"role": "user", "content": row.question, "source": "input"}, message],
        "output": {
            "model": model,
            "choices": [{"message": message, "stop_reason": "stop" if row.ended else "max_tokens"}],
            "completion": row.solution,
            "usage": {"input_tokens": 0, "output_tokens": row.tokens, "total_tokens": row.tokens},
        },
        "scores": {
            _SCORER: {
                "value": _VALUES[verdict.status],
                "answer": verdict.answer,
                "explanation": verdict.reason or None,
                "metadata": {"reward": verdict.reward},
            }
        },
        "metadata": {"dataset": row.dataset, "worked_solution": row.worked_solution, "stop_p_yes": row.yes},
    }


def _file_name(task: str) -> str:
    return "".join(char if char.isalnum() or char in "-." else "-" for char in task)
