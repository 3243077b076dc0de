"""What does every arm of a comparison ask for? With commands that only write their words down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from flow_dpo.cli import compare
from flow_dpo.core.errors import DataError
from flow_dpo.core.explore import TurnSampling
from flow_dpo.evaluate.compare import arms, choose, team_arms
from flow_dpo.evaluate.compare.arms import Sizes
from flow_dpo.evaluate.compare.jobs import DONE, JobRunner
from flow_dpo.recipes import presets
from flow_dpo.runs import resolve
from flow_dpo.runs.adapters import one_pass
from flow_dpo.runs.files import read_jsonl
from flow_dpo.runs.records import Metrics, append_rows, from_json
from tests.support.record_examples import METRICS
from tests.support.stand_ins import stand_ins

TESTS = ("held_out/greedy", "held_out/sampled")
SIZES = Sizes(
    num_traces=6,
    matched_draws=16,
    more_draws=8,
    flow_shape=(24, 8),
    tests=TESTS,
    max_problems=9,
    single_pass=one_pass(presets.preset("flow-dpo", "seed").recipe.flow),
    draws=TurnSampling(temperature=1.0, top_p=0.97),
)


class Commands:
    """Stand-ins: what was asked, by the folder that it was to be written to."""

    def __init__(self) -> None:
        self.words: dict[str, list[str]] = {}

    def folder(self, words: Sequence[str]) -> Path:
        folder = Path(words[words.index("--output_dir") + 1])
        folder.mkdir(parents=True)
        self.words["/".join(folder.parts[folder.parts.index("seed5") + 1 :])] = list(words)
        return folder

    def train(self, words: Sequence[str]) -> int:
        row = {"rollout/sampled_tokens": 700, "learn/answer/tokens": 77, "num_rollouts": 50, "learn/updates": 4}
        seconds = dict.fromkeys(("rollout/seconds", "grade/seconds", "learn/seconds"), 0.5)
        folder = self.folder(words)
        # A role that learns alone sees more problems for as many updates.
        row["problems_seen"] = 40 if "--credit.roles" in words else 9
        append_rows(folder / "metrics.jsonl", [from_json(Metrics, METRICS | row | seconds, "here")])
        (folder / "config.yaml").write_text("data: {skip_problems: 300}")
        return 0

    def generate(self, words: Sequence[str]) -> int:
        cost = {"tokens_sampled": 10, "verdicts_used": 2, "seconds": 1.0}
        (self.folder(words) / "traces.json").write_text(json.dumps({"schema": "traces/1", "cost": cost}))
        return 0

    def sft(self, words: Sequence[str]) -> int:
        facts = {"schema": "run/1", "cost": {"tokens_read": 5, "seconds": 1.0}}
        (self.folder(words) / "run.json").write_text(json.dumps(facts))
        return 0

    def evaluate(self, words: Sequence[str]) -> int:
        self.folder(words)
        return 0


def asked(tmp_path: Path, *names: str, sizes: Sizes = SIZES) -> dict[str, list[str]]:
    """The words of all commands of these arms."""
    commands = Commands()
    run = {name: getattr(commands, name) for name in ("train", "generate", "sft", "evaluate")}
    do = JobRunner(tmp_path / "seed5", 5, tmp_path / "settings", run=run)
    with stand_ins():
        for name in names:
            outcome = choose.EVERY[name].make(do, sizes)
            assert set(outcome.evaluations) == set(TESTS)
    return commands.words


def value(words: Sequence[str], flag: str) -> str:
    return words[words.index(flag) + 1]


@pytest.mark.parametrize("name", [name for name, arm in choose.EVERY.items() if arm.kind not in ("votes", "stop")])
def test_every_arm_is_made_and_measured_on_every_test(name: str, tmp_path: Path) -> None:
    words = asked(tmp_path, name)
    measured = [folder for folder in words if folder.startswith("evaluations/")]
    assert measured == [f"evaluations/{name}/{test.replace('/', '-')}" for test in TESTS]
    assert value(words[measured[1]], "--greedy") == "false"
    kind = choose.EVERY[name].kind
    assert {value(words[folder], "--mode") for folder in measured} == {"flow" if kind == "flow" else "single"}
    assert all(value(each, "--seed") == "5" for folder, each in words.items() if folder != "other_flow")
    # A compiled arm is measured by its own adapter, another trained one by its run, the base by neither.
    runner = {"compiled": "--adapter", "base": "--config"}.get(kind, "--run")
    if name != "untrained_flow_itself":
        assert words[measured[0]][0] == runner
    if kind == "compiled":
        assert value(words[measured[0]], "--adapter").endswith(f"seed5/sft/{name}")
        assert value(words[f"sft/{name}"], "--traces").endswith(f"seed5/traces/{name}")


def test_compiled_arms_have_as_many_traces_but_for_those_on_given_problems(tmp_path: Path) -> None:
    compiled = [name for name, arm in arms.ARMS.items() if arm.kind == "compiled"]
    words = asked(tmp_path, *compiled)
    free = {name for name in compiled if "--num_traces" not in words[f"sft/{name}"]}
    assert free == {"self_on_trained_problems", "trained_on_self_problems"}
    for name, of in (
        ("self_on_trained_problems", "trained_flow"),
        ("ground_truth_on_trained_problems", "trained_flow"),
        ("trained_on_self_problems", "self_generated"),
    ):
        assert value(words[f"traces/{name}"], "--problems_of").endswith(f"traces/{of}")
    assert value(words["traces/self_on_trained_problems"], "--num_samples") == "16"
    assert value(words["traces/self_more_draws"], "--num_samples") == "8"
    assert value(words["traces/trained_on_self_problems"], "--run").endswith("seed5/flow")


def test_variants_of_the_flow_differ_from_it_in_what_they_are_named_after(tmp_path: Path) -> None:
    words = asked(tmp_path, *arms.ARMS)
    flow = words["flow"][:-1]

    def more(name: str) -> list[str]:
        assert words[name][: len(flow) - 1] == flow[:-1]
        return [word for word in words[name][len(flow) - 1 : -1] if word != "--output_dir"]

    assert more("alternatives_2") == ["--num_alternatives", "2"]
    assert more("balanced_stop") == ["--balance"]
    assert more("chunks_half") == ["--chunk_tokens", "12", "--max_chunks", "16"]
    assert more("chunks_double") == ["--chunk_tokens", "48", "--max_chunks", "4"]
    for role in ("answer", "stop"):
        matched = ["--credit.roles", f"[{role}]", "--budget_updates", "4", "--max_problems", "72"]
        assert more(f"{role}_only") == matched
        # Its traces are of problems behind those that it learned from.
        assert value(words[f"traces/{role}_only"], "--data.skip_problems") == "340"
    assert "--data.skip_problems" not in words["traces/alternatives_2"]
    # The flow itself, not compiled, is the same training: every piece of work is done once.
    done = [row["name"] for row in read_jsonl(tmp_path / "seed5" / DONE)]
    assert len(done) == len(set(done))


def test_other_methods_have_the_flows_tokens_or_verdicts(tmp_path: Path) -> None:
    words = asked(tmp_path, *arms.ARMS)
    for method in ("online_dpo", "rejection_sampling"):
        assert value(words[f"{method}_same_tokens"], "--budget_tokens") == "777"
        assert value(words[f"{method}_same_verdicts"], "--budget_verdicts") == "50"
        assert value(words[f"{method}_same_tokens"], "--recipe") == method.replace("_", "-")
        assert value(words[f"{method}_same_tokens"], "--config").endswith("settings/other.yaml")
        assert "--explore.temperature" not in words[f"evaluations/{method}_same_tokens/held_out-sampled"]


def test_other_methods_are_asked_and_drawn_as_the_flow_is(tmp_path: Path) -> None:
    """With prompts, lengths and a temperature that are not the preset's."""
    sizes = Sizes(
        num_traces=6, matched_draws=1, more_draws=1, flow_shape=None, tests=TESTS, max_problems=9,
        preset="small", single_pass=SIZES.single_pass, draws=TurnSampling(temperature=0.6),
    )  # fmt: skip
    words = asked(tmp_path, "online_dpo_same_tokens", "dots_same_tokens", sizes=sizes)
    assert value(words["online_dpo_same_tokens"], "--config").endswith("settings/single.yaml")
    assert value(words["dots_same_tokens"], "--config").endswith("settings/other.yaml")
    for name in ("online_dpo_same_tokens", "dots_same_tokens"):
        drawn = words[f"evaluations/{name}/held_out-sampled"]
        assert value(drawn, "--explore.temperature") == "0.6"
        assert "--explore.top_p" not in drawn


