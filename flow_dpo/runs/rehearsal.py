"""What a problem will cost, known before anything is sampled: the exploration is rehearsed with made-up completions.

    cost = rehearse(recipe, problems[:4], renderer)
    print(cost.sentence(1000))      A problem costs 4 to 131 rollouts, ... and 150 to 17,158 sampled tokens (...) if ...

The data's own solutions serve as completions. The cost of a search depends on what it finds, so it is rehearsed with
all, half and none of the rollouts right, each with completions that begin differently and with equal ones. A run's own
cost lies between the lowest and the highest of these, if its completions are as long. Invariant: no model, no verifier
and nothing outside this process is called, and nothing that a run depends on is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Protocol

from flow_dpo.core.engine import RendersTurns
from flow_dpo.core.explore import Explore
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Problem, Request, Solution, TokenIds, Verdict
from flow_dpo.engines.scripted import ScriptedEngine, ScriptedReply

NUM_PROBLEMS = 4
"""Number of problems that are rehearsed; a run's other problems differ."""
_END = -1
"""A token id that no tokenizer has, so that no text contains it."""


class Encodes(RendersTurns, Protocol):
    """A renderer that encodes a text (`models.render.Renderer`)."""

    def encode(self, text: str) -> TokenIds:
        """The token ids of a text on its own."""
        ...


_WORLDS = tuple((alike, rights) for alike in (False, True) for rights in (0, 1, 2))
"""Whether all completions of a turn are equal, and out of how many rollouts one is right (0: none is)."""
_CLOSE = 1.25
"""Costs that differ by at most this factor are printed as one."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What is spent on one problem."""

    rollouts: float
    verdicts: float
    """Rollouts that are graded."""
    tokens: float
    """Tokens sampled if completions are as long as the data's own solutions."""
    most: float
    """Tokens sampled if every completion is as long as allowed."""
    length: float
    """Tokens of the data's own solutions."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one problem, as a mean over several."""

    lowest: Spent
    """The cheapest case that was rehearsed, by tokens."""
    highest: Spent
    measured: str = "the data's solutions"
    """The texts whose length completions are assumed to have."""

    def sentence(self, num_problems: int) -> str:
        """The cost in words, for a run of `num_problems`."""
        lowest, highest = self.lowest, self.highest
        if highest.tokens <= _CLOSE * lowest.tokens:
            lowest, about, depends = highest, "about ", ""
        else:
            about, depends = "", " (depending on how many are right and how alike they are)"
        rollouts, verdicts, tokens = (
            _span(getattr(lowest, name), getattr(highest, name)) for name in ("rollouts", "verdicts", "tokens")
        )
        return (
            f"A problem costs {about}{rollouts} rollouts, {verdicts} verdicts and {tokens} sampled tokens{depends} "
            f"if completions are as long as {self.measured} ({highest.length:,.0f} tokens), "
            f"{highest.most:,.0f} if they are as long as allowed; {num_problems:,} problems cost "
            f"{_span(num_problems * lowest.tokens, num_problems * highest.tokens)} tokens"
        )


def too_few(cost: Cost, problems_per_batch: int, engine: object, *, on_gpu: bool) -> str:
    """A notice if a GPU or a server has room for many more sequences than a batch has under way; otherwise ""."""
    room = getattr(engine, "max_batch_size", 0) if on_gpu else getattr(engine, "concurrency", 0)
    most = round(problems_per_batch * cost.highest.rollouts)
    if 2 * most >= room:
        return ""
    return (
        f"at most {most} sequences are sampled at once ({problems_per_batch} problems per batch), but the engine has "
        f"room for {room}: a GPU takes about as long for one as for all. Fill it with --preset gpu, or with about "
        f"--problems_per_batch {2 * room} (docs/start/one-gpu.md: and what that changes)"
    )


def _span(low: float, high: float) -> str:
    low, high = min(low, high), max(low, high)
    return f"{high:,.0f}" if f"{low:.0f}" == f"{high:.0f}" else f"{low:,.0f} to {high:,.0f}"


