"""Does the top of a report say what its files give, no more and no less?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.core.types import Status
from flow_dpo.report import rates
from flow_dpo.report.compose import compose
from flow_dpo.report.document import Answers
from flow_dpo.report.run_answers import run_answers
from flow_dpo.report.run_data import ChoicePair, JudgedCandidate
from flow_dpo.report.sources import RunSource, read_source, read_sources
from flow_dpo.runs.settings import RunSettings
from flow_dpo.trackers.settings import TrackingSettings
from tests.support import report_sources
from tests.support.comparison_runs import comparison
from tests.support.record_examples import PREDICTION

RIGHT: list[Status] = ["correct", "wrong", "wrong", "wrong", "wrong"]
WRONG: list[Status] = ["wrong", "correct", "wrong", "wrong", "wrong"]
CLEAN = (
    "0 reasons in the files of 1 source: nothing interrupted, ungraded, cut off or skipped, and no measure that fell."
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 128 problems, whose second half is right, with nothing to distrust."""
    return report_sources.run(tmp_path_factory.mktemp("run") / "run", [WRONG] * 64 + [RIGHT] * 64, batch=32)


def run(folder: Path) -> RunSource:
    found = read_source(folder, "run")
    assert isinstance(found, RunSource)
    return found


def answers(*paths: Path) -> Answers:
    return compose(read_sources(list(paths)), command="flow-dpo report").answers


def test_a_clean_run_says_what_it_learned_and_that_nothing_was_found(folder: Path) -> None:
    found = answers(folder)
    gap = rates.change(rates.Rate(hits=0, of=32), rates.Rate(hits=32, of=32))
    assert gap.bounds is not None
    assert found.learned == (
        f"Accuracy rose by 100.0 points (95 %: +{100 * gap.bounds[0]:.1f} to +100.0): 0.0 % of the first quarter's 32 "
        "problems, 100.0 % of the last's 32.",
    )
    assert found.surely == (
        "First quarter 0.0 to 10.7 %, last quarter 89.3 to 100.0 % (95 %); each problem was tried, by sampling, before "
        "it was learned from.",
        "1 seed: results of other seeds are unknown.",
    )
    assert found.price == ("280 tokens learned, 640 verdicts, 4 updates; 9.0 s (6.0 s sampling, 2.0 s learning).",)
    assert found.distrust == (CLEAN,)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([RIGHT] * 32 + [WRONG] * 32, "Accuracy fell by 100.0 points"),
        (
            [RIGHT, WRONG] * 32,
            "No significant change of accuracy: +0.0 points (95 %: -23.1 to +23.1); 50.0 % of the first half",
        ),
        ([RIGHT, WRONG], "Accuracy is 50.0 % over 2 problems: too few to compare the first with the last."),
    ],
)
def test_the_verdict_follows_the_interval(tmp_path: Path, verdicts: list[list[Status]], expected: str) -> None:
    [learned] = answers(report_sources.run(tmp_path / "run", verdicts, batch=32)).learned
    assert learned.startswith(expected)


def _rows(**more: Any) -> Callable[[RunSource], None]:
    def change(source: RunSource) -> None:
        for row in source.rows:
            row.update({name.replace("__", "/"): value for name, value in more.items()})  # type: ignore[attr-defined]

    return change


def _facts(**more: Any) -> Callable[[RunSource], None]:
    return lambda source: source.facts.update(more)  # type: ignore[attr-defined]


def _ungraded(source: RunSource) -> None:
    source.counts.rewards[3] = None


def _cut(source: RunSource) -> None:
    source.counts.cut |= {0, 127}


def _wrong_step(source: RunSource) -> None:
    source.counts.wrong_step[127] = True


def _stop(*, pairs: bool = False, yes: bool = False, area: bool = False) -> Callable[[RunSource], None]:
    """Candidates of a Stop that is the same all the time; and what is wrong with it."""

    def change(source: RunSource) -> None:
        counts = source.counts
        counts.candidates[:] = [
            JudgedCandidate(index=index, role="stop", kind=kind, chose_yes=yes and index >= 64,
                            log_odds=1.0 if kind == "right" and not (area and index >= 64) else -0.01 * index)
            for index in range(128) for kind in ("right", "wrong")
        ]  # fmt: skip
        counts.choice_pairs[:] = [
            ChoicePair(index=index, role="stop", finished=True, prefers_yes=pairs or index % 2 == 0)
            for index in range(64)
        ]

    return change


