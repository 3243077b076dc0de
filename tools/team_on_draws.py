"""A flow of attempts against its members, computed from the draws of one evaluation, paired over problems.

    flow-dpo evaluate --run RUN --draws 4 --output_dir runs/votes
    python -m tools.team_on_draws runs/votes --threshold 0.5 --untrained runs/untrained-votes

The flow accepts the first attempt whose P(right) exceeds the threshold, out of the attempts that were drawn; if none
does, the best one answers. Its accuracy is the exact mean over all orders of a problem's draws. It is compared
with one attempt, and with the plain majority at the same sampled tokens, interpolated in tokens between numbers of
attempts; the interval is a paired bootstrap over problems. `--untrained` adds the majority of another evaluation's
draws, at the same tokens, on the problems that both have.
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path

from flow_dpo.core.types import Verdict
from flow_dpo.evaluate.headers import EvaluationSummary
from flow_dpo.evaluate.pass_at_k import vote
from flow_dpo.evaluate.statistics import bootstrap
from flow_dpo.evaluate.votes import Attempted, accepting
from flow_dpo.recipes.flow_dpo.judgement import Judgement
from flow_dpo.runs.headers import read_header
from flow_dpo.runs.records import Prediction, read_rows

Drawn = dict[str, list[Attempted]]


def attempts(folder: Path, *, likelihood: bool = False) -> Drawn:
    """The draws of each problem, with P(right) by the judgement that the evaluation recorded; with `likelihood`,
    scored by their mean log-probability alone."""
    header = read_header(folder / "summary.json", EvaluationSummary)
    weights = header["played"]["flow"]["judgement"]
    judgement, found = Judgement(**weights), dict[str, list[Attempted]]()
    for row in read_rows(folder / "predictions.jsonl", Prediction):
        right = None
        if row.yes is not None and row.mean_logprob is not None:
            yes = min(max(row.yes, 1e-15), 1 - 1e-15)
            right = row.mean_logprob if likelihood else judgement.chance(math.log(yes / (1 - yes)), row.mean_logprob)
        verdict = row.verdict or Verdict(status="ungraded")
        one = Attempted(verdict=verdict, yes=right, tokens=row.tokens or 0)
        found.setdefault(row.id, []).append(one)
    return found


def majority(drawn: list[Attempted], k: int) -> float:
    """The accuracy of the majority of k draws, averaged over all choices of k."""
    groups = list(itertools.combinations(drawn, k))
    return sum(vote([one.verdict for one in group if one.yes is not None]) for group in groups) / len(groups)


def majority_at(drawn: Drawn, tokens: float) -> dict[str, float]:
    """Each problem's majority accuracy, interpolated at this mean number of tokens per problem."""
    each = sum(one.tokens for ones in drawn.values() for one in ones) / sum(map(len, drawn.values()))
    most = min(map(len, drawn.values()))
    attempts_there = min(max(tokens / each, 1.0), float(most))
    low = min(int(attempts_there), most - 1) if most > 1 else 1
    part = attempts_there - low
    return {id: (1 - part) * majority(d, low) + part * majority(d, min(low + 1, most)) for id, d in drawn.items()}


def compare(name: str, flow: dict[str, float], other: dict[str, float]) -> str:
    """One line: both means, and the difference with its interval over the problems that both have."""
    gaps = [flow[id] - other[id] for id in flow if id in other]
    mine, theirs = (sum(side[id] for id in flow if id in other) / len(gaps) for side in (flow, other))
    low, high = bootstrap(gaps)
    points = f"{100 * sum(gaps) / len(gaps):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{name:34} {100 * mine:5.1f} %  against {100 * theirs:5.1f} %   {points}   {len(gaps)} problems"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("draws", type=Path)
    parser.add_argument("--threshold", type=float, required=True)
    parser.add_argument("--untrained", type=Path)
    settings = parser.parse_args()
    drawn = attempts(settings.draws)
    rule = {id: accepting(d, len(d), settings.threshold) for id, d in drawn.items()}
    flow = {id: one.reward for id, one in rule.items()}
    tokens = sum(one.tokens for one in rule.values()) / len(rule)
    print(f"the flow samples {tokens:.0f} tokens and {sum(r.attempts for r in rule.values()) / len(rule):.2f} attempts")
    print(compare("its own Answer, one attempt", flow, {id: majority(d, 1) for id, d in drawn.items()}))
    print(compare("its Answer's majority, same tokens", flow, majority_at(drawn, tokens)))
    print(compare("oracle of all attempts", flow, {id: max(one.reward for one in d) for id, d in drawn.items()}))
    for name, scored in (("P(right)", drawn), ("likelihood alone", attempts(settings.draws, likelihood=True))):
        best = {id: accepting(d, len(d), 1.0).reward for id, d in scored.items()}
        print(compare(f"best of all by {name}", flow, best))
    if settings.untrained:
        untrained = attempts(settings.untrained)
        print(compare("untrained, one attempt", flow, {id: majority(d, 1) for id, d in untrained.items()}))
        print(compare("untrained majority, same tokens", flow, majority_at(untrained, tokens)))


if __name__ == "__main__":
    main()
