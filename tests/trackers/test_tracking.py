"""Do trackers get one curve, whatever interrupts a run, some solutions and the report, and does none end a run?"""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

import flow_dpo
from flow_dpo.core.errors import ConfigError
from flow_dpo.runs.callbacks.lifecycle import RunInfo
from flow_dpo.runs.files import read_jsonl
from flow_dpo.trackers import settings as trackers
from flow_dpo.trackers.clients import as_code
from flow_dpo.trackers.settings import TrackingSettings
from flow_dpo.trackers.tracking import MARKS, Tracking

MINE = '''
import json
from pathlib import Path


class Mine:
    """Appends what it gets to calls.jsonl beside this file."""

    def _add(self, *call):
        with Path(__file__).with_name("calls.jsonl").open("a") as file:
            file.write(json.dumps(call) + "\\n")

    def begin(self, *, folder, project, name, id, settings):
        self._add("begin", name, id, settings["objective.beta"])
        return "an id"

    def log(self, numbers, step):
        self._add("log", step, numbers)

    def table(self, rows, step):
        self._add("table", step, rows)

    def attach(self, path):
        self._add("attach", path.name)

    def end(self, *, failed):
        self._add("end", failed)


class Fails(Mine):
    def log(self, numbers, step):
        raise ConnectionError("lost")
'''


class StopsAt:
    """Interrupts a run after a number of batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def on_batch(self, row: Any, trees: Any, examples: Any) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def train(path: Path, report_to: str | list[str], *, resume: bool = False, **more: Any) -> None:
    flow_dpo.train(
        "seed", max_problems=6, output_dir=path, report_to=report_to, quiet=True, resume=resume, run_name="first",
        **{"problems_per_batch": 1, "examples_per_update": 1, "checkpoint_batches": 3, "table_batches": 2,
           "table_rows": 1, **more},
    )  # fmt: skip


def interrupted(path: Path, report_to: str | list[str]) -> None:
    """A run that goes on from a checkpoint (of 3 batches) that is older than the last row that was sent (of 4), and
    then from one (of 5) that is newer: trackers hear of a batch after a user's callbacks do."""
    with pytest.raises(KeyboardInterrupt):
        train(path, report_to, callbacks=[StopsAt(5)])
    assert {mark["step"] for mark in json.loads((path / MARKS).read_text()).values()} >= {4}
    with pytest.raises(KeyboardInterrupt):
        train(path, report_to, resume=True, checkpoint_batches=1, callbacks=[StopsAt(2)])
    assert len(read_jsonl(path / "metrics.jsonl")) == 5
    train(path, report_to, resume=True)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path / "mine.py"


def calls(mine: Path, kind: str) -> list[list[Any]]:
    return [call for call in read_calls(mine) if call[0] == kind]


def read_calls(mine: Path) -> list[list[Any]]:
    return [json.loads(line) for line in mine.with_name("calls.jsonl").read_text().splitlines()]


