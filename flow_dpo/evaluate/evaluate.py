"""Evaluation of a flow, or of one of its roles alone, on held-out problems.

For each problem a rollout of the flow (or of the Answer role in one pass) is sampled, once greedily or several times at
a temperature, without alternatives, and graded. With `draws`, Stop judges each of several attempts once, whatever the
flow would do after that (`votes`). Stop is measured on the candidates of these rollouts: how often it chose Yes for
unfinished, wrong and right ones, and how well its log-odds of Yes separate right from wrong and finished from
unfinished ones (area under the ROC curve). Invariant: nothing is learned. A draw that cannot be graded counts as not
right in `accuracy`, is left out of `accuracy_graded`, and enters no rate of Stop.

    {"accuracy": 0.41, "interval": [0.34, 0.48], "num_problems": 200, "stop": {"yes_rate": {"right": 0.8, ...}}, ...}
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flow_dpo.core.engine import RendersTurns
from flow_dpo.core.errors import ConfigError, StorageError, expect
from flow_dpo.core.explore import Explore
from flow_dpo.core.flow import Flow
from flow_dpo.core.grader import Grader
from flow_dpo.core.loop import batched, rollout_metrics
from flow_dpo.core.loop import right as right_trunk
from flow_dpo.core.protocols import RolloutWorkers
from flow_dpo.core.seeds import derive
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Adapter, Problem, Role, Status, TokenIds, Turn, Verdict
from flow_dpo.evaluate import pass_at_k, step_validity, votes
from flow_dpo.evaluate.headers import EvaluationSummary
from flow_dpo.evaluate.statistics import auc
from flow_dpo.recipes.flow_dpo.attempts import Attempts
from flow_dpo.recipes.flow_dpo.judgement import Judgement
from flow_dpo.runs.headers import write_header
from flow_dpo.runs.records import Prediction, append_rows


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is measured, and how it is decoded."""

    mode: Literal["flow", "single"] = "flow"
    """"single" is one pass of the Answer role."""
    greedy: bool = True
    """Take the likeliest token; otherwise sample with the exploration's temperature and top-p. Attempts of `draws` are
    always sampled."""
    num_samples: int = 1
    """Rollouts per problem; more than one needs `greedy` to be false."""
    draws: int = 0
    """Attempts of Answer per problem, each judged once by Stop. Reports the majority, the majority weighted by P(Yes),
    the best by P(Yes), and what each threshold would give; also by P(right) if the flow has a judgement of its own. 0
    evaluates the flow."""
    candidates: str = ""
    """A predictions.jsonl of `draws`, or its folder: Stop judges the candidates in it, and nothing else is sampled."""
    output_dir: str = "runs/evaluation"
    seed: int = 0
    batch_problems: int = 64
    """Problems under way at once, or two shards per worker if workers run elsewhere. Changes timing only."""
    trained_on: str = ""
    """Run folders and traces, separated by commas, whose problems are compared with those of the test."""
    exclude_overlap: bool = False
    """Leave out test problems that are among them; otherwise they are only counted."""

    def __post_init__(self) -> None:
        expect(self, "to name a folder", lambda value: bool(value.strip()), "output_dir")
        expect(self, "of 1 at least", lambda value: value >= 1, "num_samples", "batch_problems")
        expect(self, "of 0 or more", lambda value: value >= 0, "draws")
        if self.candidates and (self.draws or self.num_samples > 1 or self.mode == "single" or self.trained_on):
            raise ConfigError(
                f"expected only the candidates of {self.candidates}, found something to sample as well; leave out "
                "--draws, --num_samples, --mode and --trained_on when --candidates is given"
            )
        if self.exclude_overlap and not self.trained_on.strip(" ,"):
            raise ConfigError(
                "expected trained_on with exclude_overlap, found none: name with --trained_on the run folders or "
                "traces whose problems are to be left out"
            )
        if self.draws and self.num_samples > 1:
            raise ConfigError(
                f"expected draws or num_samples, found both: {self.draws} and {self.num_samples}; --draws judges each "
                "attempt by Stop, --num_samples samples the whole flow as often; leave one out"
            )
        if self.draws and self.mode == "single":
            raise ConfigError(
                'expected the flow when attempts are drawn, found the mode "single": --draws samples Answer\'s own '
                "attempts and has Stop judge them; leave out --mode, or use --num_samples"
            )
        if self.greedy and self.num_samples > 1:
            raise ConfigError(f"expected one sample with greedy decoding, found {self.num_samples}; add --greedy false")

    @property
    def num_rollouts(self) -> int:
        """Rollouts per problem."""
        return self.draws or self.num_samples

    @property
    def takes_likeliest(self) -> bool:
        """Whether decoding is greedy."""
        return self.greedy and not self.draws


