"""Stop on one fixed set of candidates: all Stops that are measured judge the same solutions.

The set is the predictions.jsonl of an evaluation with `--draws`, usually of the untrained model, kept as a file. Stop
is asked about every finished candidate, and about the first half of its tokens, which is unfinished; only its choice is
sampled. If the flow's judgement is more than Stop's P(Yes), it is measured as well, from how likely the same run's
Answer finds each candidate. The verdicts are those of the file:

    flow-dpo evaluate --draws 4 --output_dir runs/fixed            candidates of the untrained Answer
    flow-dpo evaluate --candidates runs/fixed                      the untrained Stop on them
    flow-dpo evaluate --candidates runs/fixed --run runs/train     a run's Stop on the same

Invariant: Stop gets a candidate as the tokens that were sampled, so the set is refused for another tokenizer.
Candidates that were cut off or could not be graded are counted but enter no measure.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from flow_dpo.core.answer_stop import STOP, RolePrompts, stop_messages
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.explore import Group
from flow_dpo.core.flow import Flow
from flow_dpo.core.loop import batched
from flow_dpo.core.protocols import RolloutWorkers
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Adapter, Completion, Problem, Request, Role, Solution, TokenIds, Turn
from flow_dpo.data.problems import ProblemSet, fingerprint
from flow_dpo.evaluate.headers import EvaluationSummary
from flow_dpo.evaluate.statistics import clustered_auc, reliability
from flow_dpo.recipes.flow_dpo.attempts import Attempts
from flow_dpo.recipes.flow_dpo.judgement import Judgement
from flow_dpo.runs.headers import read_header
from flow_dpo.runs.records import Prediction, read_rows

MAKE_ONE = "make one with flow-dpo evaluate --draws 4 --output_dir FOLDER (without --run, from the untrained Answer)"


# ---- the file --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FixedSet:
    """Kept candidates, and where they come from."""

    path: Path
    """predictions.jsonl."""
    sha256: str
    """Of the file; evaluations with the same hash are comparable."""
    rows: tuple[Prediction, ...]
    header: Mapping[str, Any]
    """The summary.json beside the file."""

    @property
    def finished(self) -> list[Prediction]:
        """The finished candidates, which Stop is asked about."""
        return [row for row in self.rows if row.ended]

    def token_ids(self) -> dict[str, TokenIds]:
        """What Stop is asked about, by a unique name: whole candidates, and the first halves of graded ones with at
        least two tokens."""
        found: dict[str, TokenIds] = {}
        for row in self.finished:
            ids = row.token_ids or ()
            found[_name(row)] = ids
            if len(ids) > 1 and _graded(row):
                found[_half(row)] = ids[: len(ids) // 2]
        return found

    def problems(self) -> ProblemSet:
        """One problem for each entry of `token_ids`, under its name."""
        known = self.token_ids()
        found = tuple(
            replace(row.problem, id=name) for row in self.finished for name in (_name(row), _half(row)) if name in known
        )
        return ProblemSet(problems=found, fingerprint=fingerprint(found))


def read(source: str) -> FixedSet:
    """The candidates of a predictions.jsonl, or of an evaluation's folder.

    Raises `DataError`, saying how to make such a file, if it is not one or holds no tokens.
    """
    path = Path(source)
    path = path / "predictions.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"expected candidates in {path}, found no such file; {MAKE_ONE}")
    rows = read_rows(path, Prediction)
    if not any(row.ended for row in rows):
        raise DataError(f"expected finished candidates in {path}, found none of {len(rows)}; {MAKE_ONE}")
    for line, row in enumerate(rows, start=1):
        if row.token_ids is None:
            raise DataError(
                f"{path}, line {line}: expected the sampled tokens of the candidate, found a prediction of an "
                f"evaluation without --draws; {MAKE_ONE}"
            )
    if len({_name(row) for row in rows}) < len(rows):
        raise DataError(f"expected one row for each draw on each problem in {path}, found some twice; {MAKE_ONE}")
    header = read_header(path.parent / "summary.json", EvaluationSummary, absent={})
    if not header.get("tokenizer"):
        raise DataError(
            f"expected a summary.json beside {path} that names the tokenizer of its tokens, found "
            f"{'one without' if header else 'none'}; keep the evaluation's whole folder, or {MAKE_ONE}"
        )
    return FixedSet(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), rows=tuple(rows), header=header)


def check_fits(fixed: FixedSet, tokenizer: str, model: str, fitting: Sequence[Problem]) -> None:
    """Raise `ConfigError` if the candidates were sampled with another tokenizer than the model's, or if not all of them
    fit its context window."""
    if fixed.header["tokenizer"] != tokenizer:
        raise ConfigError(
            f"expected candidates in the tokens of {model}, found those of {fixed.header.get('model')} in {fixed.path},"
            f" which has another tokenizer; judge them with a model of that tokenizer (--model_name_or_path), or make a"
            f" set with this model: flow-dpo evaluate --model_name_or_path {model} --draws 4"
        )
    if missing := len(fixed.token_ids()) - len(fitting):
        raise ConfigError(
            f"expected all candidates of {fixed.path} to fit the context window of {model}, found {missing} that do "
            "not; a fixed set is judged whole: make one with shorter answers, or enlarge the window"
        )


def _name(row: Prediction) -> str:
    return f"{row.id}, draw {row.draw}"


def _half(row: Prediction) -> str:
    return f"{_name(row)}, first half"


def _graded(row: Prediction) -> bool:
    return row.verdict is not None and row.verdict.right is not None


# ---- the flow: one turn of Stop --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgingState:
    """A candidate's problem, and whether it has been judged."""

    problem: Problem
    judged: bool = False


