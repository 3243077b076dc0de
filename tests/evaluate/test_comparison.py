"""Are arms compared on the same questions, with the right statistics, and is nothing done twice?"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
from markupsafe import escape

from flow_dpo.cli import compare
from flow_dpo.cli import report as report_command
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.stats import wilson
from flow_dpo.data.seed import seed_problems
from flow_dpo.evaluate.compare import arms, choose, provenance, seed_results
from flow_dpo.evaluate.compare.jobs import DONE, JobRunner
from flow_dpo.evaluate.compare.seed_results import checked_steps, rewards_of
from flow_dpo.evaluate.compare.summary import step_quality
from flow_dpo.recipes.presets import preset
from flow_dpo.report.comparison_section import summary_tables
from flow_dpo.runs import run_folder
from flow_dpo.runs.files import read_jsonl, write_whole
from tests.support.once import Once

SETTINGS = """
data: {dataset_name: seed, dataset_split: train, max_problems: 24}
model: {num_threads: 1}
learner: {examples_per_update: 8}
training: {num_train_epochs: 1.0}
compare:
  num_seeds: 1
  pool: {num_traces: 6, pool_problems: 40}
  tests: {test_problems: 16, harder_split: hard, harder_problems: 8}
"""


def test_steps_of_the_seed_are_judged_by_its_own_solution() -> None:
    problem = seed_problems("train", 1)[0]
    first = problem.solution.splitlines()[0]
    wrong = problem.solution.replace(first, first[:-2] + "99")
    assert checked_steps([(problem, problem.solution), (problem, wrong)]) == (2, 1)
    quality = step_quality([(2, 1), (8, 1)])
    assert quality is not None
    assert (quality["num_checked"], quality["invalid_rate"]) == (10, 0.2)
    assert step_quality([checked_steps([])]) is None
    # A model that says the same in each of ten seeds has been asked once.
    alike = step_quality([(294, 42)] * 10, same_questions=True)
    assert alike is not None
    assert (alike["num_checked"], alike["interval"]) == (2940, [pytest.approx(each) for each in wilson(42, 294)])
    # Models that differ: the rates of 3 seeds are .04, .05 and .09, far more apart than those of 2,250 coins.
    apart = step_quality([(750, 30), (750, 37), (750, 68)])
    assert apart is not None
    low, high = (apart["invalid_rate"] + sign * 4.302653 * stdev([30, 37, 68]) / 750 / 3**0.5 for sign in (-1, 1))
    assert apart["interval"] == pytest.approx([max(0.0, low), high], rel=1e-5)
    assert low < wilson(135, 2250)[0]


# ---- commands --------------------------------------------------------------------------------------------------------


class Commands:
    """Stand-ins that write what the real ones leave behind, and may fail."""

    def __init__(self) -> None:
        self.called: list[list[str]] = []
        self.failing = ""

    def evaluate(self, words: Sequence[str]) -> int:
        self.called.append(list(words))
        folder = Path(words[words.index("--output_dir") + 1])
        if self.failing and self.failing in str(folder):
            folder.mkdir(parents=True)
            (folder / "half").touch()
            raise DataError("expected more, found less")
        assert not folder.exists(), "what was begun is begun anew"
        folder.mkdir(parents=True)
        return 0


def doing(folder: Path, commands: Commands) -> JobRunner:
    return JobRunner(folder / "seed0", 0, folder / "settings", run={"evaluate": commands.evaluate})


def test_a_command_is_run_once(tmp_path: Path) -> None:
    commands = Commands()
    first = doing(tmp_path, commands).evaluate("a", "held_out", "--mode", "single")
    again = doing(tmp_path, commands).evaluate("a", "held_out", "--mode", "single")
    assert first == again == tmp_path / "seed0/a"
    assert len(commands.called) == 1
    assert commands.called[0][:2] == ["--config", str(tmp_path / "settings/base-held_out.yaml")]
    with pytest.raises(ConfigError, match="made by another command"):
        doing(tmp_path, commands).evaluate("a", "held_out", "--mode", "flow")


def test_what_failed_is_named_and_begun_anew(tmp_path: Path) -> None:
    commands = Commands()
    commands.failing = "seed0/b"
    do = doing(tmp_path, commands)
    do.evaluate("a", "held_out")
    with pytest.raises(DataError, match="seed 0, b: expected more"):
        do.evaluate("b", "held_out")
    commands.failing = ""
    do = doing(tmp_path, commands)
    do.evaluate("a", "held_out")
    do.evaluate("b", "held_out")
    assert [Path(words[-1]).name for words in commands.called] == ["a", "b", "b"]


def test_a_torn_last_row_is_cut_before_the_next_is_written(tmp_path: Path) -> None:
    commands = Commands()
    doing(tmp_path, commands).evaluate("a", "held_out")
    with (tmp_path / "seed0" / DONE).open("a") as file:
        file.write('{"name": "b", "wor')
    doing(tmp_path, commands).evaluate("b", "held_out")
    assert [row["name"] for row in read_jsonl(tmp_path / "seed0" / DONE)] == ["a", "b"]
    doing(tmp_path, commands).evaluate("b", "held_out")
    assert len(commands.called) == 2


def test_unknown_arms_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown arms nobody; known ones are zero_shot"):
        choose.choose(("zero_shot", "nobody"))
    assert [arm.name for arm in choose.choose(())] == list(arms.ARMS)
    assert set(arms.PAPER) <= set(arms.ARMS)
    chosen = [arm.name for arm in choose.choose(("paper", "flow_itself", "zero_shot"))]
    assert chosen == [*arms.PAPER, "flow_itself"]
    assert arms.BASELINE in arms.ARMS


def test_a_variant_needs_the_setting_that_it_changes() -> None:
    """The credit of attempts has neither `roles` nor `balance`."""
    paper, attempts = (preset(name, "seed").recipe.credit for name in ("flow-dpo-paper", "flow-dpo"))
    assert [arm.name for arm in choose.choose((), paper)] == list(arms.ARMS)
    left = {name for name in arms.ARMS if name.startswith(("answer_only", "stop_only", "balanced_stop"))}
    assert len(left) == 6
    assert {arm.name for arm in choose.choose((), attempts)} == set(arms.ARMS) - left
    with pytest.raises(ConfigError, match="stop_only_itself change, found AttemptCredit without them; add --recipe"):
        choose.choose(("zero_shot", "stop_only_itself"), attempts)


def test_a_pool_needs_to_know_where_the_flows_problems_end(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected data\.max_problems"):
        compare.compare(["--compare.output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


# ---- the whole ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(once: Once) -> Path:
    return once("comparison", make)


def make(folder: Path) -> None:
    (folder / "settings.yaml").write_text(SETTINGS)
    names = ("zero_shot", "self_generated", "trained_flow", "self_on_trained_problems", "flow_itself")
    arms = f"[{','.join([*names, 'answer_adapter', 'online_dpo_same_tokens'])}]"
    words = ["--config", str(folder / "settings.yaml"), "--compare.output_dir", str(folder / "out")]
    assert compare.compare([*words, "--compare.arms", arms]) == 0


def test_the_comparison_says_what_was_done(made: Path) -> None:
    found: dict[str, Any] = json.loads((made / "out/comparison.json").read_text())
    rows = {row["name"]: row for row in found["arms"]}
    assert (found["num_seeds"], found["baseline"], found["primary"]) == (1, "self_generated", "held_out/greedy")
    assert rows["self_generated"]["difference_to_self"] is None
    assert rows["trained_flow"]["num_traces"] == [6]
    assert rows["zero_shot"]["num_traces"] is None
    assert rows["zero_shot"]["costs"]["tokens_learned"] == 0
    assert rows["self_on_trained_problems"]["num_problems"][0] <= rows["trained_flow"]["problems_asked"][0]
    for name in ("mean", "low", "high", "p", "p_holm"):
        assert isinstance(rows["trained_flow"]["difference_to_self"][name], float)
    # Costs and accuracies are those of the folders.
    seed0 = made / "out/seed0"
    flow = read_jsonl(seed0 / "flow/metrics.jsonl")
    traces = json.loads((seed0 / "traces/trained_flow/traces.json").read_text())["cost"]
    played = sum(row["rollout/sampled_tokens"] for row in flow) + traces["tokens_sampled"]
    assert rows["trained_flow"]["costs"]["tokens_sampled"] == played
    right = rewards_of(seed0 / "evaluations/trained_flow/held_out-greedy")
    accuracy = sum(value or 0.0 for value in right.values()) / 16
    assert rows["trained_flow"]["accuracies"]["held_out"]["greedy"]["mean"] == accuracy
    assert rows["trained_flow"]["accuracies"]["harder"]["greedy"]["per_seed"] == [pytest.approx(accuracy, abs=1)]
    # How solutions ended, and what Stop said.
    flow_tested = seed0 / "evaluations/flow_itself/held_out-sampled"
    ended = [row["ended"] for row in read_jsonl(flow_tested / "predictions.jsonl")]
    assert rows["flow_itself"]["cut"]["held_out/sampled"]["mean"] == pytest.approx(ended.count(False) / len(ended))
    yes = json.loads((flow_tested / "summary.json").read_text())["stop"]["yes_rate"]
    assert yes
    assert rows["flow_itself"]["yes"]["held_out/sampled"] == pytest.approx(yes)
    assert "yes" not in rows["zero_shot"]
    learned = rows["flow_itself"]["learned"]["flow"]
    expected = {role: sum(row.get(f"learn/{role}/pairs") or 0 for row in flow) for role in ("answer", "stop")}
    expected |= {"problems": flow[-1]["problems_seen"], "updates": sum(row["learn/updates"] for row in flow)}
    assert {name: learned.get(name, 0) for name in expected} == expected
    # Held-out problems are other problems than those that traces were drawn on and the flow learned from.
    learned = {row["problem"]["id"] for row in read_jsonl(seed0 / "flow/trees.jsonl")}
    pool = {row["problem_id"] for row in read_jsonl(seed0 / "traces/trained_flow/traces.jsonl")}
    assert not learned & pool
    tables = {table.caption: table.rows for table in summary_tables(found)}
    assert "trained_flow" in [row[0] for row in tables["Difference to self_generated, percentage points"]]
    assert not (made / "out/comparison.md").exists()


def test_matched_arms_stay_on_the_given_problems(made: Path) -> None:
    seed0 = made / "out/seed0/traces"
    given = {row["problem_id"] for row in read_jsonl(seed0 / "trained_flow/traces.jsonl")}
    drawn = {row["problem_id"] for row in read_jsonl(seed0 / "self_on_trained_problems/traces.jsonl")}
    assert drawn <= given


def test_a_budgeted_arm_had_as_much_as_the_flow(made: Path) -> None:
    rows = {row["name"]: row["costs"] for row in json.loads((made / "out/comparison.json").read_text())["arms"]}
    flow, other = rows["answer_adapter"], rows["online_dpo_same_tokens"]
    assert sum(other[name] for name in ("tokens_sampled", "tokens_learned")) >= sum(
        flow[name] for name in ("tokens_sampled", "tokens_learned")
    )


def test_done_work_is_not_done_again_and_other_settings_are_refused(made: Path, tmp_path: Path) -> None:
    """In a copy, as if it had been made there: comparison.json is written anew."""
    out = tmp_path / "out"
    shutil.copytree(made / "out", out)
    for file in (out / "config.yaml", out / "seed0" / DONE):
        file.write_text(file.read_text().replace(str(made), str(tmp_path)))
    done = (out / "seed0" / DONE).read_bytes()
    assert str(tmp_path).encode() in done
    words = ["--config", str(made / "settings.yaml"), "--compare.output_dir", str(out)]
    assert compare.compare([*words, "--compare.arms", "[zero_shot,self_generated,trained_flow]"]) == 0
    assert (out / "seed0" / DONE).read_bytes() == done
    with pytest.raises(ConfigError, match=r"made with other settings.*\n  compare.pool.num_traces: 6 then, 7 now"):
        compare.compare([*words, "--compare.pool.num_traces", "7"])


def test_arms_are_added_to_a_seed_whose_folders_are_gone(made: Path, tmp_path: Path) -> None:
    file = seed_results.path_of(tmp_path / "out", 0)
    file.parent.mkdir(parents=True)
    shutil.copy(seed_results.path_of(made / "out", 0), file)
    before = seed_results.read_seed(file)
    words = ["--config", str(made / "settings.yaml"), "--compare.output_dir", str(tmp_path / "out")]
    assert compare.compare([*words, "--compare.arms", "[zero_shot,ground_truth]"]) == 0
    after = seed_results.read_seed(file)
    assert set(after.arms) == {*before.arms, "ground_truth"}
    assert {name: after.arms[name] for name in before.arms} == before.arms | {"zero_shot": after.arms["zero_shot"]}
    assert after.arms["zero_shot"].verdicts == before.arms["zero_shot"].verdicts
    assert set(before.made.commands) <= set(after.made.commands)
    assert any("sft/ground_truth" in command for command in after.made.commands)
    assert sum(piece["num_pieces"] for piece in after.made.pieces) > sum(p["num_pieces"] for p in before.made.pieces)
    other = {name: ids[1:] for name, ids in before.questions.items()}
    with pytest.raises(ConfigError, match="expected the questions of held_out that the arms of seed 0 answered before"):
        seed_results.added(replace(before, questions=other), after)


def test_every_command_can_be_run_by_hand(made: Path) -> None:
    for words in json.loads((made / "out/comparison.json").read_text())["commands"]:
        assert words.split()[:2] in [["flow-dpo", name] for name in ("train", "generate", "sft", "evaluate")]


def test_the_report_reads_it(made: Path, tmp_path: Path) -> None:
    assert report_command.report([str(made / "out"), "--output_dir", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "self_on_trained_problems" in page


def test_drawn_answers_may_be_left_out() -> None:
    asked = ([], ["--sampled", "false"])
    tests = [compare._sizes(compare.parse(["--max_problems", "8", *more])).tests for more in asked]
    assert tests == [("held_out/greedy", "held_out/sampled"), ("held_out/greedy",)]


def test_an_arm_without_enough_traces_is_told_and_the_others_are_made(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    words = ["--config", str(tmp_path / "settings.yaml"), "--compare.output_dir", str(tmp_path / "out")]
    words += ["--compare.num_seeds", "2", "--compare.jobs", "2", "--compare.pool.num_traces", "500"]
    words += ["--compare.pool.pool_problems", "8"]
    assert compare.compare([*words, "--compare.arms", "[zero_shot,self_generated]"]) == 0
    found: dict[str, Any] = json.loads((tmp_path / "out/comparison.json").read_text())
    assert [row["name"] for row in found["arms"]] == ["zero_shot"]
    assert (found["seeds"], len(found["arms"][0]["accuracies"]["held_out"]["greedy"]["per_seed"])) == ([0, 1], 2)
    assert list(found["failed"]) == ["self_generated"]
    assert "sft/self_generated: expected 500 traces in" in found["failed"]["self_generated"]
    # Who made it, by which settings, and that no question of the test was learned from.
    assert found["settings"]["compare"]["pool"]["num_traces"] == 500
    assert sum(one["num_pieces"] for one in found["made_by"]) == len(found["commands"])
    assert {facts["num_learned"] for facts in found["test_sets"].values()} == {0}
    assert report_command.report([str(tmp_path / "out"), "--output_dir", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report/report.html").read_text()
    assert "1 arm could not be made: self_generated (" in page
    assert str(escape(found["command"])) in page
    # In this process, which has the libraries loaded already.
    alone = [*words, "--compare.jobs", "1", "--compare.arms", "[self_generated]"]
    with pytest.raises(DataError, match="expected at least one arm to succeed, found none; self_generated: seed 0"):
        compare.compare(alone)


def test_a_given_run_that_has_learned_since_is_refused(tmp_path: Path) -> None:
    """What was evaluated before would be of one policy, the rest of another."""
    run, out = tmp_path / "run", tmp_path / "out"
    for role in ("answer", "stop"):
        (run / "adapters" / role / "2").mkdir(parents=True)
    provenance.refuse_learned_since(out, run)
    summary = {"schema": "evaluation/1", "dataset": "a/b", "num_problems": 1, "accuracy": 1.0, "interval": [0.2, 1.0]}
    of = {"answer": str(run / "adapters/answer/2"), "stop": str(tmp_path / "other/adapters/stop/9")}
    files = {
        "evaluations/base/summary.json": summary | {"adapters": {}},
        "evaluations/mine/summary.json": summary | {"adapters": of},
        "traces/t/traces.json": {"schema": "traces/1", "adapters": of},
    }
    for name, content in files.items():
        (out / "seed0" / name).parent.mkdir(parents=True)
        write_whole(out / "seed0" / name, json.dumps(content))
    provenance.refuse_learned_since(out, run)
    for role in ("answer", "stop"):
        (run / "adapters" / role / "3").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"evaluations/mine was made with .*answer/2, and .* has learned since"):
        provenance.refuse_learned_since(out, run)
    shutil.rmtree(out / "seed0/evaluations")
    with pytest.raises(ConfigError, match=r"traces/t was made with .*; name another folder with --compare\.output_dir"):
        provenance.refuse_learned_since(out, run)


STUDIES = Path(__file__).parents[2] / "studies"


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*/settings.yaml")), ids=lambda file: file.parent.name)
def test_the_settings_of_every_study_are_understood_and_have_a_command(file: Path) -> None:
    parsed = compare.parse(["--config", str(file)])
    assert choose.choose(parsed["compare"].arms, parsed["credit"])
    name, makefile = file.parent.name, (STUDIES.parent / "Makefile").read_text(encoding="utf-8")
    command = f"flow-dpo compare --config studies/{name}/settings.yaml"
    assert f"$(call study,{name}," in makefile or command in makefile + file.read_text(encoding="utf-8")


STUDY_TARGETS = [
    f"study{what}" for what in ("", "-recipes", "-recipes-redrawn", "-team", "-variants", "-svamp", "-gsm8k", "-cost")
]


@pytest.mark.parametrize("target", STUDY_TARGETS)
def test_a_study_that_is_made_fresh_has_no_published_seed(target: str) -> None:
    """It makes all seeds in a folder of its own; else published seeds lie in the folder, and are not made again."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("no make")

    def lines(*more: str) -> str:
        return subprocess.run(
            [make, "-n", target, *more], cwd=STUDIES.parent, capture_output=True, text=True, check=True
        ).stdout

    usual, fresh = lines(), lines("FRESH=1")
    folder = f"runs/{target if target != 'study-cost' else 'cost'}"
    assert re.search(rf"cp -n studies/.* {folder}/(\S+/)?seeds/", usual)
    assert "-fresh" not in usual
    assert f"--compare.output_dir {folder}-fresh" in fresh
    assert "cp -n" not in fresh
    read = [line for line in fresh.splitlines() if re.search(rf"{folder}(?!-fresh)\b(?!-)", line)]
    assert [line for line in read if "--named" not in line] == [], "nothing is taken from where published seeds lie"
    timed = "tools.cost_seconds"
    assert (f"--output {folder}-fresh/seconds.json" in fresh) == (timed in fresh) == (target == "study-cost")


@pytest.mark.parametrize("name", ["seed", "team"])
def test_seeds_can_be_added_to_a_published_study(name: str) -> None:
    """Its settings, with the defaults of today, are those of the seeds that are published."""
    now = run_folder.plain(compare.parse(["--config", str(STUDIES / name / "settings.yaml")]))
    files = sorted((STUDIES / name / "seeds").glob("*.json.gz"))
    assert files
    for file in files:
        compare._refuse_others(file, seed_results.read_seed(file).settings, now)
    integers = {**now, "engine": {**now["engine"], "int8": True}}
    with pytest.raises(ConfigError, match=r"engine.int8: False then, True now"):
        compare._refuse_others(files[0], seed_results.read_seed(files[0]).settings, integers)
