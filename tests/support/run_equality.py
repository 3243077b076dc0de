"""When are two runs the same, to the bit?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flow_dpo.runs import run_folder
from flow_dpo.runs.files import read_jsonl


def without_seconds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of metrics without what depends on the clock, on who sampled, and on who learned which row."""
    own = ("seconds", "_s", "rollout/workers", "rollout/shards_replayed")
    others = [{key: value for key, value in row.items() if not key.endswith(own)} for row in rows]
    return [{key: value for key, value in row.items() if not key.startswith("ranks/")} for row in others]


def assert_same_run(one: Path, two: Path) -> None:
    """Records, last checkpoint and all adapters that `one` has saved are equal. `two` may have saved others besides,
    where it was interrupted."""
    for name in ("trees.jsonl", "pairs.jsonl", "learned.jsonl", "tokens.jsonl"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    rows = [without_seconds(read_jsonl(folder / "metrics.jsonl")) for folder in (one, two)]
    assert rows[0] == rows[1]
    last = [max((folder / "checkpoints").iterdir()) for folder in (one, two)]
    assert last[0].name == last[1].name
    learned = [path.relative_to(last[0]) for path in sorted((last[0] / "learner").rglob("*")) if path.is_file()]
    assert len(learned) >= 6
    latest = [run_folder.latest_adapters(folder) for folder in (one, two)]
    assert {role: path.name for role, path in latest[0].items()} == {r: path.name for r, path in latest[1].items()}
    saved = [path for path in sorted((one / "adapters").rglob("*")) if path.is_file()]
    assert len(saved) >= 2 * len(latest[0]) >= 4
    adapters = [(path, two / path.relative_to(one)) for path in saved]
    for a, b in [*((last[0] / name, last[1] / name) for name in learned), *adapters]:
        assert a.read_bytes() == b.read_bytes(), a