def test_one_curve_over_an_interruption_and_a_tracker_that_fails(
    mine: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(tmp_path / "run", [f"{mine}:Mine", f"{mine}:Fails"])
    assert caplog.text.count("Fails failed and gets nothing more") == 3, "once a process"
    assert [call[1] for call in calls(mine, "log")] == [1, 2, 3, 4, 5, 6], "each once, in their order"
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    for (_, _, sent), row in zip(calls(mine, "log"), rows, strict=True):
        assert sent.keys() == {name for name, value in row.items() if isinstance(value, (int, float))}
        assert sent["progressive/accuracy"] == row["progressive/accuracy"]
    begun = calls(mine, "begin")
    assert [call[2] for call in begun if call[2] is not None] == ["an id"] * 4, "both went on by their id"
    assert begun[0][1] == "first"
    assert {call[1] for call in calls(mine, "table")} == {1, 3}, "every second batch; the fifth was lost"
    assert json.loads((tmp_path / "run" / MARKS).read_text())[f"{mine}:Mine"] == {"id": "an id", "step": 6}
    tree = read_jsonl(tmp_path / "run" / "trees.jsonl")[0]
    [shown] = calls(mine, "table")[0][2]
    assert (shown[0], shown[-1]) == (tree["problem"]["id"], tree["rollouts"][0]["text"])
    assert shown[3] == tree["rollouts"][0]["verdict"]["status"]
    assert [call[1] for call in calls(mine, "attach")] == ["progressive.png", "report.html"]
    assert True in [call[1] for call in calls(mine, "end")]
    # docs/trackers.md names what a run writes.
    table = (Path(__file__).parents[2] / "docs" / "trackers.md").read_text()
    named = re.findall(r"^\| `([^`]+)`", table, flags=re.MULTILINE)
    patterns = [re.sub(r"<\w+>", "[^/]+", re.escape(name).replace(r"\<", "<").replace(r"\>", ">")) for name in named]
    for name in calls(mine, "log")[-1][2]:
        assert any(re.fullmatch(pattern, name) for pattern in patterns), f"{name} is not in docs/trackers.md"


def test_an_evaluation_reaches_a_tracker_once_whenever_it_is_made(mine: Path, tmp_path: Path) -> None:
    """At the start, where nothing was seen yet, and when a run is resumed that ended in the middle of one."""
    name = f"{mine}:Mine"

    def begun(*, seen: int, resume: bool = True) -> Tracking:
        settings = {"run": {"resume": resume}, "objective": {"beta": 1.0}}
        found = Tracking(TrackingSettings(report_to=name, table_batches=2, table_rows=1))
        (tmp_path / "metrics.jsonl").write_text("".join(map(metrics_row, range(1, seen + 1))))
        found.on_run_begin(
            RunInfo(path=tmp_path, settings=settings, facts={}, resumed=seen > 0, problems_seen=seen, num_problems=9)
        )
        return found

    first = begun(seen=0, resume=False)
    for version in (0, 0):
        first.on_evaluation("eval", {"accuracy": 0.25}, version)
    first.on_evaluation("progressive", {"accuracy": 0.5}, 0)
    first.on_batch(json.loads(metrics_row(1)), [], [])  # killed before the evaluation that was due
    again = begun(seen=1)
    for version in (0, 3):
        again.on_evaluation("eval", {"accuracy": version / 10}, version)
    again.on_evaluation("other", {"accuracy": 1.0}, 3)
    begun(seen=1).on_evaluation("eval", {"accuracy": 0.3}, 3)
    sent = [(step, found) for _, step, found in calls(mine, "log") if "progressive/accuracy" not in found]
    assert sent == [
        (0, {"eval/eval/accuracy": 0.25}), (1, {"eval/eval/accuracy": 0.3}), (1, {"eval/other/accuracy": 1.0})
    ]  # fmt: skip
    marks = {"id": "an id", "step": 1, "evaluated": {"eval": 3, "other": 3}}
    assert json.loads((tmp_path / MARKS).read_text()) == {name: marks}
    # Of a run from before evaluations were marked its step is all that is known: nothing is sent behind it.
    (tmp_path / MARKS).write_text(json.dumps({name: {"id": "an id", "step": 4}}))
    for seen, version in ((3, 5), (5, 7)):
        begun(seen=seen).on_evaluation("eval", {"accuracy": 0.4}, version)
    assert [step for _, step, found in calls(mine, "log") if found == {"eval/eval/accuracy": 0.4}] == [5]


def metrics_row(seen: int) -> str:
    measures = ("accuracy", "low", "high", "window_accuracy", "window_low", "window_high")
    row = {f"progressive/{name}": 0.5 for name in measures}
    return json.dumps({"schema": "metrics/1", "problems_seen": seen, **row}) + "\n"


def test_what_is_refused_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"unknown tracker 'wandbb' .* did you mean wandb\?"):
        trackers.check(trackers.TrackingSettings(report_to="wandbb"))
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"expected the package wandb .* pip install -e '\.\[trackers\]'"):
        train(tmp_path / "run", "wandb")
    assert not (tmp_path / "run").exists()
    trackers.check(trackers.TrackingSettings(report_to="none"))


def test_hostile_text_stays_a_code_block() -> None:
    hostile = "<script>x</script>\n```\n# h\x0b\r* a"
    assert all(line.startswith("    ") for line in re.split(r"[\n\r]", as_code(hostile)))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_real_trackers_offline_have_one_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "TRACKIO_DIR": str(tmp_path / "trackio"), "WANDB_MODE": "offline", "WANDB_SILENT": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "HF_HUB_OFFLINE": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for package in trackers.NAMES:
        pytest.importorskip(package)
    import mlflow
    import trackio.utils
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    interrupted(tmp_path / "run", ",".join(trackers.NAMES))
    steps = [1, 2, 3, 4, 5, 6]
    marks = json.loads((tmp_path / "run" / MARKS).read_text())
    assert {name: mark["step"] for name, mark in marks.items()} == dict.fromkeys(trackers.NAMES, 6)
    curve = "progressive/accuracy"
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars(curve)] == steps
    history = mlflow.MlflowClient().get_metric_history(marks["mlflow"]["id"], curve)
    assert sorted(point.step for point in history) == steps
    [database] = Path(trackio.utils.TRACKIO_DIR).glob("flow-dpo*.db")
    with sqlite3.connect(database) as found:
        rows = found.execute("select step, metrics from metrics where run_name = 'first'").fetchall()
    assert sorted(step for step, metrics in rows if curve in str(metrics)) == steps
    runs = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(runs) == 3
    # The folder's name does not end with the id where two runs begin in one second: the file's in it does.
    assert [[file.name for file in run.glob("*.wandb")] for run in runs] == [[f"run-{marks['wandb']['id']}.wandb"]] * 3
