"""Is there a sign of life while something takes long, and does it say what is true?"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.engine import Engine
from flow_dpo.core.errors import ObjectiveError
from flow_dpo.core.metrics import ProgressiveValidation
from flow_dpo.core.types import Example, Request, Sampling, ScoredCompletion, Verdict
from flow_dpo.learner.settings import LearnerSettings, RoleSettings
from flow_dpo.runs.callbacks.progress import ProgressBar, learned, summary_table
from flow_dpo.runs.live import Live, Meter, MeteredEngine, MeteredLearner, duration
from flow_dpo.workers.pool import Progress
from tests.support.packed_builders import stop_pair
from tests.support.tree_builders import completion


class SlowEngine(Engine):
    """One completion a poll; `num_sampled` grows within a poll, as that of an engine of many steps does."""

    def __init__(self, poll_s: float = 0.0) -> None:
        self.num_sampled, self._waiting, self._poll_s = 0, list[int](), poll_s

    def submit(self, request: Request, sampling: Sampling, *, seed: int, excluded: Any = ()) -> int:
        self._waiting.append(seed)
        return seed

    def poll(self) -> Any:
        for _ in range(4):
            time.sleep(self._poll_s / 4)
            self.num_sampled += 1
        return [(self._waiting.pop(), completion(5, 6, 7, 2))]

    def refresh(self, adapters: Any) -> None: ...


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return [line for line in console.file.getvalue().splitlines() if line.strip()]


def test_pairs_and_verdicts_are_counted_apart() -> None:
    said = ScoredCompletion(request=Request(role="stop", prompt_ids=(5,), choices=(3, 4)), advantage=1.0,
                            completion=replace(completion(3), choice=0))  # fmt: skip
    pair = stop_pair((5, 6), yes=True)
    row = {"problems_seen": 4, "progressive/window_accuracy": 0.5, "progressive/window_problems": 4}
    cases: tuple[tuple[list[list[Example]], list[str]], ...] = (
        ([[], [said]], ["0 examples", "1 examples"]),
        ([[pair, said], [said, said]], ["1 pairs, 1 verdicts", "1 pairs, 3 verdicts"]),
        ([[pair], [replace(said, request=replace(said.request, choices=()))]], ["1 pairs", "1 pairs, 1 completions"]),
    )
    for batches, told in cases:
        console = Console(file=io.StringIO(), width=200)
        with Live(console) as live:
            bar = ProgressBar(live, 8)
            for examples in batches:
                bar.on_batch(row, [], examples)
        assert all(f"(last 4)  {words}" in line for words, line in zip(told, lines(console), strict=True))


def test_a_single_long_step_shows_life_where_there_is_no_terminal() -> None:
    console = Console(file=io.StringIO(), width=200)
    with Live(console, quiet_s=0.05) as live:
        live.doing("loading some/model")
        time.sleep(0.15)
        engine = MeteredEngine(SlowEngine(poll_s=0.6), live.meter)
        live.meter.engine = engine.engine
        live.begin(4, "problems")
        live.meter.begin_batch(2, learns=False)
        for seed in range(2):
            engine.submit(Request(role="answer", prompt_ids=(1,)), Sampling(), seed=seed)
        engine.poll()
        time.sleep(0.15)
    found = lines(console)
    assert any("loading some/model" in line for line in found)
    within = [line.rpartition("turns, ")[2] for line in found if "sampling: 0 of at least 2 turns" in line]
    assert len(set(within)) > 1, found  # tokens grow while nothing is finished
    assert any("0/4 problems" in line and "sampling: 1 of at least 2 turns" in line for line in found)
    assert any(" left" in line for line in found)


def test_a_terminal_is_drawn_on_and_a_quiet_console_is_not() -> None:
    drawn = Console(file=io.StringIO(), width=100, force_terminal=True)
    quiet = Console(file=io.StringIO(), quiet=True)
    for console in (drawn, quiet):
        with Live(console) as live:
            live.begin(512, "problems", 32)
            live.meter.begin_batch(16, learns=True)
            time.sleep(0.3)
    assert "32/512 problems" in drawn.file.getvalue()  # type: ignore[attr-defined]
    assert quiet.file.getvalue() == ""  # type: ignore[attr-defined]


def test_a_batch_is_expected_to_be_like_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("flow_dpo.runs.live.time.monotonic", lambda: now[0])
    live = Live(Console(file=io.StringIO(), quiet=True))
    live.begin(40, "problems")
    meter = live.meter
    # The first batch: what was asked so far is the least there can be.
    meter.begin_batch(10, learns=False)
    meter.num_asked, meter.num_done = 80, 40
    now[0] += 20
    assert meter.share == 0.5
    assert live.left_s() == (20 + 30 * 4, True)
    # It takes 50 s, so 30 problems more take 150; and its 200 turns are what the next one is measured by.
    meter.num_asked = meter.num_done = 200
    now[0] += 30
    live.advance(10)
    assert live.left_s() == (150, False)
    meter.begin_batch(10, learns=True)
    meter.num_asked, meter.num_done = 60, 50
    now[0] += 10
    assert meter.num_expected == 200
    assert meter.share == pytest.approx(0.9 / 4)
    assert live.left_s() == (140, False)
    assert "10/40 problems" in live.pace()
    now[0] += 139.5
    assert live.pace().endswith(" min"), "a time left of no second is not told"
    assert duration(89) == "89 s"
    assert duration(600) == "10 min"
    assert duration(7500) == "2 h 5 min"


class Learner:
    """Asks the objective for two rows, and checks that it is asked as it was."""

    adapters: Mapping[str, Any] = {}
    version = 3

    def update(self, objective: Any, examples: Any) -> Any:
        assert objective.needs_reference is True
        for row in (examples[:2], examples[2:]):
            objective(row, None, None)
        return {}


def test_learning_is_counted_row_by_row_and_the_loss_is_as_it_was() -> None:
    asked: list[int] = []

    class Counted(Dpo):
        def __call__(self, examples: Any, policy: Any, reference: Any) -> Any:
            asked.append(len(examples))

        accepts = (int,)

    meter = Meter()
    learner = MeteredLearner(Learner(), meter)  # pyright: ignore[reportArgumentType]
    learner.update(Counted(), [1, 2, 3])  # pyright: ignore[reportArgumentType]
    assert (asked, meter.num_learned, meter.text()) == ([2, 1], 3, "learning: 3 of 3 examples")
    assert learner.version == 3
    with pytest.raises(ObjectiveError, match="Dpo accepts Pair, found int"):
        learner.update(Dpo(), [1])  # pyright: ignore[reportArgumentType]


def windows(rewards: list[int], window: int = 10) -> list[tuple[str, str]]:
    progress = ProgressiveValidation(window=window)
    for reward in rewards:
        progress.see(Verdict(status="correct" if reward else "wrong"))
    table = summary_table(progress)
    names, counts, shares = ([str(cell) for cell in column._cells] for column in table.columns[:3])
    return [(name, f"{count} {share}") for name, count, share in zip(names, counts, shares, strict=True)]


def test_the_first_and_the_last_problems_are_never_the_same_ones() -> None:
    assert windows([0] * 10 + [1] * 10) == [("first", "10 0.0%"), ("last", "10 100.0%")]
    assert windows([0] * 10 + [1] * 30) == [("first", "10 0.0%"), ("last", "10 100.0%")]
    # More than one window and less than two: the last are those that are not among the first.
    assert windows([0] * 20 + [1] * 5, window=20) == [("first", "20 0.0%"), ("last", "5 100.0%")]
    # One window or less: the first half against the rest.
    assert windows([0] * 11 + [1] * 12, window=250) == [("first", "11 0.0%"), ("last", "12 100.0%")]
    assert windows([0, 1], window=250) == [("first", "1 0.0%"), ("last", "1 100.0%")]
    assert windows([1], window=250) == [("all (too few to compare)", "1 100.0%")]
    assert windows([]) == [("all (too few to compare)", "0 0.0%")]


def row(**values: float) -> dict[str, Any]:
    names = ("learn/updates", "learn/waiting", "num_trees", "tied_trees", "num_verdicts", "ungraded_rate",
             "progressive/accuracy", "pairs/answer", "pairs/stop")  # fmt: skip
    return {**dict.fromkeys(names, 0), **{name.replace("__", "/"): value for name, value in values.items()}}


def test_why_nothing_was_learned_is_told() -> None:
    roles, settings = ("answer", "stop"), LearnerSettings()
    trained = row(learn__updates=1, **{"learn/answer/learning_rate": 1e-3, "learn/stop/learning_rate": 1e-3})
    assert learned([row(), trained], roles, settings) == ""
    half = row(learn__updates=1, **{"learn/answer/learning_rate": 1e-3})
    assert learned([half], roles, settings).startswith("stop learned nothing: no update had an example")
    waiting = learned([row(learn__waiting=12, pairs__answer=12)], roles, settings)
    assert "12 examples wait, an update takes 32" in waiting
    own = {role: RoleSettings(examples_per_update=size) for role, size in (("answer", 16), ("stop", 48))}
    waiting = learned([row(learn__waiting=12, pairs__answer=12)], roles, LearnerSettings(roles=own))
    assert "takes 16 of answer (--learner.roles.answer.examples_per_update) or 48 of stop" in waiting
    tied = learned([row(num_trees=8, tied_trees=8, num_verdicts=40)], roles, settings)
    assert "the rollouts of 8 of 8 problems all ended alike (0% of the first ones were right)" in tied
    assert "could not be graded" in learned([row(num_verdicts=10, ungraded_rate=0.9)], roles, settings)
    assert "every update was dropped" in learned([row(pairs__answer=40)], roles, settings)


def test_workers_elsewhere_are_counted_by_shards_and_what_limits_is_named() -> None:
    class Pool:
        def __init__(self, done: int = 0, alive: int = 2) -> None:
            self.progress = Progress(shards_done=done, shards_under_way=2, shards_queued=3, shards_replayed=0, tokens=0,
                                     num_alive=alive, num_workers=2)  # fmt: skip

    console = Console(file=io.StringIO(), width=300)
    with Live(console) as live:
        bar = ProgressBar(live, 8)
        meter = live.meter
        meter.pool = Pool(done=10)  # pyright: ignore[reportAttributeAccessIssue]
        meter.begin_batch(4, learns=False)
        meter.pool = Pool(done=13)  # pyright: ignore[reportAttributeAccessIssue]
        assert meter.text() == "3 of 8 shards sampled, 2 of 2 workers alive"
        assert meter.share == 3 / 8
        meter.num_examples, meter.num_learned, meter.doing = 32, 8, "learning"
        meter.pool = Pool(done=13, alive=1)  # pyright: ignore[reportAttributeAccessIssue]
        assert meter.text() == "learning: 8 of 32 examples; 3 of 8 shards sampled, 1 of 2 workers alive"
        row = {"problems_seen": 4, "progressive/window_accuracy": 0.5, "progressive/window_problems": 4}
        bar.on_batch(row, [], [])
        waits = {"rollout/workers": 2, "rollout/seconds": 18, "rollout/wait_seconds": 9, "learn/seconds": 1}
        bar.on_batch(row | waits, [], [])
    here, apart = lines(console)
    assert "waits" not in here
    assert apart.endswith("learner waits 90 % of the time for rollouts: more workers (--workers.num, or more servers)")
