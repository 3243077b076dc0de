"""Generation of traces: correct rollouts, sampled within a budget of draws per problem and verified again.

Problems are taken a batch at a time. Those of a batch that still need a trace are drawn once more, together, until the
budget is used or none is left; then the batch's traces are yielded, so that the caller can write them:

    draw 1   p1 p2 p3    p2 right: done
    draw 2   p1    p3    p1 right: done
    draw 3         p3    wrong: the budget of 3 is used, and p3 has no trace

With many workers, several batches are drawn at the same time. Invariant: the traces of a problem depend only on the
problem, the seed and the adapters, and all traces together do not depend on how many batches were under way.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

from flow_dpo.core.explore import Explore
from flow_dpo.core.flow import Flow
from flow_dpo.core.grader import Grader
from flow_dpo.core.loop import batched
from flow_dpo.core.protocols import RolloutWorkers
from flow_dpo.core.seeds import derive
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Adapter, Message, Problem, Role, Verdict
from flow_dpo.models.render import Renderer
from flow_dpo.traces.settings import GenerateSettings
from flow_dpo.traces.trace import SelectionSettings, Source, Trace
from flow_dpo.verify.extract import after_answer_is, last_box


@dataclass(kw_only=True)
class Tally:
    """Counts of what was sampled and found so far, over all problems."""

    num_problems_sampled: int = 0
    problems_solved: int = 0
    """Problems with at least one trace."""
    traces: int = 0
    draws: int = 0
    correct_draws: int = 0
    """Rollouts whose final answer was right."""
    ungraded_draws: int = 0
    unsound_attempts: int = 0
    """Right rollouts that gave no trace: the attempt that counts was not right by itself."""
    tokens_sampled: int = 0
    """Sampled tokens of all roles, including failed draws."""
    verdicts_used: int = 0
    """Number of comparisons with a gold answer: one per rollout, and one more for an attempt that is not the whole
    rollout."""
    started: float = field(default_factory=time.perf_counter)

    def __str__(self) -> str:
        ungraded = f", {self.ungraded_draws} could not be graded" if self.ungraded_draws else ""
        drawn = f"{self.correct_draws} of {self.draws} draws right{ungraded}; " if self.draws else ""
        return (
            f"{self.num_problems_sampled} problems: {self.traces} traces on {self.problems_solved}; {drawn}"
            f"{self.tokens_sampled} tokens, {self.verdicts_used} verdicts"
        )

    def shortfall(self) -> str:
        """Why there is no trace."""
        if not self.draws:
            return (
                f"{self.verdicts_used} have a worked solution, of which {self.correct_draws} were found right and "
                f"{self.ungraded_draws} could not be graded"
            )
        return (
            f"{self.correct_draws} of {self.draws} draws were right, {self.ungraded_draws} could not be graded, and in "
            f"{self.unsound_attempts} right ones the attempt that counts was not right by itself"
        )

    def facts(self) -> dict[str, Any]:
        """The header's counts and cost."""
        numbers = asdict(self)
        started = numbers.pop("started")
        cost = {name: numbers.pop(name) for name in ("tokens_sampled", "verdicts_used")}
        return {"counts": numbers, "cost": cost | {"seconds": round(time.perf_counter() - started, 3)}}

    def add(self, more: Tally) -> None:
        """Add the counts of further problems."""
        for name, value in asdict(more).items():
            if name != "started":
                setattr(self, name, getattr(self, name) + value)

    @classmethod
    def of(cls, header: Mapping[str, Any]) -> Tally:
        """The counts that `facts` put into a header; zero if it has none yet."""
        cost = dict(header.get("cost", {}))
        started = time.perf_counter() - cost.pop("seconds", 0.0)
        return cls(
            **{name: int(value) for name, value in {**header.get("counts", {}), **cost}.items()}, started=started
        )


@dataclass(kw_only=True)
class _Drawn:
    """One problem while solutions of it are drawn."""

    problem: Problem
    prompt: tuple[Mapping[str, str], ...]
    """Its chat for one pass."""
    draws: int = 0
    tokens: int = 0
    found: list[Trace] = field(default_factory=list[Trace])


