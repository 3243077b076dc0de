"""Can every figure of a comparison be made again from its verdicts alone?"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from flow_dpo.core.errors import DataError
from flow_dpo.core.types import Status
from flow_dpo.evaluate.compare import verdicts
from flow_dpo.evaluate.compare.arms import Arm, Outcome
from flow_dpo.evaluate.compare.summary import ComparisonContext, recompute, rewards_of, summarise
from flow_dpo.runs.files import append_jsonl
from tests.support.record_examples import PREDICTION
from tools.recompute import STUDIES, main, wrong_figures

TESTS = ("held_out/greedy", "held_out/sampled", "harder/greedy")
NAMES: dict[str, Status] = {"1": "correct", "0": "wrong", "?": "ungraded"}


def evaluation(folder: Path, *draws: str) -> Path:
    """An evaluation whose draws have these verdicts; of each question its draws stand together."""
    folder.mkdir(parents=True)
    rows = [
        PREDICTION | {"id": f"q{i}", "verdict": {"status": NAMES[one]}}
        for i, each in enumerate(zip(*draws, strict=True))
        for one in each
    ]
    append_jsonl(folder / "predictions.jsonl", rows)
    return folder


def folders(path: Path, arm: str, seeds: Sequence[str]) -> dict[str, list[Path]]:
    return {
        test: [
            evaluation(path / f"seed{seed}" / arm / test, *([text] if "greedy" in test else [text, text[::-1]]))
            for seed, text in enumerate(seeds)
        ]
        for test in TESTS
    }


@pytest.fixture
def evaluations(tmp_path: Path) -> dict[str, dict[str, list[Path]]]:
    return {
        "self_generated": folders(tmp_path, "self_generated", ["1100?0", "010001", "110000"]),
        "one": folders(tmp_path, "one", ["1110?1", "1101?1", "111001"]),
        "two": folders(tmp_path, "two", ["0111?1", "110111", "10100?"]),
    }


def test_what_is_packed_are_the_rewards_of_the_evaluations(
    evaluations: dict[str, dict[str, list[Path]]], tmp_path: Path
) -> None:
    found = verdicts.collect(evaluations)
    path = tmp_path / verdicts.FILE
    verdicts.write_verdicts(path, found)
    read = verdicts.read_verdicts(path)
    assert read == found
    assert read.arms["one"]["held_out/sampled"][0] == ("1110?1", "1?0111")
    expected = {
        arm: {test: [rewards_of(folder) for folder in each] for test, each in tests.items()}
        for arm, tests in evaluations.items()
    }
    assert read.rewards() == expected
    assert expected["one"]["held_out/sampled"][0]["q4"] == 0.5  # one draw right, the other ungraded
    first = path.read_bytes()
    verdicts.write_verdicts(path, found)
    assert path.read_bytes() == first


def test_other_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"questions of the other evaluations in .*b, found other ones"):
        verdicts.collect({
            "one": {"held_out/greedy": [evaluation(tmp_path / "a", "11")]},
            "two": {"held_out/greedy": [evaluation(tmp_path / "b", "111")]},
        })  # fmt: skip


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


def test_a_comparison_is_made_again_from_its_verdicts(
    evaluations: dict[str, dict[str, list[Path]]], tmp_path: Path
) -> None:
    def nothing(*_: object) -> Outcome:
        raise AssertionError

    arms = [
        Arm(name=name, kind="single", what="by hand", make=nothing, against=("two",) if name == "one" else ())
        for name in evaluations
    ]
    outcomes = {
        name: [Outcome(works=(), evaluations={test: each[seed] for test, each in tests.items()}) for seed in range(3)]
        for name, tests in evaluations.items()
    }
    context = ComparisonContext(seeds=[0, 1, 2], tests=TESTS, facts={})
    found = summarise(arms, outcomes, context, tmp_path)
    again = recompute(found, verdicts.collect(evaluations).rewards())
    assert json.dumps(again, sort_keys=True) == json.dumps(found, sort_keys=True)
    rows = {row["name"]: row for row in found["arms"]}
    # One family: of the three differences of a test each pair has one p.
    family = [
        rows["one"]["differences_to_self"],
        rows["two"]["differences_to_self"],
        rows["one"]["contrasts"][0]["differences"],
    ]
    ps = sorted((one["held_out/greedy"] for one in family), key=lambda each: each["seed_p"])
    assert ps[0]["p_holm"] == pytest.approx(min(1.0, 3 * ps[0]["seed_p"]))


# ---- what is published -----------------------------------------------------------------------------------------------

PUBLISHED = sorted(file.parent for file in STUDIES.glob(f"*/{verdicts.FILE}"))


def test_studies_publish_their_verdicts() -> None:
    assert "recipes" in {study.name for study in PUBLISHED}


@pytest.mark.parametrize("study", PUBLISHED, ids=lambda study: study.name)
def test_published_figures_come_out_again(study: Path) -> None:
    """Of the test that decides; all of them by `make recompute`."""
    num, wrong = wrong_figures(study, tests=["held_out/greedy"])
    assert num > 1
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
    verdicts.write_verdicts(tmp_path / verdicts.FILE, verdicts.Verdicts(questions=packed.questions, arms=few))
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "2 arms recomputed, 2 figures differ" in printed
    assert "flow_itself.accuracies.held_out/greedy.mean: " in printed
    assert "README.md: tables of other figures" in printed
