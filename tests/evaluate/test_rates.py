"""Is each training's learning rate the best of its candidates, by problems and seeds that no test has?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.cli import compare
from flow_dpo.core.errors import ConfigError, DataError, LearningError
from flow_dpo.data.seed import seed_problems
from flow_dpo.evaluate.compare import provenance, rates, seed_results
from flow_dpo.evaluate.compare.arms import Arm, Outcome, Sizes
from flow_dpo.evaluate.compare.jobs import JobRunner
from flow_dpo.evaluate.compare.rates import Tried
from flow_dpo.evaluate.compare.settings import RateSettings
from flow_dpo.report.comparison_section import summary_tables
from flow_dpo.runs.files import append_jsonl
from flow_dpo.runs.records import Metrics, append_rows, from_json
from flow_dpo.runs.resolve import read_settings
from tests.support.once import Once
from tests.support.record_examples import METRICS, PREDICTION


def tried(rate: float, seed: int, **accuracies: float) -> Tried:
    return Tried(rate=rate, seed=seed, accuracies=accuracies, failed={})


def test_the_rate_with_the_best_mean_over_seeds_is_chosen() -> None:
    found = rates.choose_rates(
        [
            tried(0.003, 1000, grpo=0.9, dapo=0.5, rloo=0.7),
            tried(0.001, 1000, grpo=0.6, dapo=0.5, rloo=0.8),
            tried(0.003, 1001, grpo=0.4, dapo=0.5),  # rloo's loss was no number here
            tried(0.001, 1001, grpo=0.8, dapo=0.5, rloo=0.2),
        ]
    )
    # grpo: 0.65 and 0.7; dapo: equal, and the lower rate; rloo: a rate that failed once is not chosen.
    assert {name: row["chosen"] for name, row in found.items()} == {"grpo": 0.001, "dapo": 0.001, "rloo": 0.001}
    assert found["rloo"]["by_rate"] == {"0.001": [0.8, 0.2], "0.003": [0.7, None]}


def test_a_training_that_no_rate_could_make_has_none() -> None:
    assert rates.choose_rates([tried(0.001, 1000), tried(0.003, 1000)]) == {}
    assert rates.choose_rates([tried(0.001, 1000, grpo=0.5), tried(0.001, 1001)]) == {}


def test_validation_problems_are_in_no_other_set() -> None:
    sets = {"validation": seed_problems("test", 5, start=10), "held_out": seed_problems("test", 10)}
    rates.refuse_shared(sets)
    with pytest.raises(ConfigError, match=r"found 3 of held_out, such as seed/test/10; .*validation_skip"):
        rates.refuse_shared({**sets, "held_out": seed_problems("test", 13)})


@pytest.mark.parametrize("wrong", [(0.0,), (-1e-3,), (float("nan"),), (1e-3, 1e-3)])
def test_candidates_are_different_rates(wrong: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="different learning rates above 0"):
        RateSettings(candidates=wrong)


def test_rates_are_taken_from_another_comparison(tmp_path: Path) -> None:
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps({"rates": {"grpo_same_tokens": {"chosen": 0.002, "by_rate": {"0.002": [0.5]}}}}))
    assert rates.taken_rates(path)["grpo_same_tokens"]["chosen"] == 0.002
    path.write_text(json.dumps({"rates": None}))
    with pytest.raises(ConfigError, match="expected a comparison that chose rates, found none"):
        rates.taken_rates(path)
    with pytest.raises(ConfigError, match=r"chosen_in, found .*missing\.json"):
        rates.taken_rates(tmp_path / "missing.json")
    with pytest.raises(ConfigError, match="candidates or chosen_in, found both"):
        RateSettings(candidates=(0.001,), chosen_in=str(path))


# ---- with commands that only leave behind what theirs do -------------------------------------------------------------


class Commands:
    """Trainings that fail where their folder is named `failing`; tests that have as many right of ten as stated."""

    def __init__(self, right: dict[str, int], failing: str = "nothing fails") -> None:
        self.right, self.failing, self.words = right, failing, dict[str, list[str]]()

    def train(self, words: Sequence[str]) -> int:
        folder = Path(words[words.index("--output_dir") + 1])
        self.words[folder.name] = list(words)
        if self.failing in folder.name:
            raise LearningError("expected finite losses, found nan")
        folder.mkdir(parents=True)
        row = {"rollout/sampled_tokens": 1, "learn/answer/tokens": 1, "num_rollouts": 1, "learn/updates": 1}
        seconds = dict.fromkeys(("rollout/seconds", "grade/seconds", "learn/seconds"), 0.5)
        append_rows(folder / "metrics.jsonl", [from_json(Metrics, METRICS | row | seconds, "here")])
        return 0

    def evaluate(self, words: Sequence[str]) -> int:
        folder = Path(words[words.index("--output_dir") + 1])
        folder.mkdir(parents=True)
        right = self.right["/".join(folder.parts[-2:])]
        statuses = ["correct"] * right + ["wrong"] * (10 - right)
        rows = [PREDICTION | {"id": f"q{i}", "verdict": {"status": one}} for i, one in enumerate(statuses)]
        append_jsonl(folder / "predictions.jsonl", rows)
        return 0


def _arm(name: str, training: str, kind: Any = "single") -> Arm:
    def make(do: JobRunner, sizes: Sizes) -> Outcome:
        if training == "too few":
            raise DataError("expected 6 traces, found 2")
        works = (do.train(training),) if training else ()
        tests = {
            test: do.evaluate(f"evaluations/{name}/{test.replace('/', '-')}", "validation") for test in sizes.tests
        }
        return Outcome(works=works, evaluations=tests)

    return Arm(name=name, kind=kind, what="made by hand", make=make)


SIZES = Sizes(
    num_traces=1, matched_draws=1, more_draws=1, flow_shape=None, tests=("held_out/greedy",), max_problems=9,
    test_samples=4,
)  # fmt: skip


def _runner(tmp_path: Path, commands: Commands, rate: Any) -> JobRunner:
    run = {"train": commands.train, "evaluate": commands.evaluate}
    return JobRunner(tmp_path / "seed1000", 1000, tmp_path / "settings", run=run, rates=rate)


def test_a_rate_is_tried_by_every_arm_that_is_tested_as_trained(tmp_path: Path) -> None:
    sizes = rates.validation_sizes(SIZES, sampled=True)
    assert (sizes.tests, sizes.test_samples) == (("validation/greedy", "validation/sampled"), 1)
    right = {"itself/validation-greedy": 9, "itself/validation-sampled": 6, "one/validation-greedy": 8,
             "one/validation-sampled": 5, "other/validation-greedy": 3, "other/validation-sampled": 2,
             "none/validation-greedy": 1, "none/validation-sampled": 1}  # fmt: skip
    commands = Commands(right, failing="diverges")
    arms = [
        _arm("itself", "flow", "flow"),
        _arm("one", "flow"),
        _arm("other", "grpo"),
        _arm("none", "", "flow"),  # the untrained flow, whose accuracy is of no training
        _arm("made", "not run", "compiled"),
        _arm("short", "too few"),
        _arm("wild", "diverges"),
    ]
    found = rates.try_rate(_runner(tmp_path, commands, 0.003), arms, sizes, 0.003)
    # Of the flow the mean of two arms and two decodings.
    assert found.accuracies == pytest.approx({"flow": (0.9 + 0.6 + 0.8 + 0.5) / 4, "grpo": 0.25})
    assert found.failed == {
        "short": "expected 6 traces, found 2",
        "wild": "seed 1000, diverges: expected finite losses, found nan",
    }
    assert set(commands.words) == {"flow", "grpo", "diverges"}
    assert all(words[words.index("--learning_rate") + 1] == "0.003" for words in commands.words.values())


def test_a_training_has_the_rate_of_its_name_and_else_its_presets(tmp_path: Path) -> None:
    commands = Commands({})
    do = _runner(tmp_path, commands, {"grpo": 0.0015})
    do.train("grpo")
    do.train("flow")
    do.train("other", rate_of="grpo")
    assert do.trained_at == {"grpo": 0.0015, "flow": None}
    assert commands.words["grpo"][-4:-2] == ["--learning_rate", "0.0015"]
    assert "--learning_rate" not in commands.words["flow"]


# ---- the whole -------------------------------------------------------------------------------------------------------

SETTINGS = """
recipe: flow-dpo-paper
data: {dataset_name: seed, dataset_split: train, max_problems: 8}
model: {num_threads: 1}
compare:
  arms: [answer_adapter, dapo_same_tokens]
  num_seeds: 1
  tokens: 1500
  rates: {candidates: [0.001, 0.004], validation_split: test, validation_skip: 6, validation_problems: 6}
  tests: {test_problems: 6}
