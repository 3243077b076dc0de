"""Are the public names enough, used as a stranger would: `flow_dpo.X` and nothing else?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import flow_dpo
from flow_dpo.runs.files import read_jsonl

ROOT = Path(__file__).parent.parent
STUB = Path(flow_dpo.__file__).with_suffix(".pyi")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def stub() -> str:
    """What `__init__.pyi` must say; to write it: python -m tests.test_public_api."""
    homes = sorted((home, name) for name, home in flow_dpo._HOMES.items())
    lines = [f"from flow_dpo.{home} import {name} as {name}" for home, name in homes]
    note = "# The public names, for type checkers and editors; written from `_HOMES` by tests/test_public_api.py."
    return "\n".join([note, *lines]) + "\n"


class Listener:
    """Counts the batches that it hears of."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_batch(self, row: dict[str, Any], trees: Sequence[Any], examples: Sequence[Any]) -> None:
        self.rows.append(row)


def test_every_public_name_is_there_and_has_a_docstring() -> None:
    assert len(set(flow_dpo.__all__)) == len(flow_dpo.__all__)
    assert set(flow_dpo.__all__) <= set(dir(flow_dpo))
    for name in flow_dpo.__all__:
        value = getattr(flow_dpo, name)
        assert not callable(value) or value.__doc__, f"{name} has no docstring"
    with pytest.raises(AttributeError, match="no name 'Learns2'"):
        flow_dpo.Learns2  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    assert STUB.read_text(encoding="utf-8") == stub()


def test_train_evaluate_generate_by_name(tmp_path: Path) -> None:
    heard = Listener()
    run = flow_dpo.train(
        "seed", max_problems=8, output_dir=tmp_path / "run", callbacks=[heard], problems_per_batch=4, quiet=True,
        beta=0.5, settings={"learner.examples_per_update": 8},
    )  # fmt: skip
    assert set(run.adapters) == {"answer", "stop"}
    assert run.progressive.num_seen == 8
    assert [row["problems_seen"] for row in heard.rows] == [4, 8]
    config = (run.path / "config.yaml").read_text()
    assert "examples_per_update: 8" in config
    assert "beta: 0.5" in config
    result = flow_dpo.evaluate_flow(run.path, max_problems=4, output_dir=tmp_path / "evaluation")
    assert result["num_problems"] == 4
    assert result["dataset"] == "seed/test"
    assert json.loads((tmp_path / "evaluation" / "summary.json").read_text())["accuracy"] == result["accuracy"]
    traces = flow_dpo.generate_traces(run.path, output_dir=tmp_path / "traces", max_problems=3, num_samples=4)
    assert traces.header["counts"]["num_problems_sampled"] == 3
    assert all(trace.verdict.status == "correct" for trace in traces.traces)


def test_a_misspelled_setting_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(flow_dpo.FlowDpoError, match="learning_rate"):
        flow_dpo.train("seed", output_dir=tmp_path / "run", quiet=True, learning_rat=1e-3)
    assert not (tmp_path / "run").exists()


def test_the_same_settings_give_the_same_bytes_as_the_command_line(tmp_path: Path) -> None:
    from flow_dpo.cli.main import main

    words = ["--max_problems", "4", "--problems_per_batch", "4", "--examples_per_update", "4"]
    assert main(["train", *words, "--output_dir", str(tmp_path / "typed")]) == 0
    flow_dpo.train(
        "seed", recipe=flow_dpo.load_recipe("flow-dpo", "seed"), max_problems=4, output_dir=tmp_path / "given",
        quiet=True, problems_per_batch=4, examples_per_update=4,
    )  # fmt: skip
    typed, given = (tmp_path / name for name in ("typed", "given"))
    adapters = [path.relative_to(typed).as_posix() for path in typed.rglob("adapter_model.safetensors")]
    assert adapters
    for name in ("trees.jsonl", "pairs.jsonl", *adapters):
        assert (typed / name).read_bytes() == (given / name).read_bytes(), name
    configs = [(folder / "config.yaml").read_text().replace(str(folder), "") for folder in (typed, given)]
    assert configs[0] == configs[1]


@dataclass(frozen=True)
class Short(flow_dpo.Flow[Any]):
    """One turn of one role: a flow of one's own."""

    roles: ClassVar[tuple[str, ...]] = ("writer",)

    def start(self, problem: flow_dpo.Problem) -> Any:
        return (problem, None)

    def turn(self, state: Any) -> flow_dpo.Turn | None:
        problem, said = state
        messages = (flow_dpo.Message(role="user", content=(problem.question,)),)
        return flow_dpo.Turn(role="writer", messages=messages, max_tokens=64) if said is None else None

    def advance(self, state: Any, completion: flow_dpo.Completion) -> Any:
        return (state[0], completion)

    def solution(self, state: Any) -> flow_dpo.Solution:
        said = state[1]
        if said is None:
            return flow_dpo.Solution(pieces=(), ended=False)
        return flow_dpo.Solution(pieces=(said.content_ids,), ended=said.finish_reason == "stop")


