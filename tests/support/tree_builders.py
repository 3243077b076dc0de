"""Trees drawn by hand, for tests."""

from __future__ import annotations

from collections.abc import Sequence

from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Completion, Problem, Request, Solution, Status, Verdict


class IdTexts:
    """Each token's text is its id: (5, 91) is "5,91,". Ids from 1,000 on are special tokens."""

    def split(self, ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        return "".join(map(self.piece, ids)), ()

    def piece(self, id: int) -> str:
        return "" if id >= 1000 else f"{id},"

    def name(self, id: int) -> str:
        return f"<{id}>" if id >= 1000 else ""


def problem(name: str = "p1") -> Problem:
    return Problem(id=name, question="1 + 1 = ?", gold="2")


def completion(*token_ids: int, choice: int | None = None, version: int = 0) -> Completion:
    return Completion(
        token_ids=token_ids,
        logprobs=(-0.5,) * len(token_ids),
        sampled_logprobs=(-0.5,) * len(token_ids),
        finish_reason="length" if choice is None else "choice",
        policy_version=version,
        choice=choice,
        choice_logprobs=() if choice is None else (-0.5, -0.9),
    )


def request(role: str, *prompt_ids: int) -> Request:
    return Request(role=role, prompt_ids=prompt_ids, max_tokens=3, choices=(90, 91) if role == "stop" else ())


def graded(tree: Tree, *statuses: Status) -> Tree:
    for rollout, status in enumerate(statuses):
        tree.grade(rollout, "", Verdict(status=status))
    return tree


def valued(tree: Tree, *values: float | None) -> Tree:
    """The tree with these rewards of its rollouts; None is ungraded."""
    for rollout, value in enumerate(values):
        status: Status = "ungraded" if value is None else "wrong"
        tree.grade(rollout, "", Verdict(status=status, value=value))
    return tree


def two_chunk_tree(*statuses: Status) -> Tree:
    """The trunk answers 5 6, is refused, answers 7, is accepted; an alternative hangs at each of its four nodes.

    A0 -- S1 -- A2 -- S3            rollout 0
    A4 -- S5                        rollout 1, for A0
    A0 -- S6                        rollout 2, flips S1
    A0 -- S1 -- A7 -- S8            rollout 3, for A2
    A0 -- S1 -- A2 -- S9 -- A10     rollout 4, flips S3
    """
    tree = Tree(problem=problem())
    a0, s1 = (
        (request("answer", 1), completion(5, 6), ()),
        (request("stop", 2, 5, 6), completion(91, choice=1), ("unfinished",)),
    )
    a2 = (request("answer", 1, 5, 6), completion(7), ())
    s3 = (request("stop", 2, 5, 6, 7), completion(90, choice=0), ("finished",))
    solution = Solution(pieces=((5, 6, 7),), ended=True)
    tree.add_rollout(None, [a0, s1, a2, s3], solution)
    tree.add_rollout(
        None,
        [(a0[0], completion(5, 8), ()), (request("stop", 2, 5, 8), completion(90, choice=0), ("finished",))],
        solution,
    )
    tree.add_rollout(0, [(s1[0], completion(90, choice=0), ("unfinished",))], solution)
    tree.add_rollout(
        1,
        [(a2[0], completion(9), ()), (request("stop", 2, 5, 6, 9), completion(90, choice=0), ("finished",))],
        solution,
    )
    tree.add_rollout(
        2,
        [(s3[0], completion(91, choice=1), ("finished",)), (request("answer", 1, 5, 6, 7), completion(4), ())],
        solution,
    )
    return graded(tree, *statuses)