def rehearse(recipe: Recipe, problems: Sequence[Problem], renderer: Encodes) -> Cost | None:
    """What a problem costs; None without problems, or if the flow runs programs. Raises whatever the flow and the
    exploration raise."""
    flow, explore = recipe.flow, recipe.explore
    quiet: Explore = getattr(explore, "rehearsed", lambda: explore)()
    if getattr(flow, "programs", False) or not problems:
        return None
    found = [
        [_once(recipe, quiet, problem, renderer, alike=alike, rights=rights) for alike, rights in _WORLDS]
        for problem in problems
    ]
    by_tokens = [sorted(each, key=lambda one: one.tokens) for each in found]
    solved = all(problem.solution for problem in problems)
    return Cost(
        lowest=_mean([each[0] for each in by_tokens]),
        highest=_mean([each[-1] for each in by_tokens]),
        measured="the data's solutions" if solved else "the data's solutions, or questions if it has none",
    )


def _mean(each: Sequence[Spent]) -> Spent:
    return Spent(**{name.name: fmean(getattr(one, name.name) for one in each) for name in fields(Spent)})


def _once(recipe: Recipe, explore: Explore, problem: Problem, renderer: Encodes, *, alike: bool, rights: int) -> Spent:
    """The cost of one problem's tree, in which every `rights`-th rollout is right (0: none is)."""
    words = tuple(renderer.encode(problem.solution or problem.question)) or (0,)
    spent = {"tokens": 0, "most": 0}

    def script(request: Request, seed: int, excluded: TokenIds) -> ScriptedReply:
        spent["most"] += request.max_tokens
        drawn = 0 if alike else seed
        if request.choices:
            left = [at for at, id in enumerate(request.choices) if id not in excluded]
            spent["tokens"] += 1
            return ScriptedReply(choice=left[drawn % len(left)])
        # A continuation is as long as the rest of the solution.
        written = _written(request.prompt_ids, words)
        at = written if alike else drawn % len(words)
        ids = (*(words + words)[at : at + len(words) - written], _END)
        while len(ids) > 1 and ids[0] in excluded:
            ids = ids[1:]
        if ids[0] in excluded:  # nothing is left to write, and it must not end here: any other token
            ids = (next(id for id in (*words, *range(len(excluded) + 1)) if id not in excluded), _END)
        ids = ids[: request.max_tokens]
        spent["tokens"] += len(ids)
        return ScriptedReply(token_ids=ids)

    grader = _MadeUp(rights)
    runner = RolloutRunner(ScriptedEngine(script, end_ids={_END}), renderer, grader)
    [tree] = explore(recipe.flow, runner, [problem], seed=0)
    graded = sum(rollout.value is None for rollout in tree.rollouts)
    return Spent(rollouts=len(tree.rollouts), verdicts=graded, length=len(words), **spent)


def _written(prompt_ids: TokenIds, words: TokenIds) -> int:
    """The length of the longest end of the prompt that occurs in the (repeated) solution."""
    found, tail = "".join(map(chr, words + words)), "".join(map(chr, prompt_ids[-len(words) :]))
    low, high = 0, len(tail)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if tail[-middle:] in found else (low, middle - 1)
    return low


class _MadeUp:
    """A grader that counts, and finds every `rights`-th solution right (0: none)."""

    def __init__(self, rights: int) -> None:
        self._rights, self._num = rights, 0

    def begin(self, problem: Problem, solution: Solution) -> Verdict:
        self._num += 1
        right = self._rights and self._num % self._rights == 0
        return Verdict(status="correct" if right else "wrong", answer="")

    def check(self, items: Sequence[tuple[Problem, Solution]]) -> list[Verdict]:
        return [self.begin(*item) for item in items]

    def check_texts(self, items: Sequence[tuple[Problem, str, bool]]) -> list[Verdict]:
        return [Verdict(status="ungraded") for _ in items]

    def grade(self, trees: Sequence[Tree]) -> None:
        """Trees are not graded here."""