def test_arms_of_single_pairs_need_a_recipe_that_has_them(tmp_path: Path) -> None:
    """A recipe whose roles learn from verdicts on attempts has none to leave out; the other arms are made all the
    same."""
    sizes = replace(SIZES, outcome_pairs=False)
    for name in ("answer_only", "stop_only_itself", "balanced_stop", "balanced_stop_itself"):
        with pytest.raises(DataError, match="expected a recipe of pairs by outcome"):
            asked(tmp_path, name, sizes=sizes)
    assert asked(tmp_path / "more", "alternatives_2_itself", sizes=sizes)


def test_other_recipes_take_no_settings_of_single_roles(tmp_path: Path) -> None:
    """The flow's roles may learn at rates of their own; a recipe of one role has no Stop to be given any."""
    parsed = compare.parse(["--max_problems", "8", "--compare.output_dir", str(tmp_path)])
    assert (set(parsed["learner"].roles), parsed["learner"].examples_per_update) == ({"stop"}, 12)
    compare._write_configs(tmp_path / "settings", parsed)
    for name in ("other", "single"):
        assert resolve.read_settings(tmp_path / f"settings/{name}.yaml")["learner"] == {}
    learner = resolve.read_settings(tmp_path / "settings/train.yaml")["learner"]
    assert (set(learner["roles"]), learner["examples_per_update"]) == ({"stop"}, 12)
    given = compare.parse(["--max_problems", "8", "--examples_per_update", "5"])
    assert compare._learner_of_others(given) == {"examples_per_update": 5}