@dataclass(frozen=True, kw_only=True)
class Judging(Flow[JudgingState]):
    """A flow that asks Stop once about a given candidate, of which nothing is sampled; its solution is empty."""

    candidates: Mapping[str, TokenIds]
    """By the ids of their problems."""
    prompts: RolePrompts = field(default_factory=RolePrompts)

    roles: ClassVar[tuple[Role, ...]] = (STOP,)

    def start(self, problem: Problem) -> JudgingState:
        return JudgingState(problem=problem)

    def turn(self, state: JudgingState) -> Turn | None:
        if state.judged:
            return None
        ids = self.candidates[state.problem.id]
        messages = stop_messages(self.prompts, state.problem, (ids,) if ids else ())
        return Turn(role=STOP, messages=messages, choices=(self.prompts.yes, self.prompts.no))

    def advance(self, state: JudgingState, completion: Completion) -> JudgingState:
        return replace(state, judged=True)

    def solution(self, state: JudgingState) -> Solution:
        return Solution(pieces=(), ended=False)


TeacherForced = Callable[[Sequence[tuple[Request, Completion]]], Sequence[Sequence[float]]]
"""Computes the log-probability of each token of some completions."""


# ---- the measures ----------------------------------------------------------------------------------------------------


def judge(
    fixed: FixedSet,
    flow: Judging,
    workers: RolloutWorkers,
    adapters: Mapping[Role, Adapter],
    batch_problems: int = 64,
    judgement: Judgement | None = None,
    mean_logprobs: Mapping[str, float] | None = None,
) -> tuple[list[Prediction], dict[str, Any]]:
    """Have Stop judge every candidate. Returns the set's rows with its P(Yes), and the measures that summary.json holds
    under `candidates`. With the flow's `judgement`, that is measured too, using the result of `answer_logprobs`, which
    then replaces the rows' log-probabilities under the candidate's own Answer."""
    workers.refresh(adapters)
    explore = Group(num_rollouts=1, greedy_trunk=True)
    trees = [
        tree
        for batch in batched(fixed.problems(), batch_problems)
        for tree in workers.submit(explore, flow, batch, seed=0).result().trees
    ]
    judged = dict(_judged(trees))
    means = mean_logprobs or {}
    rows = [
        replace(
            row,
            yes=judged[_name(row)].yes if row.ended else None,
            mean_logprob=means.get(_name(row), row.mean_logprob),
        )
        for row in fixed.rows
    ]
    found = measures(fixed, judged)
    return rows, found if judgement is None else found | {"judgement": by_judgement(fixed, judged, judgement, means)}