def evaluate(
    flow: Flow[Any],
    explore: Explore,
    problems: Sequence[Problem],
    workers: RolloutWorkers,
    renderer: RendersTurns,
    grader: Grader,
    adapters: Mapping[Role, Adapter],
    settings: EvaluationSettings,
) -> tuple[list[Tree], dict[str, Any]]:
    """Sample and grade all rollouts of every problem. Returns the trees, draw by draw, and the content of summary.json.

    If `settings` asks for draws, `flow` has to be one attempt (`runs.adapters.one_attempt`).
    """
    workers.refresh(adapters)
    trunk_only = explore.alone(greedy=settings.takes_likeliest)
    trees: list[Tree] = []
    choices: list[StopChoice] = []
    right: list[tuple[Problem, str]] = []
    work = {"tokens": 0}
    for draw in range(settings.num_rollouts):
        # The first draw equals that of an evaluation with a single draw.
        seed = derive(settings.seed, "draw", draw) if draw else settings.seed
        for batch in batched(problems, settings.batch_problems):
            batch_trees = workers.submit(trunk_only, flow, batch, seed=seed).result().trees
            work["tokens"] += int(rollout_metrics(batch_trees, {})["rollout/tokens"])
            choices.extend(stop_choices(flow, batch_trees, renderer, grader))
            right += [
                (tree.problem, renderer.to_text(tree.trunk.solution.attempt))
                for tree in batch_trees
                if right_trunk(tree) == 1.0
            ]
            trees.extend(batch_trees)
    steps = step_validity.invalid_rate(right)
    found = summary(trees) | work | {"stop": stop_summary(choices), "steps_of_right_answers": steps}
    return trees, found | ({"votes": votes.summary(attempts_by_problem(trees, flow))} if settings.draws else {})


def decoding(flow: Flow[Any], explore: Explore, trees: Iterable[Tree], settings: EvaluationSettings) -> dict[str, Any]:
    """The decoding as recorded in summary.json: only the values that had an effect.

    Greedy decoding samples nothing, unless the flow asks for it: later attempts of `Attempts`, if there were any.
    """
    names = ["temperature", "top_p", "choice_temperature"]
    if settings.takes_likeliest:
        drawn = [turn for tree in trees for turn in _turns(flow, tree) if turn.greedy is False]
        if not drawn:
            return {"greedy": True, "num_samples": 1}
        names = [name for name in names if any(bool(turn.choices) == (name == "choice_temperature") for turn in drawn)]
    sampling = {name: getattr(explore, name) for name in names}
    return {
        "greedy": settings.takes_likeliest, "num_samples": settings.num_rollouts, "seed": settings.seed, **sampling
    }  # fmt: skip


def _turns(flow: Flow[Any], tree: Tree) -> Iterator[Turn]:
    """The turns of a trunk."""
    state = flow.start(tree.problem)
    for node in tree.trunk_nodes():
        if (turn := flow.turn(state)) is not None:
            yield turn
        state = flow.advance(state, node.completion)


def summary(trees: Iterable[Tree]) -> dict[str, Any]:
    """Accuracy over all draws, its 95 % interval, and the counts behind it (`pass_at_k.summary`).

    Several trees of one problem are its draws.
    """
    return summary_of((tree.problem, tree.trunk.verdict) for tree in trees)


def summary_of(drawn: Iterable[tuple[Problem, Verdict | None]]) -> dict[str, Any]:
    """The same for draws given as problems and verdicts."""
    verdicts: dict[str, list[Verdict]] = {}
    problems: dict[str, Problem] = {}
    for problem, verdict in drawn:
        problems[problem.id] = problem
        verdicts.setdefault(problem.id, []).append(verdict or Verdict(status="ungraded"))
    return pass_at_k.summary(
        [pass_at_k.Drawn(problem=problem, verdicts=tuple(verdicts[id])) for id, problem in problems.items()]
    )


def attempts_by_problem(trees: Iterable[Tree], flow: Flow[Any]) -> list[list[votes.Attempted]]:
    """The draws of every problem as attempts, in their order, with P(right) if the flow has a judgement of its own."""
    judgement = own_judgement(flow)
    found: dict[str, list[votes.Attempted]] = {}
    for tree in trees:
        words, mean = tree.trunk_nodes()[-1].completion.choice_logprobs, mean_logprob(tree)
        one = votes.Attempted(
            verdict=tree.trunk.verdict or Verdict(status="ungraded"),
            yes=yes_probability(tree),
            tokens=_tokens(tree),
            right=judgement.chance(words[0] - words[1], mean) if judgement and words and mean is not None else None,
        )
        found.setdefault(tree.problem.id, []).append(one)
    return list(found.values())


def yes_probability(tree: Tree) -> float | None:
    """The probability of the first choice at the trunk's last turn, which is Stop's P(Yes) for one attempt; None if
    that turn has no choices."""
    logprobs = tree.trunk_nodes()[-1].completion.choice_logprobs
    return math.exp(logprobs[0]) if logprobs else None


def own_judgement(flow: Flow[Any]) -> Judgement | None:
    """A flow's judgement of attempts by Stop's word and Answer's likelihood; None if it is no more than P(Yes)."""
    return flow.judgement if isinstance(flow, Attempts) and flow.judgement != Judgement() else None


