"""Is the team compared with its members at the same tokens, on the same candidates, and over seeds of training?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from scipy import stats

from flow_dpo.cli import compare
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.explore import TurnSampling
from flow_dpo.evaluate import statistics, votes
from flow_dpo.evaluate.compare import choose, team, team_arms, team_results
from flow_dpo.evaluate.compare.arms import Sizes
from flow_dpo.evaluate.compare.jobs import DONE, JobRunner, Work
from flow_dpo.report.comparison_section import summary_tables
from flow_dpo.report.document import Table
from flow_dpo.runs import run_folder
from flow_dpo.runs.files import append_jsonl, read_jsonl, write_whole
from flow_dpo.runs.records import Metrics, append_rows, from_json
from tests.support.record_examples import METRICS, PREDICTION
from tests.support.stand_ins import stand_ins
from tools.study_tables import insert_tables, to_markdown

SIZES = Sizes(
    num_traces=1,
    matched_draws=1,
    more_draws=1,
    flow_shape=(13, 9),
    tests=("held_out/greedy", "held_out/sampled", "harder/greedy", "harder/sampled"),
    max_problems=9,
    draws=TurnSampling(temperature=1.0, top_p=0.97),
    test_samples=2,
    test_draws=3,
)


# ---- stand-ins -------------------------------------------------------------------------------------------------------


class Commands:
    """Stand-ins for `train` and `evaluate` that leave behind what the real ones do, by rule: a flow is right on the
    first three of four questions with 15 tokens, one pass on two with 10; of three attempts of 10 tokens, the second
    and third are right on the third question; the trained Stop has the area 0.9 and 0.01 more with each seed."""

    def __init__(self) -> None:
        self.words: dict[str, list[str]] = {}
        self.failing = ""

    def run(self) -> Mapping[str, Any]:
        return {"train": self.train, "evaluate": self.evaluate}

    def _folder(self, words: Sequence[str]) -> Path:
        folder = Path(words[words.index("--output_dir") + 1])
        parts = folder.parts
        seed = max(at for at, part in enumerate(parts) if part.startswith("seed"))
        name = "/".join(parts[seed:])
        if self.failing and self.failing in name:
            raise DataError("expected more, found less")
        folder.mkdir(parents=True)
        self.words[name] = list(words)
        return folder

    def train(self, words: Sequence[str]) -> int:
        folder = self._folder(words)
        levels = (0.5, 0.6, 0.7, 0.8) if folder.name == "flow" else (0.5, 0.6, 0.6, 0.7)
        seconds = dict.fromkeys(("rollout/seconds", "grade/seconds", "learn/seconds"), 0.5)
        for at, level in enumerate(levels):
            row = {"problems_seen": 8 * (at + 1), "rollout/sampled_tokens": 100, "num_rollouts": 8, "learn/updates": 1}
            row |= {"progressive/window_accuracy": level, "progressive/window_problems": min(8 * (at + 1), 16)}
            append_rows(folder / "metrics.jsonl", [from_json(Metrics, METRICS | row | seconds, "here")])
        write_whole(folder / "run.json", '{"schema": "run/1"}')
        return 0

    def evaluate(self, words: Sequence[str]) -> int:
        folder = self._folder(words)
        summary: dict[str, Any] = {"schema": "evaluation/1", "accuracy": 0.5, "interval": [0.4, 0.6]}
        summary |= {"dataset": "a/b", "num_problems": 4}
        if "--candidates" in words:
            seed = int(words[words.index("--seed") + 1])
            area = 0.8 + (0.1 + 0.01 * seed) * ("--run" in words)
            measured = {"area": area, "interval": None}
            summary["candidates"] = {
                "file": "f", "sha256": f"of {seed}", "num": {}, "right_over_wrong": measured, "mean_yes": {},
                "finished_over_unfinished": measured, "brier": 0.2, "brier_of_share": 0.25, "calibration_error": 0.1,
                "bins": [],
            }  # fmt: skip
        elif "--draws" in words:
            right = [(True, True, True), (True, True, True), (False, True, True), (False, False, False)]
            predictions(folder, right, tokens=10)
        else:
            single = "single" in words
            draws = int(words[words.index("--num_samples") + 1]) if "--num_samples" in words else 1
            right = [(True,) * draws, (True,) * draws, (not single,) * draws, (False,) * draws]
            predictions(folder, right, tokens=10 if single else 15)
        write_whole(folder / "summary.json", json.dumps(summary))
        return 0


def predictions(folder: Path, right: Sequence[Sequence[bool]], *, tokens: int) -> None:
    """predictions.jsonl: the draws of each question."""
    append_jsonl(
        folder / "predictions.jsonl",
        [
            PREDICTION
            | {
                "id": f"q{at}",
                "question": f"How many, {at}?",
                "draw": draw,
                "tokens": tokens,
                "yes": 0.9 if ok else 0.1,
            }
            | {"verdict": {"status": "correct" if ok else "wrong", "answer": "14" if ok else "15", "reason": ""}}
            for at, draws in enumerate(right)
            for draw, ok in enumerate(draws, start=1)
        ],
    )


def asked(tmp_path: Path, *names: str) -> dict[str, list[str]]:
    """The words of all commands of these arms, by folder."""
    commands = Commands()
    do = JobRunner(tmp_path / "seed5", 5, tmp_path / "settings", run=commands.run())
    with stand_ins():
        for name in names:
            choose.EVERY[name].make(do, SIZES)
    return {name.removeprefix("seed5/"): words for name, words in commands.words.items()}


def value(words: Sequence[str], flag: str) -> str:
    return words[words.index(flag) + 1]


# ---- the arms --------------------------------------------------------------------------------------------------------


def test_the_group_holds_the_flow_and_its_members() -> None:
    names = [arm.name for arm in choose.choose(("team",))]
    assert names == [
        "zero_shot", "flow_itself", "answer_adapter", "answer_votes", "untrained_votes", "untrained_stop",
        "trained_stop", "paper_flow", "paper_answer", "paper_stop",
    ]  # fmt: skip
    assert {other for name in names for other in choose.EVERY[name].against} <= set(names)


def test_attempts_are_drawn_once_and_every_stop_judges_the_untrained_ones(tmp_path: Path) -> None:
    words = asked(tmp_path, *team_arms.TEAM)
    drawn = [name for name in words if name.endswith("-draws")]
    assert drawn == [
        f"evaluations/{who}_votes/{problems}-draws"
        for who in ("answer", "untrained")
        for problems in ("held_out", "harder")
    ]  # fmt: skip
    assert all(value(words[name], "--draws") == "3" for name in drawn)
    assert [("--run" in words[name]) for name in drawn] == [True, True, False, False]
    fixed = str(tmp_path / "seed5/evaluations/untrained_votes/held_out-draws")
    stops = {name: words[f"evaluations/{name}_stop"] for name in ("untrained", "trained", "paper")}
    assert {value(one, "--candidates") for one in stops.values()} == {fixed}
    assert "--run" not in stops["untrained"]
    assert value(stops["untrained"], "--config").endswith("settings/base-fixed.yaml")
    for name, run in (("trained", "flow"), ("paper", "paper_flow")):
        assert value(stops[name], "--run") == str(tmp_path / "seed5" / run)
        assert value(stops[name], "--config").endswith("settings/fixed.yaml")
    done = [row["name"] for row in read_jsonl(tmp_path / "seed5" / DONE)]
    assert len(done) == len(set(done))
    assert [name for name in done if "/" not in name] == ["flow", "paper_flow"]


def test_sampled_tests_have_several_draws_and_greedy_ones_one(tmp_path: Path) -> None:
    words = asked(tmp_path, "flow_itself", "paper_answer")
    for arm in ("flow_itself", "paper_answer"):
        for test in SIZES.tests:
            asked_for = words[f"evaluations/{arm}/{test.replace('/', '-')}"]
            sampled = test.endswith("sampled")
            assert ("--num_samples" in asked_for) == ("--greedy" in asked_for) == sampled
    assert value(words["paper_flow"], "--recipe") == "flow-dpo-paper"
    assert value(words["paper_flow"], "--config").endswith("settings/other.yaml")
    # As many problems, of the same settings file; and chunks of the comparison's flow.
    assert "--max_problems" not in words["paper_flow"]
    assert (value(words["paper_flow"], "--chunk_tokens"), value(words["paper_flow"], "--max_chunks")) == ("13", "9")


# ---- the numbers -----------------------------------------------------------------------------------------------------


def test_votes_are_read_at_the_flows_tokens_by_linear_interpolation() -> None:
    curve = [
        {"attempts": 1.0, "tokens": 50.0, "majority": 0.6},
        {"attempts": 2.0, "tokens": 100.0, "majority": 0.6},
        {"attempts": 3.0, "tokens": 160.0, "majority": 0.66},
    ]
    assert team.at_tokens(curve, 75.0) == ({"attempts": 1.5, "tokens": 75.0, "majority": 0.6}, False)
    values, clipped = team.at_tokens(curve, 120.0)
    assert values == pytest.approx({"attempts": 2 + 1 / 3, "tokens": 120.0, "majority": 0.62})
    assert not clipped
    assert team.at_tokens(curve, 100.0) == (curve[1], False)
    assert [team.at_tokens(curve, tokens) for tokens in (50.0, 160.0)] == [(curve[0], False), (curve[2], False)]
    assert [team.at_tokens(curve, tokens) for tokens in (40.0, 200.0)] == [(curve[0], True), (curve[2], True)]
    assert team.at_tokens(curve[:1], 60.0) == (curve[0], True)


def test_every_number_of_attempts_is_read_from_the_draws(tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    predictions(tmp_path, [(True, True, True), (False, True, True), (False, False, True)], tokens=7)
    found = team_results.by_k(team_results.attempts_of(tmp_path))
    assert [(row["attempts"], row["tokens"]) for row in found] == [(1, 7), (2, 14), (3, 21)]
    # Of three: the first and second questions by majority; by P(Yes) every one, as the oracle.
    assert found[2]["majority"] == pytest.approx(2 / 3)
    assert found[2]["best"] == found[2]["oracle"] == 1
    # One attempt of three is right in the mean on 1, 2/3 and 1/3; of two, ties share.
    assert found[0]["majority"] == found[0]["one_attempt"] == pytest.approx(2 / 3)
    assert found[1]["majority"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert set(found[0]) == {"attempts", "tokens", "one_attempt", *votes.RULES}


def test_an_interval_over_seeds_is_students() -> None:
    values = [0.03, 0.051, 0.012, 0.044]
    found = team.over_seeds(values)
    expected = stats.t.interval(0.95, len(values) - 1, loc=fmean(values), scale=stats.sem(values))
    assert (found["low"], found["high"]) == pytest.approx(expected)
    assert found["mean"] == pytest.approx(fmean(values))
    assert team.over_seeds([0.1]) == {"mean": 0.1, "low": None, "high": None, "per_seed": [0.1]}
    assert team.over_seeds([0.1, None])["mean"] is None


def test_questions_of_several_draws_are_exchanged_whole() -> None:
    """Means over two draws are halves; p is that of exchanging the two sides of a question."""
    arm = [{"a": 1.0, "b": 0.5, "c": 0.5, "d": 1.0}]
    other = [{"a": 0.5, "b": 0.0, "c": 0.0, "d": 0.0}]
    found = statistics.difference(arm, other)
    assert found["p"] == pytest.approx(2 / 2**4)
    assert found["p"] == statistics.exchange_p([1, 1, 1, 2])


def test_a_learning_curve_has_whole_windows_alone(tmp_path: Path) -> None:
    commands = Commands()
    commands.train(["--output_dir", str(tmp_path / "seed0/flow")])
    commands.train(["--output_dir", str(tmp_path / "seed0/paper_flow")])
    flow = team_results.learning_curve(tmp_path / "seed0/flow")
    paper = team_results.learning_curve(tmp_path / "seed0/paper_flow")
    assert list(flow) == [(16, 200.0, 0.6), (24, 300.0, 0.7), (32, 400.0, 0.8)]
    assert team.least_lead(flow, paper) == pytest.approx(0.0)
    assert team.least_lead(paper, flow) == pytest.approx(-0.1)
    # Between batches: at 250 tokens this one has .65, the other .5, half way from .4 to .6.
    assert team.least_lead(((16, 250.0, 0.65),), ((8, 200.0, 0.4), (16, 300.0, 0.6))) == pytest.approx(0.15)
    assert team.least_lead(((16, 500.0, 0.65),), ((8, 200.0, 0.4), (16, 300.0, 0.6))) is None


# ---- the whole, with stand-ins ---------------------------------------------------------------------------------------

SETTINGS = """
data: {dataset_name: seed, dataset_split: train, max_problems: 32}
compare:
  arms: [team]
  num_seeds: 3
  tests: {test_problems: 4, test_samples: 2, test_draws: 3}
