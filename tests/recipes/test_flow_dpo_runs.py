"""Does a run of attempts resume to the bit, and do its records, report and export say what was learned?"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest

from flow_dpo.cli import evaluate, export, generate, report, train
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.types import Request, Sampling
from flow_dpo.learner.learner import Learner
from flow_dpo.recipes.flow_dpo import judgement
from flow_dpo.recipes.flow_dpo.judgement import Evidence, Judgement, calibrate
from flow_dpo.report.compose import compose
from flow_dpo.report.html import render_page
from flow_dpo.report.run_data import count_run
from flow_dpo.report.sources import read_sources
from flow_dpo.runs.adapters import calibration, run_settings
from flow_dpo.runs.checkpoint import Checkpoints
from flow_dpo.runs.journal import digest
from flow_dpo.runs.records import PairRow, ScoredRow, read_metrics, read_rows
from flow_dpo.runs.tree_rows import NodeRow, TreeRow
from tests.support.once import Once
from tests.support.run_equality import assert_same_run

RECIPE = """
from dataclasses import fields

from flow_dpo.core.answer_stop import AnswerStop
from flow_dpo.core.explore import Siblings
from flow_dpo.core.recipe import Recipe
from flow_dpo.recipes.flow_dpo.attempts import Attempts, AttemptsPrompts
from flow_dpo.recipes.flow_dpo.credit import AttemptCredit, OutcomePairsAndVerdicts
from flow_dpo.recipes.flow_dpo.explore import AttemptSiblings
from flow_dpo.recipes.flow_dpo.objective import DpoAndVerdicts
from flow_dpo.recipes.scales import SEED_CHUNK_TOKENS, SEED_MAX_CHUNKS, SEED_PROMPTS, SEED_TOP_P

PROMPTS = AttemptsPrompts(
    **{one.name: getattr(SEED_PROMPTS, one.name) for one in fields(SEED_PROMPTS) if one.name != "reopen"}
)
MINE = Recipe(
    flow=Attempts(
        chunk_tokens=SEED_CHUNK_TOKENS, max_chunks=SEED_MAX_CHUNKS, max_attempts=3, threshold=0.5, prompts=PROMPTS
    ),
    explore=AttemptSiblings(top_p=SEED_TOP_P, branched_attempts=2),
    credit=AttemptCredit(verdict_weight=0.5),
    objective=DpoAndVerdicts(beta=0.7),
)
PAPERS = Recipe(flow=AnswerStop(), explore=Siblings(), credit=OutcomePairsAndVerdicts(), objective=DpoAndVerdicts())
"""
WORDS = ("--max_problems", "16", "--problems_per_batch", "8", "--examples_per_update", "12")


@pytest.fixture(scope="module", autouse=True)
def _few() -> Iterator[None]:
    """Runs this short are calibrated after their first batch: two attempts of either verdict are enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judgement, "_FEWEST", 2)
        yield


@pytest.fixture(scope="module")
def recipe(once: Once) -> str:
    name = "attempts_recipe.py"
    return f"{once('recipe', lambda folder: (folder / name).write_text(RECIPE)) / name}:MINE"


def go(recipe: str, folder: Path, *more: str) -> int:
    return train.train(["--recipe", recipe, *WORDS, "--output_dir", str(folder), *more])


@pytest.fixture(scope="module")
def whole(recipe: str, once: Once) -> Path:
    def make(folder: Path) -> None:
        assert go(recipe, folder / "run") == 0

    return once("attempts", make) / "run"