def generate(
    flow: Flow[Any],
    one_pass: Flow[Any],
    explore: Explore,
    problems: Sequence[Problem],
    workers: RolloutWorkers,
    renderer: Renderer,
    grader: Grader,
    adapters: Mapping[Role, Adapter],
    settings: GenerateSettings,
    selection: SelectionSettings,
    tally: Tally | None = None,
    *,
    batches_at_once: int = 1,
) -> Iterator[tuple[list[Trace], Tally]]:
    """Yield, batch by batch, the traces of its problems and the counts of all so far, until there are enough.

    `flow` is sampled; the chat of a trace is the first prompt of `one_pass`. `tally` counts the first problems, which
    were done before. Of `batches_at_once`, those after the one that completes the traces are dropped and not counted:
    the result is the same for any number of them.
    """
    most, tally = settings.max_traces, Tally() if tally is None else tally
    problems = problems[tally.num_problems_sampled :]
    if most is not None and tally.traces >= most:
        return
    if settings.mode == "ground_truth":
        batches = _from_data(one_pass, problems, renderer, grader, settings, tally)
    else:
        alone = explore.alone(greedy=False)
        workers.refresh(adapters)
        source = settings.source(trained=bool(adapters))

        def sample(asked: Sequence[Sequence[Problem]], draw: int) -> list[list[Tree]]:
            seed = derive(settings.seed, "trace", draw)
            futures = [workers.submit(alone, flow, left, seed=seed) for left in asked]
            return [future.result().trees for future in futures]

        batches = _from_rollouts(
            sample, one_pass, problems, renderer, grader, source, settings, selection, tally, batches_at_once
        )
    for traces, tally in batches:
        yield traces, tally
        if most is not None and tally.traces >= most:
            return


@dataclass(kw_only=True)
class _Batch:
    """Problems that are drawn together, and the counts of these alone."""

    drawn: list[_Drawn]
    tally: Tally = field(default_factory=Tally)


def _from_rollouts(
    sample: Callable[[Sequence[Sequence[Problem]], int], list[list[Tree]]],
    one_pass: Flow[Any],
    problems: Sequence[Problem],
    renderer: Renderer,
    grader: Grader,
    source: Source,
    settings: GenerateSettings,
    selection: SelectionSettings,
    tally: Tally,
    at_once: int,
) -> Iterator[tuple[list[Trace], Tally]]:
    """Traces of the right rollouts. For the given problems of each batch and the number of the draw, from 0, `sample`
    returns one graded tree per problem."""
    batches = batched(problems, settings.batch_problems)
    while several := [
        _Batch(drawn=[_Drawn(problem=problem, prompt=_prompt(one_pass, renderer, problem)) for problem in batch])
        for batch in islice(batches, at_once)
    ]:
        for draw in range(settings.num_samples):
            asked = [
                (batch, left)
                for batch in several
                if (left := [one for one in batch.drawn if not selection.enough(one.found)])
            ]
            found = sample([[one.problem for one in left] for _, left in asked], draw) if asked else []
            for (batch, left), trees in zip(asked, found, strict=True):
                _take(left, trees, renderer, grader, source, batch.tally)
        for batch in several:
            traces = _done(batch.drawn, selection, batch.tally)
            tally.add(batch.tally)
            yield traces, tally


def _from_data(
    one_pass: Flow[Any],
    problems: Sequence[Problem],
    renderer: Renderer,
    grader: Grader,
    settings: GenerateSettings,
    tally: Tally,
) -> Iterator[tuple[list[Trace], Tally]]:
    """The data set's own solutions, one per problem; nothing is sampled."""
    for batch in batched(problems, settings.batch_problems):
        texts = [(problem, text) for problem in batch if (text := worked_solution(problem))]
        verdicts = grader.check_texts([(problem, text, True) for problem, text in texts])
        traces = [
            Trace(
                **_problem_columns(problem),
                messages=_prompt(one_pass, renderer, problem),
                solution=text,
                token_ids=renderer.answer_ids(text),
                ended=True,
                verdict=verdict,
                source="ground_truth",
                draw=1,
                draws_used=1,
                tokens_spent=0,
            )
            for (problem, text), verdict in zip(texts, verdicts, strict=True)
            if verdict.status == "correct"
        ]
        tally.num_problems_sampled += len(batch)
        tally.problems_solved += len(traces)
        tally.traces += len(traces)
        tally.verdicts_used += len(texts)
        tally.correct_draws += len(traces)
        tally.ungraded_draws += sum(verdict.status == "ungraded" for verdict in verdicts)
        yield traces, tally