"""


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Iterator[Commands]:
    found = Commands()
    monkeypatch.setattr(compare, "COMMANDS", found.run())
    monkeypatch.setattr(statistics, "RESAMPLES", 99)  # intervals over questions are tested elsewhere
    with stand_ins():
        yield found


def compared(tmp_path: Path, *flags: str) -> dict[str, Any]:
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    words = ["--config", str(tmp_path / "settings.yaml"), "--compare.output_dir", str(tmp_path / "out"), *flags]
    assert compare.compare(words) == 0
    return json.loads((tmp_path / "out/comparison.json").read_text())


def gap(found: Mapping[str, Any], one: str, other: str, test: str, rule: str | None = None) -> Mapping[str, Any]:
    [row] = [
        row
        for row in found["team"]["differences"]
        if (row["one"], row["other"], row["test"], row["rule"]) == (one, other, test, rule)
    ]
    return row


def tables(found: Mapping[str, Any]) -> dict[str, Table]:
    return {table.caption.partition(":")[0].partition(" at the")[0]: table for table in summary_tables(found)}


def test_the_team_is_compared_with_its_members(tmp_path: Path, commands: Commands) -> None:
    found = compared(tmp_path)
    # The flow has three of four questions and 15 tokens, its Answer two; one attempt 2 2/3, two and three attempts
    # by majority (2.5 with ties shared) and 3; so at 15 tokens a majority has (8/3 + 2.5) / 2 of four questions.
    for test in ("held_out/greedy", "held_out/sampled"):
        assert gap(found, "flow_itself", "answer_adapter", test)["mean"] == pytest.approx(0.25)
        [voted] = [row for row in found["team"]["votes"] if (row["arm"], row["test"]) == ("answer_votes", test)]
        assert (voted["tokens"]["mean"], voted["attempts"]["mean"], voted["num_clipped"]) == (15, 1.5, 0)
        one, two = (found["team"]["draws"][0]["by_k"][k]["majority"] for k in ("1", "2"))
        assert voted["accuracies"]["majority"]["per_seed"] == pytest.approx([(one + two) / 2] * 3)
        majority = gap(found, "flow_itself", "answer_votes", test, "majority")
        assert majority["per_seed"] == pytest.approx([0.75 - (one + two) / 2] * 3)
    # Stops: areas .9, .91, .92 against .8, over seeds.
    stop = gap(found, "trained_stop", "untrained_stop", "fixed set")
    expected = stats.t.interval(0.95, 2, loc=0.11, scale=stats.sem([0.1, 0.11, 0.12]))
    assert (stop["mean"], stop["measure"]) == (pytest.approx(0.11), "area")
    assert (stop["seed_low"], stop["seed_high"]) == pytest.approx(expected)
    assert {tuple(row["sets"]) for row in found["team"]["stops"]} == {("of 0", "of 1", "of 2")}
    # Curves: the flow reaches 70 % after 24 problems and 300 tokens, the paper's after 32 and 400.
    reached = {row["training"]: (row["problems"]["mean"], row["tokens"]["mean"]) for row in found["team"]["curves"]}
    assert reached == {"flow": (24, 300), "paper_flow": (32, 400)}
    # Votes and Stops have rows of their cost, and no accuracy of their own.
    rows = {row["name"]: row for row in found["arms"]}
    assert rows["answer_votes"]["accuracies"] == {}
    assert rows["answer_votes"]["folders"][0]["votes"]["held_out"] == "seed0/evaluations/answer_votes/held_out-draws"
    shown = tables(found)
    assert ("trained_stop", "untrained_stop", "fixed set", "+0.110") in [
        row[:4] for row in shown["The team against its members"].rows
    ]
    assert "answer_votes" not in [
        row[0] for row in shown["Accuracy, mean over seeds (95 % t-interval over seeds)"].rows
    ]
    assert "| flow | 70.0 % | 24 | 300 |" in to_markdown(shown["Learning curves"])
    page = insert_tables("<!-- tables -->\n<!-- end of tables -->", tmp_path / "out")
    assert "| flow_itself | answer_votes, majority | held_out/sampled |" in page


def test_an_interrupted_comparison_does_nothing_twice(tmp_path: Path, commands: Commands) -> None:
    commands.failing = "seed1/evaluations/trained_stop"
    found = compared(tmp_path)
    assert list(found["failed"]) == ["trained_stop"]
    assert "trained_stop" not in [row["arm"] for row in found["team"]["stops"]]
    before, commands.words, commands.failing = set(commands.words), {}, ""
    found = compared(tmp_path)
    assert set(commands.words) == {"seed1/evaluations/trained_stop"}
    assert not before & set(commands.words)
    commands.words = {}
    again = compared(tmp_path)
    assert commands.words == {}
    assert again["team"] == found["team"]


def test_one_run_stands_for_one_seed() -> None:
    with pytest.raises(ConfigError, match="expected one seed when a run stands for the trained flow, found 3"):
        compare.CompareSettings(run="runs/train")


# ---- the whole, in small ---------------------------------------------------------------------------------------------


def test_a_run_that_is_there_is_measured_and_not_trained_again(tmp_path: Path) -> None:
    small = ["--test_problems", "4", "--sampled", "false", "--test_draws", "2", "--compare.num_seeds", "1"]
    data = ["--dataset_name", "seed", "--dataset_split", "train", "--max_problems", "12", "--num_threads", "1"]
    out = ["--compare.output_dir", str(tmp_path / "out")]
    names = ["--compare.arms", "[flow_itself,trained_stop]"]
    assert compare.compare([*data, *small, *out, *names]) == 0
    run = tmp_path / "out/seed0/flow"
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    # The run's own method, model and problems are taken over.
    other = ["--compare.output_dir", str(tmp_path / "other"), "--compare.run", str(run)]
    names = ["--compare.arms", "[flow_itself,untrained_votes,untrained_stop,trained_stop]"]
    assert compare.compare([*other, *small, *names]) == 0
    done = [row["name"] for row in read_jsonl(tmp_path / "other/seed0" / DONE)]
    assert done == [
        "evaluations/flow_itself/held_out-greedy", "evaluations/untrained_votes/held_out-draws",
        "evaluations/untrained_stop", "evaluations/trained_stop",
    ]  # fmt: skip
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == kept
    one, two = (json.loads((tmp_path / folder / "comparison.json").read_text()) for folder in ("out", "other"))
    assert two["settings"]["data"]["max_problems"] == 12
    assert two["arms"][0]["accuracies"] == one["arms"][0]["accuracies"]
    assert two["arms"][0]["costs"] == one["arms"][0]["costs"]
    assert two["arms"][0]["folders"][0]["flow"] == run.as_posix()
    # The same candidates, and the same Stop on them.
    areas = [next(row for row in found["team"]["stops"] if row["arm"] == "trained_stop") for found in (one, two)]
    assert areas[0] == areas[1]
    assert gap(two, "trained_stop", "untrained_stop", "fixed set")["mean"] is not None
    assert two["test_sets"]["held_out"]["num_learned"] == 0
    for path in run_folder.latest_adapters(run).values():
        shutil.copytree(path, path.with_name(str(int(path.name) + 1)))
    with pytest.raises(ConfigError, match=r"has learned since: .*; name another folder with --compare\.output_dir"):
        compare.compare([*other, *small, *names])


def test_a_given_run_is_only_read(tmp_path: Path) -> None:
    commands = Commands()
    commands.train(["--output_dir", str(tmp_path / "seed0/mine")])
    do = JobRunner(
        tmp_path / "seed0", 0, tmp_path, run=commands.run(), given={"flow": tmp_path / "seed0/mine"}
    )  # fmt: skip
    work = do.train("flow")
    assert work == Work(name="flow", folder=tmp_path / "seed0/mine", costs=work.costs)
    assert work.costs["tokens_sampled"] == 400
    assert list(commands.words) == ["seed0/mine"]