@pytest.fixture(scope="module")
def trees(whole: Path) -> list[TreeRow]:
    return read_rows(whole / "trees.jsonl", TreeRow)


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    whole: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C inside the second batch, between its updates: with pairs and words waiting in the pool."""
    step = Learner._step
    first, second = (int(row["learn/updates"]) for row in read_metrics(whole / "metrics.jsonl"))
    assert second > 1

    def interrupted(self: Learner, *words: object) -> object:
        if self.version == first + 1:
            raise KeyboardInterrupt
        return step(self, *words)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            go(recipe, tmp_path / "run")
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 1
    assert go(recipe, tmp_path / "run", "--resume") == 0
    assert_same_run(whole, tmp_path / "run")
    assert (whole / "scored.jsonl").read_bytes() == (tmp_path / "run" / "scored.jsonl").read_bytes()
    kept = [Checkpoints(folder).newest() for folder in (whole, tmp_path / "run")]
    assert kept[0] is not None
    assert kept[1] is not None
    assert kept[0][1]["progressive"] == kept[1][1]["progressive"]
    assert len(kept[0][1]["progressive"]["evidence"]) > 16


def test_a_misspelled_role_of_the_pairs_within_is_refused(recipe: str, tmp_path: Path) -> None:
    """It would be dropped in silence, and no role would learn by pairs."""
    words = ["--recipe", recipe.replace("MINE", "PAPERS"), *WORDS, "--output_dir", str(tmp_path / "run")]
    for flag, wrong, near in (("roles", "[anwser]", "answer"), ("tag_weights", "{finnished: 2}", "finished")):
        with pytest.raises(ConfigError, match=rf"in credit\.pairs\.{flag}, found .*did you mean {near}\?"):
            train.train([*words, f"--credit.pairs.{flag}", wrong])
    assert not (tmp_path / "run").exists()


def test_what_was_sampled_by_another_rule_is_not_taken_for_it() -> None:
    """A resumed batch is answered from what was kept: by all of the request and its sampling, the threshold too."""
    request, sampling = Request(role="stop", prompt_ids=(1, 2), max_tokens=3, choices=(4, 5)), Sampling(threshold=0.5)
    others = [
        replace(sampling, **{one.name: value})
        for one, value in zip(fields(sampling), (0.5, 0.9, True, 0.6, ("x",)), strict=True)
    ]
    requests = [
        replace(request, **{one.name: value})
        for one, value in zip(fields(request), ("answer", (1,), 4, (5, 4)), strict=True)
    ]
    keys = [digest(request, one, 7, ()) for one in (sampling, replace(sampling, threshold=None), *others)]
    keys += [digest(one, sampling, 7, ()) for one in requests]
    keys += [digest(request, sampling, 8, ()), digest(request, sampling, 7, (4,))]
    assert len(set(keys)) == len(keys) == 13
    assert digest(request, sampling, 7, ()) == keys[0]


def attempts_of(tree: TreeRow, rollout: int) -> dict[str, list[NodeRow]]:
    """The nodes from the root to a rollout's leaf, by the attempt that they belong to."""
    path: list[NodeRow] = []
    at: int | None = tree.rollouts[rollout].leaf
    while at is not None:
        path.insert(0, tree.nodes[at])
        at = tree.nodes[at].parent
    found: dict[str, list[NodeRow]] = {}
    for node in path:
        found.setdefault(node.tags[-1], []).append(node)
    return found


def judged(nodes: list[NodeRow]) -> NodeRow | None:
    return nodes[-1] if nodes[-1].role == "stop" else None


def text_ids(nodes: list[NodeRow]) -> tuple[int, ...]:
    """What an attempt wrote, without its end token."""
    ids = [token for node in nodes if node.role == "answer" for token in node.token_ids]
    return tuple(ids[:-1] if [n for n in nodes if n.role == "answer"][-1].finish_reason == "stop" else ids)


def judgements_of(run: Path) -> list[tuple[Judgement, float]]:
    """Judgement and threshold of each batch, as its row of metrics has them."""
    found: list[tuple[Judgement, float]] = []
    for row in read_metrics(run / "metrics.jsonl"):
        weights = {name: row[f"flow/judgement.{name}"] for name in ("bias", "stop", "likelihood")}
        found.append((Judgement(**weights), row["flow/threshold"]))
    return found


def mean_logprob(nodes: list[NodeRow]) -> float:
    values = [value for node in nodes if node.role == "answer" for value in node.logprobs]
    return math.fsum(values) / len(values)


def log_odds(stop: NodeRow) -> float:
    return stop.choice_logprobs[0] - stop.choice_logprobs[1]


