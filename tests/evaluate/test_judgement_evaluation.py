"""Is a flow's judgement measured as it judges: on draws, and on a fixed set with log-probabilities computed anew?"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flow_dpo.cli.evaluate import evaluate as cli_evaluate
from flow_dpo.cli.report import report
from flow_dpo.core.answer_stop import AnswerStop
from flow_dpo.data.problems import load_problems
from flow_dpo.evaluate.evaluate import EvaluationSettings, evaluate, own_judgement, predictions, write_predictions
from flow_dpo.evaluate.run import evaluate_flow
from flow_dpo.recipes.flow_dpo.attempts import Attempts
from flow_dpo.recipes.flow_dpo.judgement import Judgement
from flow_dpo.runs.adapters import one_attempt
from flow_dpo.runs.records import Prediction, read_rows
from flow_dpo.runs.runtime import Runtime, open_runtime

JUDGEMENT = Judgement(bias=0.5, stop=0.8, likelihood=6.0)


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    """The embedded model, with adapters that are not those of the base."""
    with open_runtime("seed") as opened:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for role in opened.policy.adapters:
                for weight in opened.policy.weights(role):
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.06)
                opened.policy.publish(role)
        yield opened


def flow_of(runtime: Runtime) -> Attempts:
    assert runtime.recipe is not None
    assert isinstance(runtime.recipe.flow, Attempts)
    return replace(runtime.recipe.flow, judgement=JUDGEMENT, threshold=0.4)


@pytest.fixture(scope="module")
def drawn(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Prediction], dict[str, Any]]:
    """Four attempts at each of ten problems, kept as a file."""
    assert runtime.recipe is not None
    flow, folder = one_attempt(flow_of(runtime)), tmp_path_factory.mktemp("drawn") / "kept"
    trees, result = evaluate(
        flow,
        runtime.recipe.explore,
        list(load_problems("seed", split="test", max_problems=10)),
        runtime.workers,
        runtime.renderer,
        runtime.backends.grader,
        {},
        EvaluationSettings(draws=4),
    )
    rows = predictions(trees, draws=True)
    write_predictions(folder, rows, result | {"tokenizer": runtime.renderer.fingerprint(), "model": "seed"})
    assert read_rows(folder / "predictions.jsonl", Prediction) == rows
    return folder, rows, result


def chance(row: Prediction) -> float:
    """P(right) from what a row of predictions.jsonl holds."""
    assert row.yes is not None
    assert row.mean_logprob is not None
    return 1 / (1 + math.exp(-(0.5 + 0.8 * (math.log(row.yes) - math.log1p(-row.yes)) + 6.0 * row.mean_logprob)))


def right(row: Prediction) -> bool:
    return row.verdict is not None and row.verdict.status == "correct"


def test_draws_are_voted_on_by_p_right_too(drawn: tuple[Path, list[Prediction], dict[str, Any]]) -> None:
    _, rows, result = drawn
    assert all(row.mean_logprob is not None and row.mean_logprob < 0 for row in rows)
    by_problem: dict[str, list[Prediction]] = defaultdict(list)
    for row in rows:
        by_problem[row.id].append(row)
    best, tally = 0.0, 0.0
    for mine in by_problem.values():
        voters = [row for row in mine if row.yes is not None and row.verdict is not None and row.verdict.answer]
        voters = voters or mine
        if voters[0].yes is None:
            continue
        best += right(max(voters, key=chance))
        sums: dict[str, float] = defaultdict(float)
        for row in voters:
            assert row.verdict is not None
            sums[str(row.verdict.answer)] += chance(row)
        winner = max(sums, key=lambda answer: sums[answer])
        tally += any(right(row) for row in voters if row.verdict is not None and row.verdict.answer == winner)
    four = result["votes"]["by_k"]["4"]
    assert four["best_by_right"]["accuracy"] == pytest.approx(best / 10)
    assert four["weighted_by_right"]["accuracy"] == pytest.approx(tally / 10)
    assert four["best_by_right"]["interval"][0] < best / 10 < four["best_by_right"]["interval"][1] or best in (0, 10)
    # A threshold of P(right), at which all that Stop saw are accepted, takes the first of them.
    curve = {(row["max_attempts"], row["threshold"]): row for row in result["votes"]["right_curve"]}
    least = min(chance(row) for row in rows if row.yes is not None)
    assert all(
        row["threshold"] > least or row["attempts"] == curve[k, 0.0]["attempts"] for (k, _), row in curve.items()
    )
    assert curve[4, 1.0]["attempts"] == 4


def test_a_fixed_set_is_judged_by_the_log_probabilities_of_this_answer(
    runtime: Runtime, drawn: tuple[Path, list[Prediction], dict[str, Any]]
) -> None:
    """Of the same adapters they are those recorded at sampling, chunk by chunk; nothing is sampled for them."""
    folder, rows, _ = drawn
    found = evaluate_flow(runtime, flow=flow_of(runtime), candidates=str(folder))["candidates"]
    judgement = found["judgement"]
    assert judgement["weights"] == {"bias": 0.5, "stop": 0.8, "likelihood": 6.0}
    ended = [row for row in rows if row.ended and row.verdict is not None and row.verdict.reward is not None]
    chances = {kind: [chance(row) for row in ended if right(row) == kind] for kind in (True, False)}
    assert min(map(len, chances.values())) > 2
    pairs = [(a > b) + (a == b) / 2 for a in chances[True] for b in chances[False]]
    # The recorded values are those of the engine, to float32: the area is of ranks, which may tie but for that.
    assert judgement["right_over_wrong"]["area"] == pytest.approx(sum(pairs) / len(pairs), abs=2e-2)
    low, high = judgement["right_over_wrong"]["interval"]
    assert low < judgement["right_over_wrong"]["area"] < high
    for kind, name in ((True, "right"), (False, "wrong")):
        mean = sum(chances[kind]) / len(chances[kind])
        assert judgement["mean_right"][name] == pytest.approx(mean, abs=1e-4)
    errors = [(chance(row) - right(row)) ** 2 for row in ended]
    assert judgement["brier"] == pytest.approx(sum(errors) / len(errors), abs=1e-4)
    assert judgement["brier_of_share"] == pytest.approx(found["brier_of_share"])
    assert sum(one["num"] for one in judgement["bins"]) == len(ended)
    # Stop alone is measured as it is without a judgement.
    plain = evaluate_flow(runtime, flow=replace(flow_of(runtime), judgement=Judgement()), candidates=str(folder))
    assert plain["candidates"] == {name: value for name, value in found.items() if name != "judgement"}


def test_log_probabilities_are_those_of_sampling(
    runtime: Runtime, drawn: tuple[Path, list[Prediction], dict[str, Any]]
) -> None:
    from flow_dpo.evaluate import run
    from flow_dpo.evaluate.candidates import read

    folder, rows, _ = drawn
    means = run.answer_logprobs(read(str(folder)), one_attempt(flow_of(runtime)), runtime)
    ended = [row for row in rows if row.ended]
    assert means == {f"{row.id}, draw {row.draw}": pytest.approx(row.mean_logprob, abs=2e-5) for row in ended}
    assert len({round(value, 3) for value in means.values()}) > 5


def test_a_flow_without_a_judgement_of_its_own_has_none() -> None:
    assert own_judgement(one_attempt(AnswerStop())) is None
    assert own_judgement(Attempts()) is None
    assert own_judgement(Attempts(judgement=JUDGEMENT)) == JUDGEMENT


def test_the_commands_and_the_report_show_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--flow.judgement.likelihood", "6", "--flow.judgement.stop", "0.8"]
    drawn, judged, plain = (tmp_path / name for name in ("drawn", "judged", "plain"))
    assert cli_evaluate(["--draws", "2", "--max_problems", "6", "--output_dir", str(drawn), *flags]) == 0
    assert "best by P(right)" in capsys.readouterr().out
    assert cli_evaluate(["--candidates", str(drawn), "--output_dir", str(judged), *flags]) == 0
    assert "The flow's judgement: right over wrong" in capsys.readouterr().out
    before, after = (read_rows(folder / "predictions.jsonl", Prediction) for folder in (drawn, judged))
    for one, other in zip(before, after, strict=True):
        assert one.mean_logprob == pytest.approx(other.mean_logprob, abs=2e-5)
    (plain / "x").mkdir(parents=True)
    summary = json.loads((drawn / "summary.json").read_text())
    del summary["votes"]["right_curve"]
    for at_k in summary["votes"]["by_k"].values():
        del at_k["best_by_right"], at_k["weighted_by_right"]
    (plain / "summary.json").write_text(json.dumps(summary))
    (plain / "predictions.jsonl").write_bytes((drawn / "predictions.jsonl").read_bytes())
    folders = [str(drawn), str(judged), str(plain)]
    assert report([*folders, "--output_dir", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "report.html").read_text()
    for text in ("best by P(right)", "Stop alone", "the flow&#39;s judgement", "P(right), the flow&#39;s own rule,"):
        assert text in page or text.replace("&#39;", "'") in page, text
    assert report([str(plain), "--output_dir", str(tmp_path / "alone")]) == 0
    assert "P(right)" not in (tmp_path / "alone" / "report.html").read_text()
