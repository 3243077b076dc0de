"""Can a recipe be written in one file outside the package, and is one that is not proper named?"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from flow_dpo.cli import train
from flow_dpo.cli.evaluate import evaluate as cli_evaluate
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.explore import Group
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Solution
from flow_dpo.recipes import presets
from flow_dpo.recipes.scales import CHAT, SEED
from flow_dpo.recipes.single import Single
from flow_dpo.runs.files import read_jsonl
from tests.support.tree_builders import completion, graded, problem, request

FILE = Path(__file__).parent.parent.parent / "examples" / "custom_recipe.py"
SOURCE = f"{FILE}:ShortestRight"


def write(folder: Path, text: str, name: str = "R") -> str:
    (folder / "mine.py").write_text(text)
    return f"{folder / 'mine.py'}:{name}"


def drawn() -> Tree:
    """Six solutions: right of 3, 2 and 2 tokens, wrong of 4 and 4, and one of 9 that could not be graded."""
    tree, end = Tree(problem=problem()), Solution(pieces=(), ended=True)
    for tokens in ((1, 2, 3), (4, 5), (6, 7), (8, 8, 8, 8), (9, 9, 9, 9), (5,) * 9):
        tree.add_rollout(None, [(request("answer", 5), completion(*tokens), ())], end)
    return graded(tree, "correct", "correct", "correct", "wrong", "wrong", "ungraded")


def test_the_shortest_right_one_is_preferred_to_the_longest_wrong_one() -> None:
    credit = presets.load_recipe(SOURCE, "seed").credit
    [pair] = credit([drawn()])
    # Of equally long ones the first: rollout 1 of the two tokens, rollout 3 of the four.
    assert (pair.chosen_node, pair.rejected_node) == (1, 3)
    assert (pair.chosen.token_ids, pair.rejected.token_ids) == ((4, 5), (8, 8, 8, 8))
    assert (pair.request, pair.margin, pair.problem_id) == (request("answer", 5), 1.0, "p1")
    assert replace(credit, min_difference=2)([drawn()]) == [pair]
    assert replace(credit, min_difference=3)([drawn()]) == []
    for statuses in (["correct"] * 6, ["wrong"] * 6, ["ungraded"] * 6):
        tree = drawn()
        assert credit([graded(tree, *statuses)]) == []  # type: ignore[arg-type]


def test_its_presets_are_the_files_own(caplog: pytest.LogCaptureFixture) -> None:
    made = presets.preset(SOURCE, "seed")
    assert f"running the code of {FILE} for its recipe ShortestRight" in caplog.text
    assert (made.lora, made.learner, made.problems_per_batch) == (SEED.lora, SEED.learner, SEED.problems_per_batch)
    assert made.recipe.explore == Group(num_rollouts=6, temperature=1.0, top_p=0.97)
    assert made.recipe.flow == presets.preset("grpo", "seed").recipe.flow
    assert presets.preset(SOURCE, "seed", flow=Single(max_tokens=7)).recipe.flow == Single(max_tokens=7)
    with pytest.raises(ConfigError, match=r"unknown preset 'sed'; there are chat, seed: did you mean 'seed'\?"):
        presets.preset(SOURCE, "sed")


def test_it_trains_resumes_and_is_evaluated_on_the_seed(tmp_path: Path) -> None:
    words = ["--recipe", SOURCE, "--problems_per_batch", "8", "--examples_per_update", "4", "--credit.min_difference"]
    run = str(tmp_path / "run")
    assert train.train([*words, "0", "--max_problems", "16", "--output_dir", run]) == 0
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    trees = read_jsonl(tmp_path / "run" / "trees.jsonl")
    assert [len(tree["rollouts"]) for tree in trees] == [6] * 16
    # Every pair again from the trees as they were written.
    expected = []
    for tree in trees:
        ends = {status: [] for status in ("correct", "wrong", "ungraded")}
        for play in tree["rollouts"]:
            node = tree["nodes"][play["leaf"]]
            ends[play["verdict"]["status"]].append((len(node["token_ids"]), node["id"]))
        if ends["correct"] and ends["wrong"]:
            shortest = min(ends["correct"])
            longest = max(ends["wrong"], key=lambda one: (one[0], -one[1]))
            if longest[0] >= shortest[0]:
                expected.append((tree["problem"]["id"], shortest[1], longest[1]))
    pairs = read_jsonl(tmp_path / "run" / "pairs.jsonl")
    assert [(pair["problem_id"], pair["node"], pair["rejected_node"]) for pair in pairs] == expected
    assert len(expected) >= 4
    assert rows[-1]["policy_version"] + rows[-1]["learn/updates"] > 0
    # The folder knows its recipe; its own person may go on, and a stranger's folder has no code run.
    more = ["--max_problems", "24", "--allow", "data,data.max_problems", "--resume", "--output_dir", run]
    assert train.train(more) == 0
    assert len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) == 3
    measured = ["--run", run, "--max_problems", "4", "--output_dir", str(tmp_path / "measured")]
    with pytest.raises(ConfigError, match=r"config.yaml asks for recipe = .*trust it, add --recipe"):
        cli_evaluate(measured)
    assert cli_evaluate([*measured, "--recipe", SOURCE]) == 0


def test_another_version_of_the_file_is_another_method(tmp_path: Path) -> None:
    source = write(tmp_path, FILE.read_text(), "ShortestRight")
    run = ["--max_problems", "4", "--problems_per_batch", "4", "--output_dir", str(tmp_path / "run")]
    assert train.train(["--recipe", source, *run]) == 0
    write(tmp_path, FILE.read_text().replace("min_difference: int = 1", "min_difference: int = 2"))
    with pytest.raises(ConfigError, match=r"(?s)recipe_file: [0-9a-f]{12} then, [0-9a-f]{12} now"):
        train.train(["--resume", *run])


BARE = """
from flow_dpo.core.credit import OutcomePairs
from flow_dpo.recipes.pair_objectives import Ipo
from flow_dpo.core.explore import Group
from flow_dpo.core.recipe import Recipe
from flow_dpo.recipes.single import Single
from flow_dpo.recipes.scales import CHAT