class Uncounted(flow_dpo.PlainEngine):
    """An engine of one's own that counts nothing: statistics are optional."""

    def take_stats(self) -> dict[str, float]:
        return {}


def plain_engine(loaded: Any, policy: flow_dpo.Policy) -> flow_dpo.Engine:
    return Uncounted(
        policy.model, role_model=policy.using, end_ids=loaded.end_ids, context_tokens=loaded.context_tokens
    )


def test_everything_can_be_an_object_from_outside(tmp_path: Path) -> None:
    recipe = flow_dpo.Recipe(
        flow=Short(),
        explore=flow_dpo.Group(num_rollouts=3),
        credit=lambda trees: flow_dpo.OutcomePairs()(trees)[:3],  # a credit is anything that turns trees into examples
        objective=flow_dpo.Ipo(),
    )
    problems = list(flow_dpo.load_problems("seed", max_problems=6))
    run = flow_dpo.train(
        "seed", problems, recipe=recipe, engine=plain_engine, output_dir=tmp_path / "run", quiet=True,
        problems_per_batch=3, examples_per_update=2,
    )  # fmt: skip
    assert list(run.adapters) == ["writer"]
    assert all(
        row["rollout/sampled_tokens"] == row["rollout/tokens"] > 0 for row in read_jsonl(run.path / "metrics.jsonl")
    )
    facts = json.loads((run.path / "run.json").read_text())
    assert facts["given"] == {"engine": f"{__name__}:plain_engine"}
    config = (run.path / "config.yaml").read_text()
    assert "recipe: given" in config
    assert "dataset_name: given" in config
    # What it was begun with is what it goes on with, and nothing else.
    again = {"recipe": recipe, "output_dir": run.path, "resume": True, "quiet": True}
    settings = {"problems_per_batch": 3, "examples_per_update": 2}
    assert flow_dpo.train("seed", problems, engine=plain_engine, **again, **settings).progressive.num_seen == 6
    with pytest.raises(flow_dpo.FlowDpoError, match=r"given.*plain_engine"):
        flow_dpo.train("seed", problems, **again, **settings)


def test_the_loop_on_an_open_runtime() -> None:
    with flow_dpo.open_runtime("seed") as runtime:
        learner = runtime.learner(flow_dpo.LearnerSettings(examples_per_update=0))
        progressive = flow_dpo.learn(
            flow_dpo.load_recipe("flow-dpo", "seed"),
            flow_dpo.load_problems("seed", max_problems=6),
            runtime.workers,
            learner,
            problems_per_batch=6,
        )
        assert isinstance(progressive, flow_dpo.ProgressiveValidation)
        assert learner.version == 1
        result = flow_dpo.evaluate_flow(runtime, flow_dpo.load_problems("seed", split="test", max_problems=3))
        assert result["num_problems"] == 3


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each Python block by itself, in an empty folder, with nothing but the public names."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        assert set(re.findall(r"flow_dpo\.(\w+)", block)) <= set(flow_dpo.__all__)
        assert "from flow_dpo" not in block
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        block = re.sub(r"max_problems=\d+", "max_problems=8", block)  # the same program on fewer problems
        exec(compile(block, f"README.md, Python block {number}", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out


def test_objects_that_are_none_are_refused_before_a_folder_is_taken(tmp_path: Path) -> None:
    one = flow_dpo.Problem(id="a", question="2 + 2 = ?", gold="4")
    out = tmp_path / "run"
    for problems, named, error in (
        (["2 + 2"], {}, "expected rows with columns, or flow_dpo.Problem"),
        ([one, one], {}, "'a' more than once"),
        ([one], {"callbacks": [object()]}, "callbacks with on_batch"),
        ([one], {"engine": "plane"}, "did you mean plain"),
        ("given", {}, "passed as objects"),
    ):
        with pytest.raises(flow_dpo.FlowDpoError, match=error):
            flow_dpo.train("seed", problems, output_dir=out, quiet=True, **named)  # pyright: ignore
    assert not out.exists()
    with pytest.raises(flow_dpo.FlowDpoError, match="found nothing at"):
        flow_dpo.evaluate_flow(tmp_path / "no" / "run")


if __name__ == "__main__":
    STUB.write_text(stub(), encoding="utf-8")