def worked_solution(problem: Problem) -> str:
    """A data set's own solution; "" if there is none.

    If it does not state its answer, the gold answer is added on a last line, in the form that the prompts ask for.
    GSM8K's calculator notes ("<<3*4=12>>") are left out.
    """
    text = re.sub(r"<<[^<>]*>>", "", problem.solution).strip()
    stated = last_box(text) is not None or after_answer_is(text) is not None
    return text if not (text and problem.gold) or stated else f"{text}\nAnswer: {problem.gold}"


def _problem_columns(problem: Problem) -> dict[str, str]:
    """The columns of a trace that describe its problem."""
    return {
        "problem_id": problem.id,
        "question": problem.question,
        "gold": problem.gold,
        "dataset": problem.source,
        "worked_solution": problem.solution,
        "level": problem.level,
        "subject": problem.subject,
    }


def _take(
    drawn: Sequence[_Drawn],
    trees: Sequence[Tree],
    renderer: Renderer,
    grader: Grader,
    source: Source,
    tally: Tally,
) -> None:
    """Count one draw of each problem, and keep the right attempts."""
    right: list[tuple[_Drawn, Tree]] = []
    for one, tree in zip(drawn, trees, strict=True):
        one.draws += 1
        one.tokens += sum(len(node.completion.token_ids) for node in tree.nodes)
        status = "ungraded" if tree.trunk.verdict is None else tree.trunk.verdict.status
        tally.draws += 1
        tally.correct_draws += status == "correct"
        tally.ungraded_draws += status == "ungraded"
        if status == "correct":
            right.append((one, tree))
    tally.tokens_sampled += sum(len(node.completion.token_ids) for tree in trees for node in tree.nodes)
    for (one, tree), (text, verdict) in zip(
        right, verify_attempts([tree for _, tree in right], renderer, grader), strict=True
    ):
        solution = tree.trunk.solution
        tally.verdicts_used += solution.attempt != solution.pieces
        if verdict.status != "correct":
            tally.unsound_attempts += 1
            continue
        one.found.append(
            Trace(
                **_problem_columns(one.problem),
                messages=one.prompt,
                solution=text,
                token_ids=renderer.to_ids(solution.attempt),
                ended=solution.ended,
                verdict=verdict,
                source=source,
                draw=one.draws,
                draws_used=one.draws,
                tokens_spent=one.tokens,
            )
        )
    tally.verdicts_used += len(trees)


def verify_attempts(trees: Sequence[Tree], renderer: Renderer, grader: Grader) -> list[tuple[str, Verdict]]:
    """For each trunk the attempt that counts, as text, and the verdict on it alone.

    The attempt is read as a finished solution, since it is learned with the end token after it.
    """
    texts = [renderer.to_text(tree.trunk.solution.attempt) for tree in trees]
    items = [(tree.problem, text, True) for tree, text in zip(trees, texts, strict=True)]
    return list(zip(texts, grader.check_texts(items), strict=True))


def _done(drawn: Sequence[_Drawn], selection: SelectionSettings, tally: Tally) -> list[Trace]:
    """The traces of problems that will not be drawn again, with their total cost."""
    chosen: list[Trace] = []
    for one in drawn:
        kept = selection.choose(one.found)
        tally.num_problems_sampled += 1
        tally.problems_solved += bool(kept)
        chosen += [replace(trace, draws_used=one.draws, tokens_spent=one.tokens) for trace in kept]
    tally.traces += len(chosen)
    return chosen


def _prompt(one_pass: Flow[Any], renderer: Renderer, problem: Problem) -> tuple[Mapping[str, str], ...]:
    turn = one_pass.turn(one_pass.start(problem))
    messages: Sequence[Message] = () if turn is None else turn.messages
    return tuple(renderer.chat(messages))