DOUBTS = {
    "Interrupted, or still running: 128 of 200 problems.": _facts(num_problems=200),
    "7 rows of the data set were left out: they are not valid problems.": _facts(num_skipped_rows=7),
    "No update in 4 batches: nothing was learned.": _rows(learn__updates=0),
    "8 batches were dropped: their loss or gradient was not finite.": _rows(learn__skipped=2),
    "1 of 128 answers (0.8 %) could not be graded and count as not right; of the graded ones 50.4 % are "
    "right.": _ungraded,
    "2 of 128 answers (1.6 %) were cut off by a limit.": _cut,
    "Right answers with a wrong step in the last quarter: 1 of the 32 whose steps could be checked (3.1 %, 0.6 to "
    "15.7 %).": _wrong_step,
    "answer: chosen completions lost 1.5 nats against the reference while the margin grew to 0.8: the model unlearns "
    "both sides.": _rows(learn__answer__chosen_ratio=-1.5, learn__answer__margin=0.75),
    "answer: sampling and learning disagreed by up to 0.150 nats per token (mean over a batch); a run stops at "
    "0.2.": _rows(learn__answer__logprob_drift=0.15),
    "stop: 100 % of its last pairs prefer Yes, which pushes it to one word for everything.": _stop(pairs=True),
    "stop says Yes to more of the finished wrong answers: 0.0 % of 32 in the first quarter, 100.0 % of 32 in the last "
    "(+84.8 to +100.0 points).": _stop(yes=True),
    "stop separates right from wrong less well: area 1.00 (1.00 to 1.00) in the first quarter, 0.50 (0.36 to 0.64) in "
    "the last, on other candidates.": _stop(area=True),
}  # fmt: skip


@pytest.mark.parametrize("expected", list(DOUBTS))
def test_each_reason_for_distrust_is_found_alone(folder: Path, expected: str) -> None:
    source = run(folder)
    source.settings["learner"] = {"max_logprob_drift": 0.2}  # type: ignore[index]
    _stop()(source)
    assert run_answers(source).distrust == ()
    DOUBTS[expected](source)
    assert run_answers(source).distrust == (expected,)


def test_a_data_set_in_its_own_order_is_a_reason(folder: Path) -> None:
    source = run(folder)
    for name, shuffle_seed, found in (("seed", None, ()), ("gsm8k", 3, ()), ("gsm8k", None, (OWN_ORDER,))):
        source.settings["data"] = {"dataset_name": name, "shuffle_seed": shuffle_seed}  # type: ignore[index]
        assert run_answers(source).distrust == found


def test_reward_functions_are_no_verifier(folder: Path) -> None:
    source = run(folder)
    source.settings["grading"] = {"correct_from": 0.9}  # type: ignore[index]
    for at, row in enumerate(source.rows):
        row |= {"reward": at / 10, "rewards/brevity/mean": at / 10}  # type: ignore[operator]
    found = run_answers(source)
    assert found.learned[0].startswith(("The mean reward rose", "No significant change of the mean", "Mean reward: "))
    assert found.distrust == ("Not graded by the verifier alone: right means a reward of 0.9 or more by brevity.",)


OWN_ORDER = "Problems came in the data set's own order: the first and the last quarter can differ in difficulty."


def test_what_is_at_the_edge_is_no_reason(folder: Path) -> None:
    source = run(folder)
    source.settings["learner"] = {"max_logprob_drift": 0.2}  # type: ignore[index]
    _facts(num_problems=128, num_skipped_rows=0)(source)
    _rows(learn__answer__chosen_ratio=-0.9, learn__answer__margin=3.0, learn__answer__logprob_drift=0.1)(source)
    assert run_answers(source).distrust == ()


