"""A search for the best of all trajectories (ways of solving) of a problem.

DOTS (arXiv 2410.03864), one problem at a time: every way is sampled N times, and the ways with the highest success rate
are kept (at equal rates the shorter). Those are sampled again, a few of them are kept, and the model itself, or another
one, explains why the best one suits the problem. The flow's own plan comes first:

    rollout 0         the planner's own explanation, choice and solution: progressive validation
    rollouts 1 ...    each way, N times; the kept ways again in every further round
    the last          the lesson: an explanation made in hindsight, and the best way's name

Invariants: a way's rate is over all of its rollouts that could be graded, of all rounds; a problem with only right or
only wrong ones gets no explanation; programs are run in the sandbox, and only if the flow's `programs` is set.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from flow_dpo.core.errors import ConfigError, FlowError
from flow_dpo.core.explore import TurnSampling
from flow_dpo.core.flow import Flow
from flow_dpo.core.rollouts import RolloutRunner, RolloutSteps, SampleRequest, sample
from flow_dpo.core.seeds import derive
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Completion, Message, Problem, Request, Turn
from flow_dpo.models.http_client import check_base_url
from flow_dpo.recipes.dots.explainer import as_completion, checked_endpoint, explain
from flow_dpo.recipes.dots.flow import ANSWER, PLAN, Planned, PlannedState
from flow_dpo.recipes.dots.lesson import add_lesson
from flow_dpo.recipes.scored import ELSEWHERE
from flow_dpo.recipes.single_rollout import Chain
from flow_dpo.verify.sandbox import check_platform, code_of, run_program

log = logging.getLogger("flow_dpo")

HINDSIGHT = (
    "\n\nOf all the ways to solve this problem, this one did best: {way}. Explain in two sentences why it suits the "
    "problem. Do not solve it."
)


@dataclass(frozen=True, kw_only=True)
class TrajectorySearch(TurnSampling):
    """The planner's own rollout, then a search over all ways."""

    num_rollouts: int = 4
    """Rollouts per way in a round."""
    num_rounds: int = 2
    """Rounds of the search; after the first, only kept ways are sampled. 0 samples only the planner's own rollout."""
    num_kept: int = 8
    """Ways kept for a further round."""
    num_best: int = 3
    """Ways left at the end, best first; the first is the lesson."""
    explainer_url: str = ""
    """OpenAI-compatible address of another model that writes the explanations, as in the authors' code; if empty, the
    model that is trained writes them. The API key is read from OPENAI_API_KEY."""
    explainer_model: str = ""
    """The model's name at that address; can be left out if the address serves only one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_rollouts < 1 or self.num_rounds < 0 or not 0 < self.num_best <= self.num_kept:
            raise ConfigError(
                f"expected num_rollouts of 1 or more, num_rounds of 0 or more and 0 < num_best <= num_kept, found "
                f"{self.num_rollouts}, {self.num_rounds}, {self.num_best} and {self.num_kept}"
            )

        if self.explainer_url:
            check_base_url(self.explainer_url)

    def __call__(self, flow: Flow[Any], runner: RolloutRunner, problems: Sequence[Problem], *, seed: int) -> list[Tree]:
        if not isinstance(flow, Planned):
            raise FlowError(f"a search over ways needs the flow Planned, found {type(flow).__name__}")
        if flow.programs:
            check_platform()
            log.warning("running programs that the model writes, in a sandbox (--flow.programs)")
        if self.explainer_url and self.num_rounds:
            # Checked before hours of rollouts, not after them.
            checked_endpoint(url=self.explainer_url, model=self.explainer_model)
        searches = [_Search(self, flow, problem, runner, seed) for problem in problems]
        runner.run([search.trunk.rollout() for search in searches])
        for number in range(self.num_rounds):
            chains = [chain for search in searches for chain in search.begin_round(number)]
            runner.run([chain.rollout() for chain in chains])
            for search in searches:
                search.end_round(last=number == self.num_rounds - 1)
        deciding = [search for search in searches if search.decides]
        if self.explainer_url:
            prompts = [search.hindsight_prompt() for search in deciding]
            texts = explain(prompts, url=self.explainer_url, model=self.explainer_model,
                            max_tokens=flow.explanation_tokens)  # fmt: skip
            for search, text in zip(deciding, texts, strict=True):
                search.explained(text)
        else:
            runner.run([search.explain() for search in deciding])
        return [search.tree() for search in searches]

    def rehearsed(self) -> TrajectorySearch:
        """The same search without another model, to count its cost before it begins."""
        return replace(self, explainer_url="")

    def alone(self, *, greedy: bool) -> TrajectorySearch:
        return replace(self, num_rounds=0, greedy_trunk=greedy)


class _Search:
    """The ways of one problem while they are being tried."""

    def __init__(
        self, explore: TrajectorySearch, flow: Planned, problem: Problem, runner: RolloutRunner, seed: int
    ) -> None:
        self.explore, self.flow, self.problem, self.runner = explore, flow, problem, runner
        self.seed = derive(seed, problem.id, "trajectories")
        self.trunk = self._chain(flow, "trunk", trunk=True)
        self.ways = [way.name for way in flow.trajectories] if explore.num_rounds else []
        self.rollouts: dict[str, list[Chain]] = {way: [] for way in self.ways}
        """The finished rollouts of every way."""
        self.running: list[tuple[str, Chain]] = []
        self.hindsight: tuple[Request, Completion] | None = None

    @property
    def decides(self) -> bool:
        """Whether some rollouts were right and some were wrong."""
        return {"correct", "wrong"} <= {chain.status for rollouts in self.rollouts.values() for chain in rollouts}

    def begin_round(self, number: int) -> list[Chain]:
        """The rollouts of one round."""
        self.running = [
            (way, self._chain(replace(self.flow, fixed=way), way, number, index))
            for way in self.ways
            for index in range(self.explore.num_rollouts)
        ]
        return [chain for _, chain in self.running]

    def end_round(self, *, last: bool) -> None:
        """Rank the ways by their results so far, and keep the best."""
        for way, chain in self.running:
            self.rollouts[way].append(chain)
        order = {way.name: (len(way.modules), index) for index, way in enumerate(self.flow.trajectories)}
        self.ways.sort(key=lambda way: (-self._rate(way), *order[way]))
        self.ways = self.ways[: self.explore.num_kept]
        if last:
            self.ways = self.ways[: self.explore.num_best]

    def hindsight_prompt(self) -> str:
        """The prompt that asks why the best way suits the problem."""
        return self.problem.question + HINDSIGHT.replace("{way}", self.ways[0].replace("+", ", then "))

    def explain(self) -> RolloutSteps:
        """Ask the model for the explanation."""
        turn = self._hindsight_turn()
        sampling = self.explore.for_turn(turn, trunk=False)
        sampled = yield from sample(SampleRequest(turn=turn, sampling=sampling, seed=derive(self.seed, "hindsight")))
        self.hindsight = sampled.request, sampled.completion

    def explained(self, text: str | None) -> None:
        """Take the explanation of another model; None if it gave none. It ends as this problem's own rollouts do."""
        chains = [self.trunk, *(chain for rollouts in self.rollouts.values() for chain in rollouts)]
        turns = [completion for chain in chains for _, completion, _ in chain.turns]
        end = next((turn.token_ids[len(turn.content_ids) :] for turn in turns if turn.finish_reason == "stop"), ())
        if text is not None:
            self.hindsight = as_completion(text, self._hindsight_turn(), self.runner.renderer, end)

    def _hindsight_turn(self) -> Turn:
        message = Message(role="user", content=(self.hindsight_prompt(),))
        return Turn(role=ANSWER, messages=(message,), max_tokens=self.flow.explanation_tokens)

    def tree(self) -> Tree:
        """All rollouts, followed by the lesson."""
        tree = Tree(problem=self.problem)
        self.trunk.add_to(tree)
        for rollouts in self.rollouts.values():
            for chain in rollouts:
                chain.add_to(tree)
        if self.hindsight is not None:
            best = next(chain for chain in self.rollouts[self.ways[0]] if chain.right)
            add_lesson(
                tree,
                self.ways[0],
                why=self.hindsight,
                which=self._choice(self.hindsight[1]),
                solution=best.solution,
            )
        return tree

    def _choice(self, explanation: Completion) -> tuple[Request, Completion]:
        """The best way's name as the planner would choose it after this explanation."""
        turn = self.flow.turn(self.flow.advance(PlannedState(problem=self.problem), explanation))
        assert turn is not None
        assert turn.role == PLAN
        request = self.runner.renderer.render(turn)
        choice = [way.name for way in self.flow.trajectories].index(self.ways[0])
        return request, Completion(
            token_ids=(request.choices[choice],),
            logprobs=(0.0,),
            sampled_logprobs=(0.0,),
            finish_reason="choice",
            policy_version=ELSEWHERE,
            choice=choice,
        )

    def _rate(self, way: str) -> float:
        """The share of right rollouts among those graded; lowest of all if none could be graded."""
        graded = [chain.right for chain in self.rollouts[way] if chain.status != "ungraded"]
        return sum(graded) / len(graded) if graded else -1.0

    def _chain(self, flow: Planned, *names: int | str, trunk: bool = False) -> Chain:
        return Chain(
            flow,
            self.problem,
            self.explore,
            seed=derive(self.seed, *names),
            trunk=trunk,
            between=self._run_program,
            checked=not trunk,
        )

    def _run_program(self, state: PlannedState) -> PlannedState:
        """Run the program that the state waits for, if the user has enabled programs."""
        waiting = self.flow.awaiting(state) if self.flow.programs else ()
        if not waiting:
            return state
        ran = run_program(code_of(self.runner.renderer.to_text(waiting)))
        return self.flow.with_output(state, output=ran.output, reason=ran.reason)