def answer_logprobs(
    fixed: FixedSet, flow: Attempts, render: Callable[[Turn], Request], end_id: int, logprobs: TeacherForced
) -> dict[str, float]:
    """The mean log-probability, in nats, of each finished candidate's tokens and end token, by its name, taken as one
    completion of Answer's first turn.

    `logprobs` computes them under the Answer adapter (`evaluate.run`); no token is sampled.
    """
    asked: list[tuple[Request, Completion]] = []
    for row in fixed.finished:
        turn = flow.turn(flow.start(row.problem))
        assert turn is not None
        completion = Completion(
            token_ids=(*(row.token_ids or ()), end_id),
            logprobs=(),
            sampled_logprobs=(),
            finish_reason="stop",
            policy_version=-1,
        )
        asked.append((render(turn), completion))
    means = [math.fsum(found) / len(found) for found in logprobs(asked)]
    return {_name(row): mean for row, mean in zip(fixed.finished, means, strict=True)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Stop's choice on one candidate."""

    yes: float
    """P(Yes)."""
    log_odds: float
    """Of Yes, in nats."""


def _judged(trees: Sequence[Tree]) -> Iterator[tuple[str, Judged]]:
    for tree in trees:
        yes, no = tree.nodes[0].completion.choice_logprobs
        yield tree.problem.id, Judged(yes=math.exp(yes), log_odds=yes - no)


def measures(fixed: FixedSet, judged: Mapping[str, Judged]) -> dict[str, Any]:
    """Areas with intervals over problems, calibration, and the counts behind them."""
    # 1. Kinds of candidates, each with its problem's id.
    kinds: dict[str, list[tuple[str, Judged]]] = {"right": [], "wrong": [], "unfinished": []}
    for row in fixed.finished:
        if row.verdict is not None and row.verdict.right is not None:
            kinds["right" if row.verdict.right else "wrong"].append((row.id, judged[_name(row)]))
        if _half(row) in judged:
            kinds["unfinished"].append((row.id, judged[_half(row)]))
    odds = {kind: [(id, one.log_odds) for id, one in ones] for kind, ones in kinds.items()}
    # 2. Measures of P(Yes) on the finished ones.
    probabilities = [one.yes for kind in ("right", "wrong") for _, one in kinds[kind]]
    rewards = [1.0] * len(kinds["right"]) + [0.0] * len(kinds["wrong"])
    return {
        "file": str(fixed.path),
        "sha256": fixed.sha256,
        "sampled_by": fixed.header.get("model"),
        "num": {kind: len(ones) for kind, ones in kinds.items()}
        | {
            "cut": len(fixed.rows) - len(fixed.finished),
            "ungraded": sum(not _graded(row) for row in fixed.finished),
        },
        "right_over_wrong": clustered_auc(odds["right"], odds["wrong"]),
        "finished_over_unfinished": clustered_auc(odds["right"] + odds["wrong"], odds["unfinished"]),
        "mean_yes": {kind: sum(one.yes for _, one in ones) / len(ones) for kind, ones in kinds.items() if ones},
        **reliability(probabilities, rewards),
    }


def by_judgement(
    fixed: FixedSet, judged: Mapping[str, Judged], judgement: Judgement, means: Mapping[str, float]
) -> dict[str, Any]:
    """The area and calibration of P(right), on the graded candidates that `measures` uses."""
    odds: dict[bool, list[tuple[str, float]]] = {True: [], False: []}
    chances: dict[bool, list[float]] = {True: [], False: []}
    for row in fixed.finished:
        if _graded(row):
            right, name = row.verdict is not None and row.verdict.right == 1.0, _name(row)
            odds[right].append((row.id, judgement.log_odds(judged[name].log_odds, means[name])))
            chances[right].append(judgement.chance(judged[name].log_odds, means[name]))
    kinds = {"right": chances[True], "wrong": chances[False]}
    return {
        "weights": asdict(judgement),
        "right_over_wrong": clustered_auc(odds[True], odds[False]),
        "mean_right": {kind: sum(values) / len(values) for kind, values in kinds.items() if values},
        **reliability([*chances[True], *chances[False]], [1.0] * len(chances[True]) + [0.0] * len(chances[False])),
    }