def test_whose_part_it_is_is_tested_two_by_two_and_by_the_stop_of_another_run(tmp_path: Path) -> None:
    words = asked(tmp_path, "flow_itself", *team_arms.PARTS)
    of = {name: words[f"evaluations/{name}/held_out-greedy"] for name in ("flow_itself", *team_arms.PARTS)}
    assert all(value(each, "--mode") == "flow" for each in of.values())
    assert "--run" not in of["untrained_flow_itself"]
    trained = [each for name, each in of.items() if name != "untrained_flow_itself"]
    assert {value(each, "--run") for each in trained} == {str(tmp_path / "seed5/flow")}
    assert value(of["trained_answer_untrained_stop"], "--roles") == "[answer]"
    assert value(of["untrained_answer_trained_stop"], "--roles") == "[stop]"
    assert value(of["cross_play"], "--role_runs") == json.dumps({"stop": str(tmp_path / "seed5/other_flow")})
    # The other run differs by its seed alone.
    (seed, own), (other_seed, other) = (
        (value(each, "--seed"), [word for word in each if not word.endswith(("flow",))])
        for each in (words["flow"], words["other_flow"])
    )
    assert (seed, other_seed) == ("5", "505")
    assert [word for word in other if word != "505"] == [word for word in own if word != "5"]


def test_what_stop_learned_is_also_tested_by_its_likelier_answer_and_by_traces(tmp_path: Path) -> None:
    words = asked(tmp_path, *team_arms.STOP)
    own, base = (words[f"evaluations/{name}/held_out-sampled"] for name in team_arms.STOP[:2])
    for each in (own, base):
        assert float(value(each, "--explore.choice_temperature")) < 0.01
        assert value(each, "--run") == str(tmp_path / "seed5/flow")
    assert "--roles" not in own
    assert value(base, "--roles") == "[answer]"
    # The traces are of the same training.
    traces = words["traces/traces_with_untrained_stop"]
    assert [value(traces, flag) for flag in ("--mode", "--run", "--roles")] == [
        "flow",
        str(tmp_path / "seed5/flow"),
        "[answer]",
    ]
    assert [name for name in words if not name.startswith("evaluations/")] == [
        "flow",
        "traces/traces_with_untrained_stop",
        "sft/traces_with_untrained_stop",
    ]
