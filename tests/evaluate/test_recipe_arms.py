"""Are the neighbours of Flow-DPO contrasted on what their papers claim, and on nothing else?"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.cli import compare
from flow_dpo.cli import report as report_command
from flow_dpo.cli.train import parse_train
from flow_dpo.core.types import Status
from flow_dpo.evaluate import statistics
from flow_dpo.evaluate.compare import arms, recipe_arms
from flow_dpo.evaluate.compare.arms import SAME_TOKENS, Arm, Outcome, Sizes
from flow_dpo.evaluate.compare.choose import EVERY, choose
from flow_dpo.evaluate.compare.jobs import JobRunner
from flow_dpo.evaluate.compare.seed_results import collect
from flow_dpo.evaluate.compare.summary import ComparisonContext, summarise
from flow_dpo.report.comparison_section import summary_tables
from flow_dpo.runs import resolve, run_folder
from flow_dpo.runs.files import append_jsonl, write_whole
from flow_dpo.runs.records import Metrics, append_rows, from_json
from tests.support.record_examples import METRICS, PREDICTION
from tests.support.stand_ins import stand_ins
from tools.study_tables import insert_tables

TESTS = ("held_out/greedy", "harder/greedy")


# ---- differences to others than the baseline ------------------------------------------------------------------------


def evaluation(folder: Path, statuses: str) -> Path:
    """An evaluation with these verdicts: 1 right, 0 wrong."""
    names: dict[str, Status] = {"1": "correct", "0": "wrong"}
    folder.mkdir(parents=True)
    append_jsonl(
        folder / "predictions.jsonl",
        [
            PREDICTION | {"id": f"q{i}", "question": "?", "gold": "1", "verdict": {"status": names[one]}}
            for i, one in enumerate(statuses)
        ],
    )
    summary = {"dataset": "made/up", "num_problems": len(statuses), "accuracy": 0.5, "interval": [0.0, 1.0]}
    write_whole(folder / "summary.json", json.dumps({"schema": "evaluation/1", **summary}))
    return folder


def nothing(do: JobRunner, sizes: Sizes) -> Outcome:
    raise AssertionError("no arm is made here")


def summary(
    tmp_path: Path, verdicts: dict[str, tuple[str, str]], *, tokens: int = 0, **against: tuple[str, ...]
) -> dict[str, Any]:
    """comparison.json of one seed: each arm's verdicts on both tests, and what it is against."""
    chosen = [
        Arm(name=name, kind="single", what=f"made by hand {SAME_TOKENS}", make=nothing, against=against.get(name, ()))
        for name in verdicts
    ]
    outcomes: dict[str, Outcome | str] = {
        name: Outcome(
            works=(),
            evaluations={
                test: evaluation(tmp_path / name / test, said) for test, said in zip(TESTS, each, strict=True)
            },
        )
        for name, each in verdicts.items()
    }
    seed = collect(tmp_path, 0, outcomes, TESTS[0])
    return summarise(chosen, [seed], ComparisonContext(tests=TESTS, facts={}, tokens=tokens))


@pytest.mark.parametrize(("tokens", "said"), [(0, "the flow's tokens"), (160000, "160,000 tokens")])
def test_an_arm_says_which_tokens_it_had(tmp_path: Path, tokens: int, said: str) -> None:
    [row] = summary(tmp_path, {"a": ("11", "1")}, tokens=tokens)["arms"]
    assert row["what"] == f"made by hand until it had {said}"


def test_an_arm_is_compared_with_those_it_names(tmp_path: Path) -> None:
    found = summary(
        tmp_path,
        {"a": ("1111110011", "10"), "b": ("0000001111", "11"), "c": ("0100110011", "11")},
        a=("b", "absent"),
        c=("a", "b"),
    )
    rows = {row["name"]: row for row in found["arms"]}
    assert found["baseline"] is None
    assert [one["against"] for one in rows["a"]["contrasts"]] == ["b"]
    assert rows["b"]["contrasts"] == []
    gap = rows["a"]["contrasts"][0]["differences"]["held_out/greedy"]
    # Six questions better, two worse, of ten.
    assert (gap["mean"], gap["num_better"], gap["num_worse"]) == (pytest.approx(0.4), 6, 2)
    assert gap["p"] == pytest.approx(statistics.exchange_p([1] * 6 + [-1] * 2))
    assert rows["a"]["contrasts"][0]["differences"]["harder/greedy"]["mean"] == -0.5
    # Holm over the three contrasts of a test: a - b, c - a and c - b have 6:2, 0:3 and 3:2 questions.
    ps = [statistics.exchange_p([1] * better + [-1] * worse) for better, worse in ((6, 2), (0, 3), (3, 2))]
    contrasts = [*rows["a"]["contrasts"], *rows["c"]["contrasts"]]
    corrected = [one["differences"]["held_out/greedy"]["p_holm"] for one in contrasts]
    assert corrected == pytest.approx(list(statistics.holm(dict(zip("xyz", ps, strict=True))).values()))
    assert corrected[0] > gap["p"]
    tables = {table.caption: table.rows for table in summary_tables(found)}
    assert not any("Difference" in caption for caption in tables), "there is no baseline to be different from"
    assert tables["Contrasts, percentage points"][0][:4] == ("a", "b", "held_out/greedy", "+40.0")


