"""Can every figure of a comparison be made again from the results of its seeds, or its verdicts, alone?"""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.core.errors import DataError
from flow_dpo.core.types import Status
from flow_dpo.evaluate import statistics
from flow_dpo.evaluate.compare import seed_results, verdicts
from flow_dpo.evaluate.compare.arms import Arm, Outcome
from flow_dpo.evaluate.compare.interactions import interactions
from flow_dpo.evaluate.compare.seed_results import SeedResult
from flow_dpo.evaluate.compare.summary import ComparisonContext, _accuracies, recompute, summarise
from flow_dpo.evaluate.compare.verdicts import rewards_of_draws
from flow_dpo.runs.files import append_jsonl, write_whole
from tests.support.record_examples import PREDICTION
from tools import recompute as recompute_tool
from tools.recompute import main, published, wrong_figures
from tools.study_tables import BEGIN, END, insert_tables

TESTS = ("held_out/greedy", "held_out/sampled", "harder/greedy")
NAMES: dict[str, Status] = {"1": "correct", "0": "wrong", "?": "ungraded"}
SEEDS = {
    "self_generated": ["1100?0", "010001", "110000"],
    "flow_itself": ["1110?1", "1101?1", "111001"],
    "answer_adapter": ["0111?1", "110111", "10100?"],
}


def evaluation(folder: Path, *draws: str) -> Path:
    """An evaluation whose draws have these verdicts; of each question its draws stand together."""
    folder.mkdir(parents=True)
    rows = [
        PREDICTION | {"id": f"q{i}", "verdict": {"status": NAMES[one]}}
        for i, each in enumerate(zip(*draws, strict=True))
        for one in each
    ]
    append_jsonl(folder / "predictions.jsonl", rows)
    summary = {"dataset": "made/up", "num_problems": len(draws[0]), "accuracy": 0.5, "interval": [0.0, 1.0]}
    write_whole(folder / "summary.json", json.dumps({"schema": "evaluation/1", **summary}))
    return folder


def outcomes(path: Path, seed: int) -> dict[str, Outcome | str]:
    """What a seed's arms left behind: greedy tests of one draw, sampled ones of two."""
    return {
        arm: Outcome(works=(), evaluations={
            test: evaluation(
                path / f"seed{seed}" / arm / test, texts[seed], *([] if "greedy" in test else [texts[seed][::-1]])
            )
            for test in TESTS
        })
        for arm, texts in SEEDS.items()
    }  # fmt: skip


def collected(path: Path) -> list[SeedResult]:
    return [seed_results.collect(path, seed, outcomes(path, seed), TESTS[0]) for seed in range(3)]


def nothing(*_: object) -> Outcome:
    raise AssertionError


ARMS = [
    Arm(name=name, kind="single", what="by hand", make=nothing, against=("answer_adapter",) if "flow" in name else ())
    for name in SEEDS
]


def test_what_is_packed_are_the_rewards_of_the_evaluations(tmp_path: Path) -> None:
    found = collected(tmp_path)[0]
    seed_results.write_seed(tmp_path, found)
    path = seed_results.path_of(tmp_path, 0)
    assert seed_results.read_seeds(tmp_path) == [seed_results.read_seed(path)] == [found]
    assert found.arms["flow_itself"].verdicts["held_out/sampled"] == ("1110?1", "1?0111")
    for arm in SEEDS:
        for test in TESTS:
            assert found.rewards(arm, test) == seed_results.rewards_of(tmp_path / "seed0" / arm / test)
    assert found.rewards("flow_itself", "held_out/sampled")["q4"] == 0.5  # one draw right, the other ungraded
    first = path.read_bytes()
    seed_results.write_seed(tmp_path, found)
    assert path.read_bytes() == first


def test_other_questions_are_refused(tmp_path: Path) -> None:
    questions: dict[str, tuple[str, ...]] = {}
    verdicts.drawn_verdicts(evaluation(tmp_path / "a", "11"), questions, "held_out")
    with pytest.raises(DataError, match=r"questions of the other evaluations in .*b, found other ones"):
        verdicts.drawn_verdicts(evaluation(tmp_path / "b", "111"), questions, "held_out")


@pytest.mark.parametrize("draw", ["11", "1112", "1 1"])
def test_a_draw_has_a_character_for_each_question(draw: str) -> None:
    found = verdicts.Verdicts(questions={"held_out": ("a", "b", "c")}, arms={"one": {"held_out/greedy": ((draw,),)}})
    with pytest.raises(DataError, match=r"expected 3 of 1, 0 and \? in each draw of one on held_out/greedy"):
        found.rewards()


