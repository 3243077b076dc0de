"""A small world for flows of attempts: two tokens and an end, and a Stop whose P(Yes) depends on the candidate.

Every attempt and its probability can be written down without the flow's states: `attempts` walks the table token by
token to one token beyond the cap, and knows neither chunks nor turns. With chunks of 1 and at most 2 of them:

    Written((1,), ended=True), Written((1, 2), ended=True), Written((1, 2, 1), ended=False), ...
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flow_dpo.core.explore import Explore
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.tree import Node, Tree
from flow_dpo.core.types import Completion, Message, Piece, Problem, Request, Solution, Status, TokenIds, Turn, Verdict
from flow_dpo.engines.scripted import TabularEngine
from flow_dpo.recipes.flow_dpo.attempts import Attempts
from tests.support.graders import FunctionGrader

END, YES, NO, ANSWER, STOP, SHOWN = 0, 90, 91, 100, 101, 103
PROBLEMS = [Problem(id=f"p{i}", question="?", gold="1") for i in range(6000)]


@dataclass(frozen=True)
class Written:
    """An attempt as it was sampled, without its end token."""

    ids: TokenIds
    ended: bool


def flat(pieces: Sequence[Piece]) -> TokenIds:
    """The sampled ids among the pieces, joined."""
    return tuple(token for piece in pieces if not isinstance(piece, str) for token in piece)


class BareIds:
    """A renderer for sampled ids: what a role is shown, behind the role's own mark."""

    def to_text(self, pieces: Sequence[Piece]) -> str:
        return " ".join(str(token) for token in flat(pieces))

    def render(self, turn: Turn) -> Request:
        if turn.choices:
            prompt = (STOP, *flat(turn.messages[1].content))
            return Request(role=turn.role, prompt_ids=prompt, choices=(YES, NO))
        refused = [one for one in turn.messages if one.role == "assistant"]
        prompt = (ANSWER, *_shown(refused), *flat(turn.continuation))
        return Request(role=turn.role, prompt_ids=prompt, max_tokens=turn.max_tokens)


def _shown(messages: Sequence[Message]) -> TokenIds:
    return tuple(token for message in messages for token in (SHOWN, *flat(message.content)))


@functools.cache
def next_probs(role: str, prefix: TokenIds) -> dict[int, float]:
    """Next tokens after anything that was shown or written: all possible, and different everywhere."""
    rng = random.Random(str((role, prefix)))
    if role == "stop":
        yes = rng.uniform(0.1, 0.9)
        return {YES: yes, NO: 1 - yes}
    weights = [rng.uniform(0.5, 2.0) for _ in range(3)]
    return {token: weight / sum(weights) for token, weight in zip((1, 2, END), weights, strict=True)}


def p_yes(ids: TokenIds) -> float:
    """Stop's probability of Yes for this candidate."""
    return next_probs("stop", (STOP, *ids))[YES]


def attempts(flow: Attempts, refused: Written | None) -> Iterator[tuple[Written, float]]:
    """Every attempt with its probability, given the one that was refused last. Knows no chunks."""
    shown = (SHOWN, *refused.ids) if refused is not None and flow.retry == "shown" else ()

    def walk(ids: TokenIds) -> Iterator[tuple[Written, float]]:
        if len(ids) > flow.chunk_tokens * flow.max_chunks:
            yield Written(ids, ended=False), 1.0
            return
        for token, p in next_probs("answer", (ANSWER, *shown, *ids)).items():
            for one, q in [(Written(ids, ended=True), 1.0)] if token == END else walk((*ids, token)):
                yield one, p * q

    return walk(())


def runner() -> RolloutRunner:
    """Samples from the table."""
    return RolloutRunner(TabularEngine(next_probs, end_ids={END}), BareIds())


def explore(flow: Attempts, settings: Explore, num: int, seed: int = 0) -> list[Tree]:
    """Trees of the first so many problems."""
    return settings(flow, runner(), PROBLEMS[:num], seed=seed)


@functools.cache
def status_of(ids: TokenIds, *, ended: bool, salt: int = 0) -> Status:
    """The verdict of a text, by chance but always the same; a text that was cut is wrong."""
    draw = random.Random(str((ids, salt))).random()
    if not ended:
        return "wrong"
    return "ungraded" if draw < 0.25 else "correct" if draw < 0.6 else "wrong"


def grader(salt: int = 0) -> FunctionGrader:
    """Gives the verdicts of `status_of`."""

    def find(items: Sequence[tuple[Problem, Solution]]) -> list[Verdict]:
        return [Verdict(status=status_of(flat(one.pieces), ended=one.ended, salt=salt)) for _, one in items]

    return FunctionGrader(find)


def written(nodes: Sequence[Node]) -> list[tuple[Written, Node | None]]:
    """The attempts on a path, read off its nodes by their tags, each with Stop's node where it was judged."""
    found: dict[str, list[Node]] = {}
    for node in nodes:
        found.setdefault(node.tags[-1], []).append(node)
    out: list[tuple[Written, Node | None]] = []
    for mine in found.values():
        answers = [node.completion for node in mine if node.role == "answer"]
        judge = next((node for node in mine if node.role == "stop"), None)
        ids = tuple(token for one in answers for token in one.token_ids if token != END)
        out.append((Written(ids, ended=answers[-1].finish_reason == "stop"), judge))
    return out


def plain(*ids: int, ended: bool = False) -> Completion:
    """A written completion, each token of probability one."""
    zeros = (0.0,) * len(ids)
    return Completion(
        token_ids=ids,
        logprobs=zeros,
        sampled_logprobs=zeros,
        finish_reason="stop" if ended else "length",
        policy_version=0,
    )


def word(choice: int, log_yes: float = -0.5, log_no: float = -0.93) -> Completion:
    """A choice of Stop."""
    logprobs = (log_yes, log_no)
    return Completion(
        token_ids=((YES, NO)[choice],),
        logprobs=logprobs[choice : choice + 1],
        sampled_logprobs=logprobs[choice : choice + 1],
        finish_reason="choice",
        policy_version=0,
        choice=choice,
        choice_logprobs=logprobs,
    )