def test_a_run_before_its_first_batch(tmp_path: Path) -> None:
    found = answers(report_sources.run(tmp_path / "run", [], facts={"num_problems": 5}))
    assert found.distrust == ("Interrupted, or still running, before its first batch: 0 of 5 problems.",)
    assert found.learned == ()


def settings(seed: int, name: str) -> RunSettings:
    return RunSettings(seed=seed, output_dir=name, tracking=TrackingSettings(run_name=name))


def test_runs_that_differ_in_their_seed_alone_are_read_over_seeds(tmp_path: Path) -> None:
    made = [
        report_sources.run(tmp_path / str(seed), [WRONG] * 32 + [RIGHT] * (28 + seed) + [WRONG] * (4 - seed), batch=32,
                           config={"run": settings(seed, str(seed))})
        for seed in range(3)
    ]  # fmt: skip
    # Rises of 28, 29 and 30 of 32 problems; the half of a t-interval is 4.303 / sqrt(3) standard deviations of 1 / 32.
    expected = "Over 3 seeds accuracy rose by 90.6 points (+82.9 to +98.4, 95 % t-interval) from the first part to the "
    expected += "last: 0, 1, 2."
    assert answers(*made).learned[0] == expected
    # The same seed once more is no other seed.
    again = report_sources.run(tmp_path / "again", [WRONG] * 64, batch=32,
                               config={"run": settings(0, "again")})  # fmt: skip
    assert answers(*made, again).learned[0] == expected
    assert answers(*made).learned[1].startswith("0: Accuracy rose by 87.5 points")
    seeds = "3 seeds of one setting: an interval over seeds is about other seeds, each run's own about other problems."
    assert answers(*made).surely == (seeds,)
    other = report_sources.run(tmp_path / "other", [WRONG] * 32 + [RIGHT] * 32, batch=32, config={"note": "other"})
    assert answers(*made, other).learned[0] == expected
    assert answers(*made, other).surely == (
        seeds,
        "1 seed in 1 of 4 runs: results of other seeds are unknown.",
    )  # fmt: skip
    assert answers(made[0], other).surely[0].startswith("1 seed in 2 of 2 runs")


# ---- comparisons -----------------------------------------------------------------------------------------------------


def compared(
    tmp_path: Path, change: Callable[[dict[str, Any]], None] = lambda found: None, *, seeds: bool = True
) -> Answers:
    found = comparison(seeds=seeds)
    change(found)
    (tmp_path / "comparison.json").write_text(json.dumps(found))
    return answers(tmp_path / "comparison.json")


def test_a_clean_comparison(tmp_path: Path) -> None:
    found = compared(tmp_path)
    assert found.learned == (
        "Highest of 4 arms on held_out/greedy: trained_flow 88.6 % (85.6 to 91.6 % over seeds); the untrained model, "
        "zero_shot 58.1 % (55.1 to 61.1 % over seeds).",
        "On held_out/greedy, 1 of 3 arms are better than self_generated, 1 worse, 1 not significantly different.",
    )
    assert found.surely[0] == "3 seeds of training, 2,000 questions of held_out/greedy: 95 % intervals over both."
    assert found.price[0].startswith(
        "1,234,567 to 1,234,567 tokens sampled per arm and seed; the costliest, zero_shot: 40,321 ver"
    )
    assert found.distrust == (CLEAN,)
    one = compared(tmp_path, seeds=False)
    assert one.surely == (
        "1 seed: results of other seeds are unknown; intervals are over 2,000 questions only.",
    )  # fmt: skip


def test_what_is_not_told_apart_is_named_with_the_interval_that_decides(tmp_path: Path) -> None:
    told, alike = _gap(0.02, 0.01, seeds=0.01), _gap(0.002, 0.003, seeds=0.0)
    contrasts = [
        {"against": name, "differences": {"held_out/greedy": gap}} for name, gap in (("a", told), ("b", alike))
    ]
    found = compared(tmp_path, _arm(4, contrasts=contrasts)).learned
    # All seeds have the same difference, so that their interval has no width: that over questions holds zero.
    assert found[-1] == "Not significant: ground_truth against b +0.2 (-0.1 to +0.5 over questions)."