def test_the_trunk_was_sampled_by_the_flows_own_rule(whole: Path, trees: list[TreeRow]) -> None:
    """Read off the records: who was asked when, what was accepted, and which attempt answered."""
    assert len(trees) == 16
    refusals = answers_before_the_last = 0
    rules = judgements_of(whole)
    assert rules[0] == (Judgement(), 0.5)
    assert rules[1][0] != Judgement()
    for at, tree in enumerate(trees):
        judgement, threshold = rules[at // 8]
        found = list(attempts_of(tree, 0).values())
        for index, nodes in enumerate(found):
            written = [node for node in nodes if node.role == "answer"]
            stop = judged(nodes)
            assert (written[-1].finish_reason == "stop") == (stop is not None)
            assert len(written) <= 8
            if stop is not None:
                assert stop.tags == ("finished", f"attempt {index + 1}")
                chance = judgement.chance(log_odds(stop), mean_logprob(nodes))
                assert (stop.choice == 0) == (chance > threshold) or math.isclose(chance, threshold, rel_tol=1e-4)
                assert (stop.choice == 0) <= (index == len(found) - 1)
                refusals += stop.choice == 1
        last = judged(found[-1])
        accepted = last is not None and last.choice == 0
        assert accepted or len(found) == 3
        # The best by P(right) answers; its verdict is that of the rollout in which it was accepted.
        worth = [
            -math.inf if (stop := judged(nodes)) is None else judgement.chance(log_odds(stop), mean_logprob(nodes))
            for nodes in found
        ]
        best = len(found) - 1 if accepted else worth.index(max(worth))
        answers_before_the_last += best < len(found) - 1
        assert tree.rollouts[0].ended == (judged(found[best]) is not None)
        if not accepted and judged(found[best]) is not None:
            alone = next(one for one in tree.rollouts[1:] if tree.nodes[one.leaf].parent == found[best][-1].parent)
            assert (alone.text, alone.verdict) == (tree.rollouts[0].text, tree.rollouts[0].verdict)
    assert refusals > 4
    assert answers_before_the_last > 0


def test_the_second_batch_is_judged_by_the_attempts_of_the_first(whole: Path, trees: list[TreeRow]) -> None:
    """From the records of the first batch, and its evidence as the checkpoint kept it."""
    loop = Checkpoints(whole).newest()
    assert loop is not None
    kept = [Evidence(**row) for row in loop[1]["progressive"]["evidence"]]
    expected: list[tuple[float, float]] = []
    num_first = 0
    for at, tree in enumerate(trees):
        for nodes in attempts_of(tree, 0).values():
            stop = judged(nodes)
            rewards = [
                rollout.verdict.reward
                for rollout in tree.rollouts
                if rollout.verdict is not None and stop is not None
                and tree.nodes[rollout.leaf].parent == stop.parent and tree.nodes[rollout.leaf].choice == 0
            ]  # fmt: skip
            if stop is not None and rewards and rewards[0] is not None:
                expected.append((log_odds(stop), mean_logprob(nodes)))
        num_first = len(expected) if at < 8 else num_first
    assert [(one.log_odds, one.mean_logprob) for one in kept] == [pytest.approx(one, abs=1e-5) for one in expected]
    first = calibrate(kept[:num_first], least_gain=0.02, recall=True)
    assert first == judgements_of(whole)[1]
    assert first != calibrate(kept, least_gain=0.02, recall=True)


def test_a_run_brings_its_calibration_along(whole: Path, recipe: str, tmp_path: Path) -> None:
    """As its last batch was sampled; a flag comes before it, and a run without such rows keeps its settings."""
    weights, threshold = judgements_of(whole)[-1]
    assert calibration(whole)["threshold"] == threshold != 0.5
    for command in (evaluate.parse_evaluate, generate.parse_generate):
        words = ["--run", str(whole), "--recipe", recipe]
        flow = command(words)["flow"]
        assert (flow.judgement, flow.threshold, flow.max_attempts) == (weights, threshold, 3)
        flow = command([*words, "--flow.threshold", "0.25", "--flow.judgement.stop", "3"])["flow"]
        assert (flow.judgement, flow.threshold) == (replace(weights, stop=3.0), 0.25)
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "run.json"):
        shutil.copy(whole / name, tmp_path / "run")
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    bare = [{name: value for name, value in row.items() if not name.startswith("flow/")} for row in rows]
    for content in ([], bare):
        (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        found = run_settings(tmp_path / "run")["flow"]
        assert (found["threshold"], found["judgement"]) == (0.5, {"bias": 0.0, "stop": 1.0, "likelihood": 0.0})
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert run_settings(tmp_path / "run")["flow"]["threshold"] == 0.5


def test_pairs_and_words_in_the_records_are_those_of_the_trees(whole: Path, trees: list[TreeRow]) -> None:
    pairs, words = set[tuple[str, int, int]](), dict[tuple[str, tuple[int, ...]], int]()
    own: dict[tuple[str, str], str] = {}
    for tree in trees:
        name = tree.problem.id
        for rollout in tree.rollouts:
            nodes = list(attempts_of(tree, rollout.id).values())[-1]
            stop = judged(nodes)
            if stop is not None and stop.choice == 0:
                assert rollout.verdict is not None
                words.setdefault((name, text_ids(nodes)), int(rollout.verdict.status != "correct"))
        for tag, nodes in attempts_of(tree, 0).items():
            own[name, tag] = "wrong" if judged(nodes) is None else (
                "correct" if words[name, text_ids(nodes)] == 0 else "wrong"
            )  # fmt: skip
        for node in (one for one in tree.nodes if one.rollout == 0 and one.role == "answer"):
            for other in (one for one in tree.nodes if one.parent == node.parent and one.rollout):
                ours, theirs = own[name, node.tags[0]], tree.rollouts[other.rollout].status
                if ours != theirs:
                    pairs.add((name, *((node.id, other.id) if ours == "correct" else (other.id, node.id))))
    found = read_rows(whole / "pairs.jsonl", PairRow)
    assert {(one.problem_id, one.node, one.rejected_node) for one in found} == pairs
    assert len(found) == len(pairs) > 10
    verdicts = [(one.chosen_verdict, one.rejected_verdict) for one in found]
    assert {(good and good.status, bad and bad.status) for good, bad in verdicts} == {("correct", "wrong")}
    scored = read_rows(whole / "scored.jsonl", ScoredRow)
    assert len(scored) == len(words) > 20
    by_name = {tree.problem.id: tree for tree in trees}
    for one in scored:
        tree = by_name[one.problem_id]
        nodes = list(attempts_of(tree, tree.nodes[one.node].rollout).values())[-1]
        no = words[one.problem_id, text_ids(nodes)]
        assert (one.completion, one.weight, one.role) == (("Yes", "No")[no], 0.5, "stop")
        assert one.verdict is not None
        assert (one.verdict.status == "correct") == (not no)
    rows = read_metrics(whole / "metrics.jsonl")
    assert sum(row["pairs/answer"] for row in rows) == len(pairs)
    assert sum(row["scored/stop"] for row in rows) == len(words)
    assert sum(row["learn/updates"] for row in rows) == (len(pairs) + len(words)) // 12
    assert {row["pairs/stop"] for row in rows} == {0}
    for row in rows:
        assert 0 <= row["learn/stop/verdict_accuracy"] <= 1
        assert row["learn/stop/verdict_loss"] > 0
        assert "learn/stop/margin" not in row


def test_the_report_knows_every_candidate_and_its_own_verdict(whole: Path, trees: list[TreeRow]) -> None:
    counts = count_run(whole, 16)
    stops = [node for tree in trees for node in tree.nodes if node.rollout == 0 and node.role == "stop"]
    ungraded = sum(
        one.status == "ungraded" for tree in trees for one in tree.rollouts if tree.nodes[one.leaf].role == "stop"
    )
    # Each refused candidate has its Yes beside it, so that none is left out for want of a verdict.
    assert counts.num_unjudged <= ungraded
    assert len(counts.candidates) + counts.num_unjudged == len(stops)
    assert {one.kind for one in counts.candidates} == {"right", "wrong"}
    assert sum(one.chose_yes for one in counts.candidates) == sum(node.choice == 0 for node in stops)
    assert counts.choice_pairs == []
    assert set(counts.num_examples) == {"answer", "stop"}
    page = render_page(compose(read_sources([whole]), command="flow-dpo report"))
    assert "What stop can separate" in page
    assert f"{len(counts.candidates)} candidates on the trunk have a verdict of their own" in page
    assert "Share of turns of all rollouts that gave an example" in page
    assert "scored turns" not in page
    assert "What its pairs teach" not in page, "Stop has none"


def test_the_commands_write_a_report_and_an_export(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    assert report.report([str(tmp_path / "run"), "--output_dir", str(tmp_path / "page")]) == 0
    assert (tmp_path / "page" / "report.html").exists()
    assert export.export(["--source", str(tmp_path / "run"), "--output_dir", str(tmp_path / "rows")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows" / "train.jsonl").read_text().splitlines()]
    assert len(rows) == len(read_rows(whole / "pairs.jsonl", PairRow))
    assert {row["role"] for row in rows} == {"answer"}
    assert all(row["chosen"] != row["rejected"] for row in rows)