def test_without_contrasts_there_is_no_second_table(tmp_path: Path) -> None:
    found = summary(tmp_path, {"a": ("11", "10"), "self_generated": ("10", "11")})
    assert all(row["contrasts"] == [] for row in found["arms"])
    assert found["arms"][0]["difference_to_self"]["mean"] == 0.5
    assert not any("against" in table.columns for table in summary_tables(found))


@pytest.mark.parametrize("name", ["seed", "recipes", "instructed", "svamp", "gsm8k", "team"])
def test_the_published_tables_are_those_of_its_figures(name: str) -> None:
    study = Path(__file__).parent.parent.parent / "studies" / name
    page = (study / "README.md").read_text()
    assert insert_tables(page, study) == page
    for arm in json.loads((study / "comparison.json").read_text())["arms"]:
        if not arm["accuracies"]:  # votes and Stops have tables of their own
            continue
        greedy = arm["accuracies"]["held_out"]["greedy"]["mean"]
        assert re.search(rf"^\| {arm['name']} \| {100 * greedy:.1f} %", page, re.MULTILINE)


# ---- what the arms are ----------------------------------------------------------------------------------------------


def test_the_group_holds_what_it_contrasts() -> None:
    names = [arm.name for arm in choose(("recipes",))]
    assert {"vineppo_same_tokens", "rpo_same_tokens", "cpl_same_tokens", "flow_itself"} <= set(names)
    assert {other for name in names for other in EVERY[name].against} <= set(names)
    names = [arm.name for arm in choose(("instructed",))]
    assert names == ["zero_shot", "self_training_same_tokens", "dots_same_tokens", "regenesis_same_tokens"]
    assert all("self_training_same_tokens" in EVERY[name].against for name in names[2:])
    # Sources of traces and their controls stay what they were where no arm is named.
    assert [arm.name for arm in choose(())] == list(arms.ARMS)


AS_VINEPPO = (
    *("--objective.kl_coef", "1e-4", "--objective.kl_reduction", "sum", "--objective.max_kl", "10"),
    *("--objective.max_ratio", "--objective.reduction", "tokens", "--credit.scale", "false", "--credit.whiten"),
    *("--examples_per_update", "0", "--learner.passes.minibatches", "--learner.passes.short_batch", "wait"),
)
"""What makes GRPO learn as VinePPO's own preset has it (the next test says that it is so)."""