@pytest.mark.parametrize("content", [None, "{", '{"questions": 3, "arms": {}}'])
def test_what_is_none_is_refused(content: str | None, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no gzip" if content is None else gzip.compress(content.encode()))
    with pytest.raises(DataError, match="file"):
        verdicts.read_verdicts(tmp_path / "file")


def test_what_is_no_result_of_a_seed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(gzip.compress(b'{"schema": "seed/1", "seed": 3}'))
    with pytest.raises(DataError, match="without questions, arms"):
        seed_results.read_seed(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="expected the results of a seed, found"):
        seed_results.read_seed(tmp_path / "file")


def test_a_comparison_is_made_again_from_its_verdicts(tmp_path: Path) -> None:
    seeds = collected(tmp_path)
    found = summarise(ARMS, seeds, ComparisonContext(tests=TESTS, facts={}))
    rewards = {arm: {test: [seed.rewards(arm, test) for seed in seeds] for test in TESTS} for arm in SEEDS}
    drawn = {arm: {test: [seed.arms[arm].verdicts[test] for seed in seeds] for test in TESTS} for arm in SEEDS}
    assert json.dumps(recompute(found, rewards, drawn), sort_keys=True) == json.dumps(found, sort_keys=True)
    rows = {row["name"]: row for row in found["arms"]}
    # One family: of the three differences of a test each pair has one p.
    family = [
        rows["flow_itself"]["differences_to_self"],
        rows["answer_adapter"]["differences_to_self"],
        rows["flow_itself"]["contrasts"][0]["differences"],
    ]
    ps = sorted((one["held_out/greedy"] for one in family), key=lambda each: each["seed_p"])
    assert ps[0]["p_holm"] == pytest.approx(min(1.0, 3 * ps[0]["seed_p"]))


@pytest.mark.parametrize(
    "declared",
    [
        [("flow_itself", "answer_adapter"), ("self_generated", "flow_itself")],
        [("flow_itself", "answer_adapter"), ("self_generated", "flow_itself"), ("answer_adapter", "flow_itself")],
    ],
)
def test_a_pair_is_in_the_family_once_whichever_arm_comes_first(
    declared: list[tuple[str, str]], tmp_path: Path
) -> None:
    """Of three arms there are three pairs on a test; the baseline may name what it is against, as others do."""
    seeds = collected(tmp_path)
    arms = [replace(arm, against=tuple(other for one, other in declared if one == arm.name)) for arm in ARMS]
    rows = {row["name"]: row for row in summarise(arms, seeds, ComparisonContext(tests=TESTS, facts={}))["arms"]}
    to_self = {name: rows[name]["differences_to_self"]["held_out/greedy"] for name in ("flow_itself", "answer_adapter")}
    contrasts = {
        (name, one["against"]): one["differences"]["held_out/greedy"]
        for name, row in rows.items()
        for one in row["contrasts"]
    }
    assert list(contrasts) == sorted(declared, key=lambda pair: list(SEEDS).index(pair[0]))
    three = {**to_self, "contrast": contrasts["flow_itself", "answer_adapter"]}
    expected = statistics.holm({name: one["seed_p"] for name, one in three.items()})
    assert {name: one["p_holm"] for name, one in three.items()} == pytest.approx(expected)
    for one, other in declared:
        way = contrasts[one, other]
        back = to_self[other] if one == "self_generated" else contrasts["flow_itself", "answer_adapter"]
        assert way["p_holm"] == back["p_holm"]
        assert way["mean"] == (back["mean"] if way is back else -back["mean"])


def test_an_answer_without_a_verdict_is_counted_among_graded_draws() -> None:
    drawn = {"held_out/sampled": [("1?0", "?00"), ("111", "11?")]}
    rewards = {test: [rewards_of_draws("abc", draws, "an arm") for draws in seeds] for test, seeds in drawn.items()}
    found = _accuracies(rewards, drawn)["held_out"]["sampled"]
    assert found["num_ungraded"] == 3
    assert found["mean"] == pytest.approx((1 / 6 + 5 / 6) / 2)
    assert found["mean_graded"] == pytest.approx((1 / 4 + 5 / 5) / 2)


def test_two_changes_are_compared_with_their_sum() -> None:
    """Of four questions: neither 1 right, each alone 3, both 4: two times +2 would be 5, so -1 of 4 questions."""
    rights = {"self_generated": "1000", "self_on_trained_problems": "1110", "trained_on_self_problems": "1101",
              "trained_flow": "1111"}  # fmt: skip
    seed = {arm: {f"q{i}": float(one) for i, one in enumerate(text)} for arm, text in rights.items()}
    rewards = {arm: {"held_out/greedy": [each, each]} for arm, each in seed.items()}
    [found] = interactions(rewards, ["held_out/greedy"])
    assert found["both"] == "trained_flow"
    gap = found["differences"]["held_out/greedy"]
    assert (gap["mean"], gap["per_seed"]) == (-0.25, [-0.25, -0.25])
    assert interactions({name: each for name, each in rewards.items() if name != "trained_flow"}, ["x"]) == []


def test_a_study_is_made_again_from_the_results_of_its_seeds(tmp_path: Path) -> None:
    """Also on a processor that rounds otherwise; and what was changed is named."""
    seeds = collected(tmp_path)
    for each in seeds:
        seed_results.write_seed(tmp_path, each)
    arms = [recompute_tool.EVERY[name] for name in SEEDS]
    facts: dict[str, Any] = {"settings": {"compare": {"tokens": 0}}}
    found = summarise(arms, seeds, ComparisonContext(tests=TESTS, facts=facts))
    difference = found["arms"][1]["differences_to_self"]["held_out/greedy"]
    difference["seed_p"] *= 1 + 1e-13

    def write() -> None:
        (tmp_path / "comparison.json").write_text(json.dumps(found))
        (tmp_path / "README.md").write_text(insert_tables(f"{BEGIN}\n{END}", tmp_path))

    write()
    assert wrong_figures(tmp_path) == (3, [])
    assert wrong_figures(tmp_path, tests=TESTS[:1]) == (3, [])
    seed_results.write_seed(tmp_path, replace(seeds[0], seed=7))
    assert wrong_figures(tmp_path) == (3, []), "a seed that the comparison does not name is left out"
    difference["seed_p"] *= 1.01
    found["arms"][0]["costs"]["seconds"] = 7.0
    write()
    wrong = wrong_figures(tmp_path)[1]
    assert [line.partition(":")[0] for line in wrong if "costs" in line] == ["arms.0.costs.seconds"]
    assert "arms.1.differences_to_self.held_out/greedy.seed_p" in {line.partition(":")[0] for line in wrong}
    assert any(
        line.startswith("flow_itself.differences_to_self") for line in wrong_figures(tmp_path, tests=TESTS[:1])[1]
    )
    assert main([str(tmp_path)]) == 1
    assert main([str(tmp_path), "--write"]) == 0
    assert wrong_figures(tmp_path) == (3, [])
    assert json.loads((tmp_path / "comparison.json").read_text())["settings"] == facts["settings"]


def test_a_seed_may_come_from_elsewhere(tmp_path: Path) -> None:
    """Results alone are enough: folders may be gone."""
    seeds = [replace(one, settings={"compare": {"tokens": 0}}) for one in collected(tmp_path / "there")]
    for each in seeds:
        seed_results.write_seed(tmp_path, each)
    read = seed_results.read_seeds(tmp_path)
    context = ComparisonContext(tests=TESTS, facts={})
    assert summarise(ARMS, read, context) == summarise(ARMS, seeds, context)
    assert summarise(ARMS, read[1:], context)["seeds"] == [1, 2]


# ---- what is published -----------------------------------------------------------------------------------------------

PUBLISHED = published()


def test_studies_publish_their_verdicts() -> None:
    assert "recipes" in {study.name for study in PUBLISHED}


@pytest.mark.parametrize("study", PUBLISHED, ids=lambda study: study.name)
def test_published_figures_come_out_again(study: Path) -> None:
    num, wrong = wrong_figures(study)
    assert num > 0
    assert wrong == []


def test_a_wrong_figure_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [study] = [study for study in PUBLISHED if study.name == "recipes"]
    found = json.loads((study / "comparison.json").read_text())
    # Two arms and one test, so that little is computed.
    found["arms"] = [row | {"contrasts": []} for row in found["arms"] if row["name"] in ("zero_shot", "flow_itself")]
    found["arms"][1]["accuracies"]["held_out"]["greedy"]["mean"] += 0.001
    for row in found["arms"]:
        row["accuracies"] = {"held_out": {"greedy": row["accuracies"]["held_out"]["greedy"]}}
    (tmp_path / "comparison.json").write_text(json.dumps(found))
    (tmp_path / "README.md").write_text((study / "README.md").read_text())
    packed = verdicts.read_verdicts(study / verdicts.FILE)
    few = {name: {"held_out/greedy": packed.arms[name]["held_out/greedy"]} for name in ("zero_shot", "flow_itself")}
    content = {"schema": "verdicts/1", "questions": packed.questions, "arms": few}
    (tmp_path / verdicts.FILE).write_bytes(gzip.compress(json.dumps(content).encode()))
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "2 arms recomputed, 2 figures differ" in printed
    assert "flow_itself.accuracies.held_out/greedy.mean: " in printed
    assert "README.md: other tables" in printed
