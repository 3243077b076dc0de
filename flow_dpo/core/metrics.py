"""Metrics of a run: progressive validation with its confidence interval, and counts of a batch of trees.

Progressive validation (arXiv 2410.22304, section 2.3): the share of problems that the flow solved *before* it learned
from them, cumulative and over the last window. What could not be graded was not shown to be right, so it counts as not
solved; the share among the graded problems is given as well.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from flow_dpo.core.stats import wilson
from flow_dpo.core.tree import Rollout, Tree
from flow_dpo.core.types import Example, Pair, ScoredCompletion, Verdict

NUM_EVIDENCE = 512
"""Number of most recent rows of evidence that are kept."""


@dataclass(kw_only=True)
class ProgressiveValidation:
    """Counts of the trunk's verdicts, each taken before the flow learned from its problem."""

    window: int = 250
    num_seen: int = 0
    num_graded: int = 0
    num_correct: int = 0
    num_ungraded: int = 0
    """Problems whose answer could not be graded. A problem whose trunk stopped with a value has no answer: it counts
    only in `num_seen`."""
    recent: deque[float] = field(default_factory=deque[float])
    """For the last `window` problems with an answer: 1 if it is right, 0 if it is wrong or could not be graded."""
    first: tuple[int, int] = (0, 0)
    """Number of correct problems and of all problems in the first window."""
    values: tuple[float, int] = (0.0, 0)
    """Sum and number of the real-valued rewards, if reward functions grade."""
    evidence: deque[dict[str, Any]] = field(default_factory=lambda: deque[dict[str, Any]](maxlen=NUM_EVIDENCE))
    """The most recent evidence, on which the flow is calibrated (`Flow.evidence`)."""

    @property
    def num_answered(self) -> int:
        """Problems with an answer, graded or not."""
        return self.num_graded + self.num_ungraded

    def see(self, verdict: Verdict | None, evidence: Sequence[dict[str, Any]] = ()) -> None:
        """Count one problem; the verdict is None if its trunk has no answer."""
        self.num_seen += 1
        self.evidence.extend(evidence)
        if verdict is None:
            return
        reward, (total, count) = verdict.right, self.values
        self.values = self.values if verdict.value is None else (total + verdict.value, count + 1)
        self.num_graded += reward is not None
        self.num_ungraded += reward is None
        self.num_correct += int(reward or 0)
        self.recent.append(reward or 0.0)
        if len(self.recent) > self.window:
            self.recent.popleft()
        if self.num_answered <= self.window:
            self.first = (self.num_correct, self.num_answered)

    def row(self) -> dict[str, float | int]:
        """The progressive part of a metrics row."""
        low, high = wilson(self.num_correct, self.num_answered)
        window_low, window_high = wilson(int(sum(self.recent)), len(self.recent))
        rewards = {"progressive/reward": self.values[0] / self.values[1]} if self.values[1] else {}
        return {
            "problems_seen": self.num_seen,
            "progressive/accuracy": self.num_correct / max(self.num_answered, 1),
            "progressive/accuracy_graded": self.num_correct / max(self.num_graded, 1),
            "progressive/ungraded": self.num_ungraded,
            "progressive/low": low,
            "progressive/high": high,
            "progressive/window_accuracy": sum(self.recent) / max(len(self.recent), 1),
            "progressive/window_low": window_low,
            "progressive/window_high": window_high,
            "progressive/window_problems": len(self.recent),
        } | rewards

    def state(self) -> dict[str, Any]:
        """All fields, as JSON values."""
        lists = {"recent": list(self.recent), "first": list(self.first), "evidence": list(self.evidence)}
        return {name: value for name, value in vars(self).items() if name != "values" or self.values[1]} | lists

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ProgressiveValidation:
        """The counts that `state` returned. Old states without evidence are accepted."""
        evidence = deque[dict[str, Any]](state.get("evidence", ()), maxlen=NUM_EVIDENCE)
        recent, first = deque(state["recent"]), tuple(state["first"])
        lists = {"recent": recent, "first": first, "evidence": evidence}
        return cls(**{**state, **lists, "values": tuple(state.get("values", (0.0, 0)))})