class Trained:
    """Stands in for `flow-dpo train` and `evaluate`: keeps the words, and leaves behind what they do."""

    def __init__(self) -> None:
        self.words: dict[str, list[str]] = {}

    def train(self, words: Sequence[str]) -> int:
        folder = Path(words[words.index("--output_dir") + 1])
        self.words[folder.name] = list(words)
        folder.mkdir(parents=True)
        row = {"rollout/sampled_tokens": 700, "learn/answer/tokens": 77, "num_rollouts": 5, "learn/updates": 1}
        seconds = dict.fromkeys(("rollout/seconds", "grade/seconds", "learn/seconds"), 0.5)
        append_rows(folder / "metrics.jsonl", [from_json(Metrics, METRICS | row | seconds, "here")])
        return 0

    def evaluate(self, words: Sequence[str]) -> int:
        self.words[Path(words[words.index("--output_dir") + 1]).parent.name + " asked"] = list(words)
        return 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The words of every training and evaluation of the group."""
    trained, folder = Trained(), tmp_path_factory.mktemp("made")
    do = JobRunner(folder, 5, folder / "settings", run={"train": trained.train, "evaluate": trained.evaluate})
    sizes = Sizes(num_traces=1, matched_draws=1, more_draws=1, flow_shape=None, tests=TESTS, max_problems=9)
    with stand_ins():
        for name in recipe_arms.ARMS:
            EVERY[name].make(do, sizes)
    return trained.words


@pytest.mark.parametrize(
    ("arm", "other", "differing"),
    [
        (
            "vineppo",
            "grpo_as_vineppo",
            {"vineppo", "grpo", *AS_VINEPPO},
        ),
        ("dots", "self_training", {"dots", "rejection-sampling"}),
        ("regenesis", "self_training", {"regenesis", "rejection-sampling"}),
        ("rpo", "reference_path", {"rpo", "rejection-sampling"}),
        ("rpo", "rpo_no_contrast", {"--objective.exploration_weight", "0"}),
        ("cpl", "cpl_no_margin", {"--objective.margin_weight", "0"}),
        (
            "cpl_value",
            "cpl",
            {"--flow.value_role", "--explore.valued_by", "--credit.valued_by", "value"},
        ),
    ],
)
def test_contrasted_arms_differ_in_what_they_are_about(
    made: dict[str, list[str]], arm: str, other: str, differing: set[str]
) -> None:
    one, two = (set(made[f"{name}_same_tokens"][:-1]) for name in (arm, other))
    assert one ^ two == differing
    assert f"{other}_same_tokens" in EVERY[f"{arm}_same_tokens"].against


def test_grpo_as_vineppo_differs_from_vineppo_in_its_advantages_alone(made: dict[str, list[str]]) -> None:
    settings = [
        parse_train("train", words[: words.index("--config")] + words[words.index("--config") + 2 :], {}).sections()
        for words in (made["grpo_as_vineppo_same_tokens"], made["vineppo_same_tokens"])
    ]
    one, two = ({**run_folder.plain(each), "run": None} for each in settings)
    differing = set(run_folder.differences(one, two))
    assert differing == {
        "recipe",
        *("explore.num_completions", "explore.max_step_chars"),
        *("credit.baseline", "credit.scale", "credit.drop_tied", "credit.overlong_share", "credit.overlong_penalty"),
    }
    assert (one["credit"]["scale"], one["credit"]["whiten"], two["credit"]["whiten"]) == (False, True, True)


def test_every_recipe_has_the_flows_tokens_and_is_played_as_it_is_meant(made: dict[str, list[str]]) -> None:
    for name, arm in recipe_arms.ARMS.items():
        budget = made[name].index("--budget_tokens")
        assert made[name][budget + 1] == "777"
        asked = made[f"{name} asked"]
        assert asked[asked.index("--mode") + 1] == arm.kind


def test_a_budget_may_be_given_instead(tmp_path: Path) -> None:
    trained = Trained()
    do = JobRunner(tmp_path, 5, tmp_path / "settings", run={"train": trained.train, "evaluate": trained.evaluate})
    sizes = Sizes(num_traces=1, matched_draws=1, more_draws=1, flow_shape=None, tests=TESTS, max_problems=9, tokens=12)
    EVERY["dots_same_tokens"].make(do, sizes)
    assert list(trained.words) == ["dots_same_tokens", "dots_same_tokens asked"], "no flow is trained for its tokens"
    words = trained.words["dots_same_tokens"]
    assert words[words.index("--budget_tokens") + 1] == "12"


# ---- the whole ------------------------------------------------------------------------------------------------------

SETTINGS = """
data: {dataset_name: seed, dataset_split: train, max_problems: 4}
model: {num_threads: 1}
compare:
  arms: [recipes]
  num_seeds: 1
  tests: {test_problems: 3, sampled: false}
"""


def test_one_command_makes_the_table_and_the_report_reads_it(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    out = tmp_path / "out"
    assert compare.compare(["--config", str(tmp_path / "settings.yaml"), "--compare.output_dir", str(out)]) == 0
    found = json.loads((out / "comparison.json").read_text())
    rows = {row["name"]: row for row in found["arms"]}
    had = sum(rows["flow_itself"]["costs"][name] for name in ("tokens_sampled", "tokens_learned"))
    contrasted = [name for name in recipe_arms.CONTRASTS if name in recipe_arms.ARMS]
    for name in contrasted:
        assert sum(rows[name]["costs"][part] for part in ("tokens_sampled", "tokens_learned")) >= had
        assert [one["against"] for one in rows[name]["contrasts"]] == list(EVERY[name].against)
    margins = [
        resolve.read_settings(out / f"seed0/{name}_same_tokens/config.yaml")["objective"]["margin_weight"]
        for name in ("cpl_no_margin", "cpl")
    ]
    assert margins == [0.0, 1.0]
    # CPL's evaluation is of its own flow, with both of its roles.
    asked = json.loads((out / "seed0/evaluations/cpl_same_tokens/held_out-greedy/summary.json").read_text())
    assert set(asked["adapters"]) == {"plan", "answer"}
    assert report_command.report([str(out), "--output_dir", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report/report.html").read_text()
    pairs = list(itertools.chain.from_iterable((name, *EVERY[name].against) for name in contrasted))
    assert all(name in page for name in pairs)
    assert "Contrasts, percentage points" in page