def test_differences_without_a_corrected_p_are_a_reason(tmp_path: Path) -> None:
    gap = {name: value for name, value in _gap(0.02, 0.01, seeds=0.01).items() if name != "p_holm"}
    [words] = compared(tmp_path, _contrasts(held_out__greedy=gap)).distrust
    assert words.startswith("1 of 5 significant differences have no p corrected for 7 comparisons: ")


def test_all_arms_that_are_highest_are_named(tmp_path: Path) -> None:
    def tie(found: dict[str, Any]) -> None:
        best = next(arm for arm in found["arms"] if arm["name"] == "trained_flow")
        found["arms"].append({**best, "name": "the same"})

    assert "trained_flow 88.6 % (85.6 to 91.6 % over seeds), the same 88.6 %" in compared(tmp_path, tie).learned[0]


def _arm(index: int, **more: Any) -> Callable[[dict[str, Any]], None]:
    return lambda found: found["arms"][index].update(more)


def _gap(mean: float, half: float, *, seeds: float, p: float = 0.001) -> dict[str, Any]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "seed_low": mean - seeds, "seed_high": mean + seeds,
            "p": p, "p_holm": p}  # fmt: skip


def _contrasts(**tests: Any) -> Callable[[dict[str, Any]], None]:
    return _arm(
        4, contrasts=[{"against": "trained_flow", "differences": {k.replace("__", "/"): v for k, v in tests.items()}}]
    )


COMPARED = {
    "1 arm could not be made: rpo (too few traces).": lambda found: found.update(failed={"rpo": "too few traces"}),
    "It was made by 2 versions of the code: 3 pieces by abc, 4 pieces by def.": lambda found: found.update(
        made_by=[{"num_pieces": 3, "commit": "abc"}, {"num_pieces": 4, "commit": "def"}]
    ),
    "Made with uncommitted changes: 3 pieces by abc-dirty.": lambda found: found.update(
        made_by=[{"num_pieces": 3, "commit": "abc-dirty"}]
    ),
    "12 of the 2,000 questions of held_out were in the training data of an arm.": lambda found: found["test_sets"][
        "held_out"
    ].update(num_learned=12),
    "1 of 7 differences are significant over questions but not over seeds: with other seeds they can change "
    "sign.": _contrasts(
        held_out__greedy=_gap(0.02, 0.01, seeds=0.03)
    ),
    "1 of 5 significant differences do not survive Holm's correction (p of 0.05 or more).": _contrasts(
        held_out__greedy=_gap(0.02, 0.01, seeds=0.01, p=0.2)
    ),
    "1 of 3 pairs of arms change their order between tests or decodings, over questions: ground_truth against "
    "trained_flow is +2.0 points on held_out/greedy, -2.0 on hard/greedy.": _contrasts(
        held_out__greedy=_gap(0.02, 0.01, seeds=0.01), hard__greedy=_gap(-0.02, 0.01, seeds=0.01)
    ),
    "Right answers with a wrong step in 1 of 5 arms, most in trained_flow: 5 of the 50 that could be checked "
    "(10.0 %).": _arm(
        3, step_quality={"answers": {"num_checked": 50, "num_invalid": 5}}
    ),
    "9 answers could not be graded and count as not right, most in zero_shot: 9.": _arm(
        0, accuracies={"held_out": {"greedy": {"mean": 0.5, "num_ungraded": 9}}}
    ),
}  # fmt: skip


@pytest.mark.parametrize("expected", list(COMPARED))
def test_each_reason_to_distrust_a_comparison_is_found_alone(tmp_path: Path, expected: str) -> None:
    assert compared(tmp_path, COMPARED[expected]).distrust == (expected,)


def test_the_contrasts_that_are_named_are_told_apart_by_every_interval(tmp_path: Path) -> None:
    told = _contrasts(held_out__greedy=_gap(0.02, 0.01, seeds=0.01))
    [*_, words] = compared(tmp_path, told).learned
    assert words == (
        "1 of 1 contrasts on held_out/greedy is significant: ground_truth against trained_flow "
        "+2.0 (+1.0 to +3.0 over seeds)."
    )
    [*_, words] = compared(tmp_path, _contrasts(held_out__greedy=_gap(0.02, 0.01, seeds=0.03))).learned
    assert words.startswith("0 of 1 contrasts on held_out/greedy are significant; the largest: ground_truth against ")