def tree_metrics(trees: Sequence[Tree], examples: Sequence[Example], roles: Sequence[str]) -> dict[str, float | int]:
    """Counts of one batch of trees: pairs, ties and skipped nodes by role, ungraded rollouts, Stop's choices.

    "num_verdicts" counts rollouts with a verdict; one that stopped with a value has none. "tied_trees" counts trees
    whose graded rollouts are all right or all wrong, with no other values: a credit that compares rollouts learns
    nothing from them, one that keeps right solutions learns from those that are all right.
    "ties/<role>" counts the trunk nodes with siblings of which two or more rollouts were graded, all with the same
    reward; "ungraded/<role>" counts those of which fewer than two were graded. Both describe the trees, whatever the
    credit makes of them.
    """
    pairs = [example for example in examples if isinstance(example, Pair)]
    num_scored = Counter(example.request.role for example in examples if isinstance(example, ScoredCompletion))
    verdicts = [rollout.verdict for tree in trees for rollout in tree.rollouts if rollout.verdict is not None]
    row: dict[str, float | int] = {
        "num_trees": len(trees),
        "num_rollouts": sum(len(tree.rollouts) for tree in trees),
        "num_verdicts": len(verdicts),
        "ungraded_rate": sum(verdict.status == "ungraded" for verdict in verdicts) / max(len(verdicts), 1),
        "no_answer_rate": sum(v.answer is None and v.value is None for v in verdicts) / max(len(verdicts), 1),
        "tied_trees": sum(len(_rewards(tree)) < 2 for tree in trees),
        **_reward_metrics(verdicts),
    }
    for role in roles:
        mine = [pair for pair in pairs if pair.request.role == role]
        compared = [rewards for tree in trees for rewards in _compared(tree, role)]
        row[f"nodes/{role}"] = sum(node.role == role for tree in trees for node in tree.trunk_nodes())
        row[f"pairs/{role}"] = len(mine)
        if num_scored[role]:
            row[f"scored/{role}"] = num_scored[role]
        row[f"skipped/{role}"] = sum(tree.skipped.get(role, 0) for tree in trees)
        row[f"ties/{role}"] = sum(len(rewards) > 1 and len(set(rewards)) == 1 for rewards in compared)
        row[f"ungraded/{role}"] = sum(len(rewards) < 2 for rewards in compared)
        row |= _choice_metrics(role, mine, trees)
    return row


def _reward_metrics(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Mean and standard deviation of the reward and of each reward function; means of their other measures."""
    found: dict[str, list[float]] = {}
    for verdict in verdicts:
        for name, value in {} if verdict.value is None else {"reward": verdict.value, **verdict.measures}.items():
            found.setdefault(name, []).append(value)
    own = {name: name.startswith("rewards/") for name in found}
    row = {f"{name}/mean" if own[name] else name: fmean(values) for name, values in found.items()}
    spread = {name: stdev([*values, values[0]][: max(len(values), 2)]) for name, values in found.items()}
    return row | {f"{n}/std" if own[n] else f"{n}_std": spread[n] for n in found if own[n] or n == "reward"}


def _compared(tree: Tree, role: str) -> Iterator[list[float]]:
    """For each trunk node of a role that has siblings: the rewards of their rollouts that were graded."""
    for node in tree.trunk_nodes():
        siblings = tree.children(node.parent)
        if node.role == role and len(siblings) > 1:
            worths = [_worth(tree.rollout_of(sibling)) for sibling in siblings]
            yield [worth for worth in worths if worth is not None]


def _rewards(tree: Tree) -> set[float]:
    """The distinct rewards of a tree's graded rollouts, and values of those that stopped."""
    return {worth for rollout in tree.rollouts if (worth := _worth(rollout)) is not None}


def _worth(rollout: Rollout) -> float | None:
    """A rollout's reward, or the value of the state in which it stopped; None if it has neither."""
    return rollout.value if rollout.verdict is None else rollout.verdict.reward


def _choice_metrics(role: str, pairs: Sequence[Pair], trees: Sequence[Tree]) -> dict[str, float | int]:
    """How often a choosing role picks its first choice, and how often its pairs prefer that choice."""
    choosing = [pair for pair in pairs if pair.request.choices]
    choices = [
        node
        for tree in trees
        for node in tree.trunk_nodes()
        if node.role == role and node.completion.choice is not None
    ]
    row: dict[str, float | int] = {}
    if choices:
        row[f"{role}/yes_rate"] = sum(node.completion.choice == 0 for node in choices) / len(choices)
    if choosing:
        row[f"{role}/prefer_yes_rate"] = sum(pair.chosen.choice == 0 for pair in choosing) / len(choosing)
        finished = sum("finished" in pair.tags for pair in choosing)
        row[f"pairs/{role}_finished"] = finished
        row[f"pairs/{role}_unfinished"] = len(choosing) - finished
    return row
