"""Are a run's figures and calibration those of the adapters that are pushed, also of a run that is not at its end?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flow_dpo.core.errors import DataError
from flow_dpo.hub.figures import figures
from flow_dpo.hub.scrub import published_config
from flow_dpo.runs.adapters import calibration

UPDATES = (0, 2, 1, 0, 3)
"""Of the batches: the versions after them are 0, 2, 3, 3 and 6."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Five batches of four problems; what a row says tells its place."""
    folder, version = tmp_path / "run", 0
    folder.mkdir()
    with (folder / "metrics.jsonl").open("w") as file:
        for place, updates in enumerate(UPDATES, 1):
            share = place / 10
            row = {f"progressive/{name}": share for name in ("accuracy", "low", "high")}
            row |= {f"progressive/window_{name}": share for name in ("accuracy", "low", "high")}
            row |= {"progressive/window_problems": 4, "pairs/answer": place, "flow/threshold": share}
            row |= {"learn/version": version, "learn/updates": updates, "problems_seen": 4 * place}
            file.write(json.dumps({"schema": "metrics/1", **row}) + "\n")
            version += updates
    return folder


def save(run: Path, version: int) -> None:
    for role in ("answer", "stop"):
        (run / "adapters" / role / str(version)).mkdir(parents=True)


@pytest.mark.parametrize(("version", "batches"), [(2, 2), (3, 4), (6, 5)])
def test_figures_and_calibration_are_of_the_adapters(run: Path, version: int, batches: int) -> None:
    """Later batches, of adapters that are not saved yet, are left out; those without an update are not."""
    save(run, version)
    found = figures(run)
    assert (found.updates, found.problems) == (version, 4 * batches)
    assert found.pairs == {"answer": sum(range(batches + 1))}
    assert found.accuracy is not None
    assert (found.accuracy.value, found.accuracy.num) == (batches / 10, 4 * batches)
    assert found.windowed is not None
    assert found.windowed.value == batches / 10
    assert calibration(run) == {"threshold": batches / 10}
    assert published_config({"flow": {"threshold": 0.5}}, run)["flow"] == {"threshold": batches / 10}


def test_adapters_that_have_learned_nothing_have_none(run: Path) -> None:
    assert calibration(run) == {}, "nothing is saved yet"
    save(run, 0)
    with pytest.raises(DataError, match="expected a run that has learned something"):
        figures(run)
    assert calibration(run) == {"threshold": 0.1}, "as the problems were sampled that nothing was learned from"