# ---- evaluations, traces ---------------------------------------------------------------------------------------------


def evaluated(path: Path, statuses: str, *, run: str | None = None, **more: Any) -> Path:
    """An evaluation with a problem for each letter: r right, w wrong."""
    made = report_sources.evaluation(path, run=run)
    num, right = len(statuses), statuses.count("r")
    summary = json.loads((made / "summary.json").read_text())
    summary |= {"num_problems": num, "num_draws": num, "accuracy": right / num, "steps_of_right_answers": None, **more}
    (made / "summary.json").write_text(json.dumps(summary))
    rows = [
        PREDICTION | {"id": f"q{at}", "verdict": {"status": "correct" if one == "r" else "wrong", "answer": "1"}}
        for at, one in enumerate(statuses)
    ]
    (made / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def test_trained_is_compared_with_untrained_on_the_same_problems(tmp_path: Path) -> None:
    trained = evaluated(tmp_path / "trained", "r" * 40, run="runs/x", overlap={"num_overlapping": 0})
    untrained = evaluated(tmp_path / "untrained", "r" * 20 + "w" * 20)
    found = answers(trained, untrained)
    assert found.learned[0].startswith(
        "trained: 100.0 % against 50.0 % of untrained (untrained flow): better by 50.0 points ("
    )
    assert found.distrust == (CLEAN.replace("1 source", "2 sources"),)
    # Other problems, or another decoding, are compared with nothing.
    for other in (
        evaluated(tmp_path / "few", "r" * 39),
        evaluated(tmp_path / "s", "r" * 40, decoding={"greedy": False}),
    ):
        assert answers(trained, other).learned[0].startswith("trained: 100.0 % (40.0 to 60.0 %) of 40 problems")
    alike = evaluated(tmp_path / "alike", "w" + "r" * 39)
    assert "no significant difference: +2.5 points (" in answers(trained, alike).learned[0]


EVALUATED: dict[str, dict[str, Any]] = {
    "Ungraded answers, which count as not right, in 1 of 1 evaluations; most in e: 2 of 4; of the graded ones "
    "50.0 % are right.": {"num_ungraded": 2, "accuracy_graded": 0.5},
    "Right answers with a wrong step in 1 of 1 evaluations; most in e: 3 of the 10 that could be checked (30.0 %, 10.8 "
    "to 60.3 %).":
        {"steps_of_right_answers": {"num_checked": 10, "num_invalid": 3, "invalid_rate": 0.3}},
    "e: 2 of its 4 test questions were trained on.": {"overlap": {"num_overlapping": 2, "excluded": False}},
    "1 of 1 evaluations are of trained models and did not check whether their questions were learned from "
    "(--trained_on RUN).": {"overlap": None},
}  # fmt: skip


@pytest.mark.parametrize("expected", list(EVALUATED))
def test_each_reason_to_distrust_an_evaluation_is_found_alone(tmp_path: Path, expected: str) -> None:
    more = {"overlap": {"num_overlapping": 0}, **EVALUATED[expected]}
    assert answers(evaluated(tmp_path / "e", "rrww", run="runs/x", **more)).distrust == (expected,)


def test_greedy_and_sampled_are_no_measure_of_each_other(folder: Path, tmp_path: Path) -> None:
    greedy = evaluated(tmp_path / "greedy", "rrww")
    assert answers(greedy).distrust == (CLEAN,)
    [words] = answers(folder, greedy).distrust
    assert words.startswith("1 of 1 evaluations decode greedily, while a run's accuracy over time is of sampled ")
    sampled = evaluated(tmp_path / "sampled", "rrww", decoding={"greedy": False})
    assert answers(folder, sampled).distrust == (CLEAN.replace("1 source", "2 sources"),)
    assert answers(greedy, sampled).distrust == (
        "1 of 2 evaluations decode greedily, while 1 sample: they cannot be compared.",
    )  # fmt: skip