R = Recipe(flow=Single(), explore=Group(num_rollouts=2), credit=OutcomePairs(), objective=Ipo())
ONE = CHAT.preset(R)
"""


def test_a_bare_recipe_takes_the_scales_and_one_preset_every_name(tmp_path: Path) -> None:
    source = write(tmp_path, BARE)
    for name, scale in (("chat", CHAT), ("seed", SEED)):
        made = presets.preset(source, name)
        assert (made.lora, made.learner, made.problems_per_batch) == (
            scale.lora, scale.learner, scale.problems_per_batch,
        )  # fmt: skip
        assert (made.recipe.flow, made.recipe.explore) == (Single(), Group(num_rollouts=2))
    with pytest.raises(ConfigError, match="unknown preset 'paper'; there are chat, small, seed"):
        presets.preset(source, "paper")
    one = write(tmp_path, BARE, "ONE")
    for name in presets.PRESET_NAMES:
        assert presets.preset(one, name).learner == CHAT.learner


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "R = Recipe(",
            "S = Recipe(",
            r"expected R in .* --recipe, found no such name; it has \['CHAT', 'S', 'ONE'\]",
        ),
        (
            "num_rollouts=2",
            "num_rolouts=2",
            r"could not be run: TypeError: .*'num_rolouts'; did you mean num_rollouts\?",
        ),
        (
            "num_rollouts=2",
            "zzz=2",
            "unexpected keyword argument 'zzz'; it has greedy_trunk, temperature, .*num_rollouts",
        ),
        ("CHAT.preset(R)", "CHAT.preset(recipes=R)", "could not be run: TypeError"),
        ("import Ipo", "import Ipoo", "could not be run: ImportError"),
        ("R = Recipe(", "R = dict(", "expected a Preset under each name of .*, found 'flow'"),
        ("Single()", "Single", "expected a Flow as the flow of .*, preset chat, found <class"),
        ("OutcomePairs()", "OutcomePairs", "expected a frozen dataclass instance as the credit of .*, preset chat"),
        ("Ipo()", "Group()", "instance with accepts, needs_reference as the objective of"),
        ("explore=Group(num_rollouts=2)", "explore=OutcomePairs()", "instance with alone as the explore of"),
        ("ONE = CHAT.preset(R)", "R = 3", "expected a Recipe, a Preset or presets by name from .*, found 3"),
    ],
)
def test_what_is_no_proper_recipe_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in BARE
    text = BARE.replace(old, new)
    if old == "R = Recipe(":
        text = text.replace("CHAT.preset(R)", "3")
    with pytest.raises(ConfigError, match=message):
        presets.preset(write(tmp_path, text), "chat")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("explore: {num_rolouts: 4}", r"explore.num_rolouts in .*mine.yaml; did you mean explore.num_rollouts"),
        ("credit: {min_differense: 4}", r"min_differense in .*mine.yaml; did you mean credit.min_difference"),
        ("objective: {betta: 0.2}", r"betta in .*mine.yaml; did you mean objective.beta"),
        ("learner: {learning_rat: 0.2}", r"learning_rat in .*mine.yaml; did you mean learner.learning_rate"),
        ("explor: {num_rollouts: 4}", r"explor.* in .*mine.yaml; did you mean"),
    ],
)
def test_an_unknown_key_of_a_preset_in_yaml_is_refused_with_the_nearest(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "mine.yaml").write_text(text + "\n")
    with pytest.raises(ConfigError, match=message):
        train.parse_train("flow-dpo train", ["--recipe", SOURCE, "--config", str(tmp_path / "mine.yaml")], {})


def test_no_file_and_no_module() -> None:
    with pytest.raises(ConfigError, match=r"path/to/file.py:Name for --recipe, found no file 'nowhere.py'"):
        presets.preset("nowhere.py:R", "chat")
    with pytest.raises(ConfigError, match=r"no_such_module could not be run: ModuleNotFoundError"):
        presets.preset("no_such_module:R", "chat")


def test_an_importable_module_and_an_installed_plug_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "lab_of_recipes.py").write_text(BARE)
    monkeypatch.syspath_prepend(tmp_path)
    assert presets.preset("lab_of_recipes:R", "seed").learner == SEED.learner
    assert "running the code of lab_of_recipes for its recipe R" in caplog.text
    caplog.clear()
    point = EntryPoint(name="shortest", value="lab_of_recipes:R", group="flow_dpo.recipes")
    installed = EntryPoints([point])
    monkeypatch.setattr("flow_dpo.plugins.load.entry_points", lambda **words: installed.select(**words))
    assert presets.preset("shortest", "seed").recipe == presets.preset("lab_of_recipes:R", "seed").recipe
    with pytest.raises(ConfigError, match=r"unknown recipe 'shorter'; .* shortest: did you mean 'shortest'\?"):
        presets.preset("shorter", "seed")
    assert caplog.text.count("running the code") == 1, "what is installed was asked for by installing it"