"""


@pytest.fixture(scope="module")
def made(once: Once) -> Path:
    return once("rates", _compare) / "out"


def _compare(folder: Path) -> None:
    (folder / "settings.yaml").write_text(SETTINGS)
    assert compare.compare(_words(folder)) == 0


def _words(folder: Path, *more: str) -> list[str]:
    return ["--config", str(folder / "settings.yaml"), "--compare.output_dir", str(folder / "out"), *more]


def test_trainings_have_the_rates_that_were_chosen_for_them(made: Path) -> None:
    found = json.loads((made / "comparison.json").read_text())
    assert set(found["rates"]) == {"flow", "dapo_same_tokens"}
    for name, row in found["rates"].items():
        assert set(row["by_rate"]) == {"0.001", "0.004"}
        assert row["chosen"] == max((0.001, 0.004), key=lambda rate: (row["by_rate"][f"{rate:g}"], -rate))
        settings = read_settings(made / "seed0" / name / "config.yaml")
        assert settings["learner"]["learning_rate"] == row["chosen"]
        tuning = read_settings(made / "rates/0.004/seed1000" / name / "config.yaml")
        assert (tuning["learner"]["learning_rate"], tuning["run"]["seed"]) == (0.004, 1000)
    # Which problems: six of the tests, and six others.
    asked = {
        name: [json.loads(line)["id"] for line in (folder / "predictions.jsonl").read_text().splitlines()]
        for name, folder in {
            "test": made / "seed0/evaluations/answer_adapter/held_out-greedy",
            "validation": made / "rates/0.001/seed1000/evaluations/answer_adapter/validation-greedy",
        }.items()
    }
    assert asked == {
        "test": [f"seed/test/{i}" for i in range(6)],
        "validation": [f"seed/test/{i}" for i in range(6, 12)],
    }
    assert sum("rates/0.004/seed1000" in command for command in found["commands"]) == 6
    [table] = [table for table in summary_tables(found) if "learning rate" in table.caption]
    assert [row[0] for row in table.rows] == ["flow", "dapo_same_tokens"]


def test_trainings_have_the_rates_that_another_comparison_chose(tmp_path: Path) -> None:
    tried = {"dapo_same_tokens": 0.0025, "grpo_same_tokens": 0.1, "flow": 0.007}
    other = {"rates": {name: {"chosen": rate, "by_rate": {f"{rate:g}": [0.5]}} for name, rate in tried.items()}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    candidates = SETTINGS[SETTINGS.index("  rates: ") : SETTINGS.index("  tests: ")]
    taken = SETTINGS.replace(candidates, f"  rates: {{chosen_in: {tmp_path / 'other.json'}}}\n")
    (tmp_path / "settings.yaml").write_text(taken.replace("answer_adapter, ", ""))
    assert compare.compare(_words(tmp_path)) == 0
    assert read_settings(tmp_path / "out/seed0/dapo_same_tokens/config.yaml")["learner"]["learning_rate"] == 0.0025
    # What is stated are rates of trainings that are made here, or that arms share.
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())["rates"]
    assert {name: row["chosen"] for name, row in found.items()} == {"dapo_same_tokens": 0.0025, "flow": 0.007}

    # A seed that is known keeps its rates: another choice in the same file would be two rates in one table.
    file = seed_results.path_of(tmp_path / "out", 0)
    known = seed_results.read_seed(file)
    assert known.rates == {"dapo_same_tokens": {"dapo_same_tokens": 0.0025}}
    other["rates"]["dapo_same_tokens"]["chosen"] = 0.005
    (tmp_path / "other.json").write_text(json.dumps(other))
    then = (
        r"dapo_same_tokens of dapo_same_tokens at one learning rate in all seeds, found 0\.0025 in .*seed0\.json\.gz "
    )
    with pytest.raises(ConfigError, match=rf"{then}and 0\.005 now\. Use the arms .*--compare\.output_dir"):
        compare.compare(_words(tmp_path, "--compare.num_seeds", "2"))
    assert not (tmp_path / "out/seed1").exists()
    # Of a file from before rates were noted they are not known, and nothing is refused.
    seed_results.write_seed(tmp_path / "out", replace(known, rates={}))
    assert compare.compare(_words(tmp_path)) == 0


def test_only_trainings_that_are_needed_must_have_the_same_rate(tmp_path: Path) -> None:
    made = provenance.MadeBy(commands=(), pieces=(), test_sets={})
    of_arms = {"flow_itself": {"flow": 0.003}, "grpo_same_tokens": {"flow": 0.003, "grpo_same_tokens": None}}
    known = seed_results.SeedResult(seed=3, questions={}, arms={}, failed={}, made=made, rates=of_arms)
    seed_results.write_seed(tmp_path, known)
    assert seed_results.read_seeds(tmp_path) == [known]
    same = {"flow": 0.003, "dapo_same_tokens": 0.1}
    rates.refuse_other_rates(tmp_path, [3, 4], ["flow_itself", "grpo_same_tokens", "dapo_same_tokens"], same)
    rates.refuse_other_rates(tmp_path, [4], ["flow_itself"], {})
    with pytest.raises(ConfigError, match=r"flow of flow_itself at .*, found 0\.003 in .* and its preset's now"):
        rates.refuse_other_rates(tmp_path, [3], ["flow_itself"], {})
    with pytest.raises(ConfigError, match=r"grpo_same_tokens of .*, found its preset's in .* and 0\.1 now"):
        rates.refuse_other_rates(tmp_path, [3], ["grpo_same_tokens"], {"flow": 0.003, "grpo_same_tokens": 0.1})
    newer = replace(known, rates={"flow_itself": {"flow": 0.001}})
    assert seed_results.added(known, newer).rates == {**of_arms, "flow_itself": {"flow": 0.001}}


def test_a_rate_is_taken_by_every_arm_of_its_training() -> None:
    for training, arm in (("stop_only", "stop_only_itself"), ("paper_flow", "paper_answer"), ("grpo", "grpo")):
        assert rates.trained_for(training, ["zero_shot", arm])
    assert not rates.trained_for("stop_only", ["answer_only_itself", "paper_answer"])


def test_other_recipes_learn_as_their_presets_have_it_but_for_what_is_changed(made: Path, tmp_path: Path) -> None:
    assert read_settings(made / "settings/other.yaml")["learner"] == {}
    assert read_settings(made / "seed0/dapo_same_tokens/config.yaml")["learner"]["passes"]["short_batch"] == "fill"
    (tmp_path / "settings.yaml").write_text(
        SETTINGS.replace("arms: [answer_adapter, dapo_same_tokens]", "arms: [zero_shot]")
    )
    compare.compare(_words(tmp_path, "--learner.passes.minibatches", "2", "--learner.max_grad_norm", "0.5"))
    learner = read_settings(tmp_path / "out/settings/other.yaml")["learner"]
    assert learner == {"max_grad_norm": 0.5, "passes": {"minibatches": 2}}


def test_a_validation_problem_of_the_tests_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    with pytest.raises(ConfigError, match=r"found 3 of held_out"):
        compare.compare(_words(tmp_path, "--compare.rates.validation_skip", "3"))
    with pytest.raises(ConfigError, match=r"of pool, such as seed/train/8; choose others"):
        compare.compare(_words(tmp_path, "--compare.rates.validation_split", "train"))
    assert not (tmp_path / "out").exists()