def mean_logprob(tree: Tree) -> float | None:
    """Mean log-probability, in nats, of the tokens in the trunk's turns without choices; None if there are none."""
    written = [node.completion for node in tree.trunk_nodes() if not node.completion.choice_logprobs]
    logprobs = [value for completion in written for value in completion.logprobs]
    return math.fsum(logprobs) / len(logprobs) if logprobs else None


def _tokens(tree: Tree) -> int:
    return sum(len(node.completion.token_ids) for node in tree.trunk_nodes())


CandidateKind = Literal["unfinished", "wrong", "right"]


@dataclass(frozen=True, kw_only=True)
class StopChoice:
    """One Yes or No of a choosing role, and the kind of candidate that it judged."""

    chose_yes: bool
    log_odds: float
    """Of Yes, in nats."""
    kind: CandidateKind


def stop_choices(flow: Flow[Any], trees: Sequence[Tree], renderer: RendersTurns, grader: Grader) -> list[StopChoice]:
    """The choice at every candidate on the trunks, and the kind of the candidate by its own verdict."""
    candidates: list[tuple[tuple[Problem, str, bool], bool, float]] = []
    for tree in trees:
        state = flow.start(tree.problem)
        for node in tree.trunk_nodes():
            if len(node.completion.choice_logprobs) == 2:
                solution = flow.solution(state)
                text = renderer.to_text(solution.pieces)
                yes, no = node.completion.choice_logprobs
                candidates.append(((tree.problem, text, solution.ended), node.completion.choice == 0, yes - no))
            state = flow.advance(state, node.completion)
    verdicts = grader.check_texts([item for item, _, _ in candidates])
    return [
        StopChoice(chose_yes=yes, log_odds=odds, kind=kind)
        for ((_, _, ended), yes, odds), verdict in zip(candidates, verdicts, strict=True)
        if (kind := candidate_kind(verdict.status, ended=ended)) is not None
    ]


def candidate_kind(status: Status, *, ended: bool) -> CandidateKind | None:
    """The kind of a candidate that a choosing role judged; None if it could not be graded.

    A run's report uses it too, but with the verdict of the rollout that Yes ended there (`report.run_data`) instead of
    grading every candidate; it leaves out those for which Yes was never chosen.
    """
    if status == "correct":
        return "right"
    return None if status == "ungraded" else "wrong" if ended else "unfinished"


def stop_summary(choices: Sequence[StopChoice]) -> dict[str, Any]:
    """Yes rates and mean probability of Yes by kind of candidate, and the two areas under the ROC curve."""
    kinds = {kind: [one for one in choices if one.kind == kind] for kind in ("unfinished", "wrong", "right")}
    odds = {kind: [one.log_odds for one in ones] for kind, ones in kinds.items()}
    return {
        "num_candidates": {kind: len(ones) for kind, ones in kinds.items()},
        "yes_rate": {kind: sum(one.chose_yes for one in ones) / len(ones) for kind, ones in kinds.items() if ones},
        "mean_yes_probability": {
            kind: sum(1 / (1 + math.exp(-min(max(value, -50), 50))) for value in values) / len(values)
            for kind, values in odds.items()
            if values
        },
        "auc_right_over_wrong": auc(odds["right"], odds["wrong"]),
        "auc_finished_over_unfinished": auc(odds["right"] + odds["wrong"], odds["unfinished"]),
    }


def predictions(trees: Sequence[Tree], *, draws: bool = False) -> list[Prediction]:
    """The rows of predictions.jsonl, one per draw and problem. With `draws`, also what votes and another Stop need:
    P(Yes), the attempt's tokens, and their mean log-probability under Answer."""
    seen: Counter[str] = Counter()
    rows: list[Prediction] = []
    for tree in trees:
        seen[tree.problem.id] += 1
        rows.append(
            Prediction(
                id=tree.problem.id,
                draw=seen[tree.problem.id],
                question=tree.problem.question,
                gold=tree.problem.gold,
                dataset=tree.problem.source,
                worked_solution=tree.problem.solution,
                solution=tree.trunk.text,
                verdict=tree.trunk.verdict,
                tokens=_tokens(tree),
                ended=tree.trunk.solution.ended,
                yes=yes_probability(tree) if draws else None,
                token_ids=_sampled_ids(tree) if draws else None,
                mean_logprob=mean_logprob(tree) if draws else None,
            )
        )
    return rows


def _sampled_ids(tree: Tree) -> TokenIds:
    """The tokens of a solution without fixed text, such as that of a single attempt."""
    pieces = tree.trunk.solution.pieces
    assert not any(isinstance(piece, str) for piece in pieces)
    return tuple(id for piece in pieces if not isinstance(piece, str) for id in piece)


def write_predictions(folder: Path, rows: Sequence[Prediction], result: dict[str, Any]) -> None:
    """Write predictions.jsonl, one line per draw and problem, and summary.json. Raises `StorageError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "predictions.jsonl").write_bytes(b"")
        append_rows(folder / "predictions.jsonl", rows)
        write_header(folder / "summary.json", EvaluationSummary, result)
    except OSError as error:
        raise StorageError(f"could not write the predictions to {folder}: {error}; free space, and resume") from error
