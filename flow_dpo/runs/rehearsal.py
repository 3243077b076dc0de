"""What a problem will cost, said before anything is sampled: the exploration is rehearsed with made-up completions.

    cost = rehearse(recipe, problems[:4], renderer)     Cost(rollouts=36.0, verdicts=36.0, tokens=4100.0, most=34816.0)
    print(cost.sentence(1000))

Completions are the data's own solutions, turned about so that few begin alike, and half of them, or none, are taken for
right: what costs more counts. Invariant: no model, no verifier and nothing outside this process is asked, and nothing
that a run depends on is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
"""Problems that are rehearsed; a run's own differ."""
_END = -1
"""A token of no tokenizer, so that no text holds it."""


class Encodes(RendersTurns, Protocol):
    """A renderer that encodes a text (`models.render.Renderer`)."""

    def encode(self, text: str) -> TokenIds:
        """The ids of a text by itself."""
        ...


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one problem, in the mean."""

    rollouts: float
    verdicts: float
    """Rollouts that are graded."""
    tokens: float
    """Sampled, where completions are as long as the data's own solutions."""
    most: float
    """The same where every completion is as long as it may be."""
    length: float
    """Tokens of these solutions."""

    def sentence(self, num_problems: int) -> str:
        """For a person, and for a run of so many problems."""
        every = num_problems * self.tokens
        return (
            f"A problem costs about {self.rollouts:,.0f} rollouts, {self.verdicts:,.0f} verdicts and "
            f"{self.tokens:,.0f} sampled tokens where completions are as long as the data's solutions "
            f"({self.length:,.0f} tokens), {self.most:,.0f} at their longest; {num_problems:,} problems {every:,.0f}"
        )


def rehearse(recipe: Recipe, problems: Sequence[Problem], renderer: Encodes) -> Cost | None:
    """What a problem costs; None where that cannot be told without running programs. Raises what the flow and the
    exploration raise."""
    flow, explore = recipe.flow, recipe.explore
    alike: Explore = getattr(explore, "rehearsed", lambda: explore)()
    if getattr(flow, "programs", False) or not problems:
        return None
    found = [_once(recipe, alike, problem, renderer, rights) for problem in problems for rights in (2, 0)]
    dearer = [max(pair, key=lambda one: one.tokens) for pair in zip(found[::2], found[1::2], strict=True)]
    names = ("rollouts", "verdicts", "tokens", "most", "length")
    return Cost(**{name: fmean(getattr(one, name) for one in dearer) for name in names})


def _once(recipe: Recipe, explore: Explore, problem: Problem, renderer: Encodes, rights: int) -> Cost:
    """One problem's tree, of which each `rights`-th rollout is right, or none."""
    words = renderer.encode(problem.solution or problem.question) or (0,)
    spent = {"tokens": 0, "most": 0}

    def script(request: Request, seed: int, excluded: TokenIds) -> ScriptedReply:
        spent["most"] += request.max_tokens
        if request.choices:
            left = [at for at, id in enumerate(request.choices) if id not in excluded]
            spent["tokens"] += 1
            return ScriptedReply(choice=left[seed % len(left)])
        at = seed % len(words)
        ids = (*words[at:], *words[:at], _END)
        while len(ids) > 1 and ids[0] in excluded:
            ids = ids[1:]
        ids = ids[: request.max_tokens]
        spent["tokens"] += len(ids)
        return ScriptedReply(token_ids=ids)

    grader = _MadeUp(rights)
    runner = RolloutRunner(ScriptedEngine(script, end_ids={_END}), renderer, grader)
    [tree] = explore(recipe.flow, runner, [problem], seed=0)
    graded = sum(rollout.value is None for rollout in tree.rollouts)
    return Cost(rollouts=len(tree.rollouts), verdicts=graded, length=len(words), **spent)


class _MadeUp:
    """A grader that counts, and finds every `rights`-th solution right; none at 0."""

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
