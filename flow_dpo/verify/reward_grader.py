"""Grader by reward functions: one call for all ended rollouts of a batch, and a real-valued reward in each verdict.

    grader = RewardGrader(RewardFunctions.of(brevity), answers, renderer, GradingSettings(correct_from=0.5))
    grader.grade(trees)       Verdict(status="correct", value=0.8, measures={"rewards/brevity": 0.8})

"Correct" is a reward of `correct_from` or more; what the verifier, as one of the functions, leaves ungraded stays
ungraded. Invariant: a solution that was checked during sampling is not rewarded
again when its tree is graded, so a function that draws random numbers or asks a model gives one verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Problem, Solution, TokenIds, Verdict
from flow_dpo.verify.grader import AnswerGrader, Decodes, GradingSettings
from flow_dpo.verify.rewards import RewardBatch, RewardFunctions, RewardState, answer_reward

_ROUNDING = 1e-9
"""A sum of floats that is below `correct_from` by no more than this still counts as correct."""
_Known = dict[tuple[str, str, TokenIds], Verdict]


class RewardGrader:
    """Grades solutions by reward functions (`core.grader.Grader`)."""

    def __init__(
        self, rewards: RewardFunctions, answers: AnswerGrader, renderer: Decodes, settings: GradingSettings
    ) -> None:
        """`answers` is the verifier, which is used if `answer_reward` is among the functions."""
        self._rewards, self._answers, self._renderer, self._settings = rewards, answers, renderer, settings
        self._known: _Known = {}
        """Verdicts that an exploration asked for, kept until their trees are graded."""
        self._version = 0

    def start(self, version: int) -> None:
        """Forget earlier verdicts: from now on, grade what adapters of this version sample."""
        self._version, self._known = version, {}

    def begin(self, problem: Problem, solution: Solution) -> None:
        """Start only the verifier early: reward functions are called on whole batches."""
        if self._reads_answers:
            self._answers.begin(problem, solution)

    def check(self, items: Sequence[tuple[Problem, Solution]]) -> list[Verdict]:
        """The verdict on each solution, in order."""
        keys = [(problem.id, self._renderer.to_text(one.pieces), _sampled(one)) for problem, one in items]
        new = [at for at, key in enumerate(keys) if key not in self._known]
        if new:
            chosen = [items[at] for at in new]
            answers = self._answers.check(chosen) if self._reads_answers else None
            texts = [self._renderer.to_text(one.attempt) for _, one in chosen]
            ids = [_sampled(one) for _, one in chosen]
            verdicts = self._graded([problem for problem, _ in chosen], texts, ids, answers)
            self._known |= {keys[at]: verdict for at, verdict in zip(new, verdicts, strict=True)}
        return [self._known[key] for key in keys]

    def grade(self, trees: Sequence[Tree]) -> None:
        """Store text and verdict with every rollout that was sampled to its end; all are graded in one call."""
        finished = [(tree, rollout) for tree in trees for rollout in tree.rollouts if rollout.value is None]
        versions = [node.completion.policy_version for tree in trees for node in tree.nodes]
        self._version = max([0, *versions])
        verdicts = self.check([(tree.problem, rollout.solution) for tree, rollout in finished])
        for (tree, rollout), verdict in zip(finished, verdicts, strict=True):
            tree.grade(rollout.id, self._renderer.to_text(rollout.solution.pieces), verdict)
        self._known = {}

    def check_texts(self, items: Sequence[tuple[Problem, str, bool]]) -> list[Verdict]:
        """The verdict on each text alone, in order. Functions get empty `completion_ids`."""
        answers = self._answers.check_texts(items) if self._reads_answers and items else None
        problems, texts = [problem for problem, _, _ in items], [text for _, text, _ in items]
        return self._graded(problems, texts, [()] * len(items), answers)

    @property
    def _reads_answers(self) -> bool:
        return answer_reward in self._rewards.functions.values()

    def _graded(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        ids: Sequence[TokenIds],
        answers: Sequence[Verdict] | None,
    ) -> list[Verdict]:
        if not problems:
            return []
        batch = RewardBatch(problems, texts, ids, RewardState(global_step=self._version))
        functions = self._rewards.functions
        by_verifier = [name for name, each in functions.items() if each is answer_reward]
        rights = [one.right for one in answers or ()]
        read = dict.fromkeys(by_verifier, rights)
        found = self._rewards.call(batch, read)
        weights = dict(zip(functions, self._rewards.weights, strict=True))
        metrics = {name: fmean(values) for name, values in batch.metrics.items()}
        verdicts: list[Verdict] = []
        for at in range(len(problems)):
            rewards = {name: value for name, values in found.items() if (value := values[at]) is not None}
            value = sum(weights[name] * reward for name, reward in rewards.items())
            known = Verdict(status="ungraded") if answers is None else answers[at]
            if not rewards:
                reason = known.reason or "no reward function gave a reward"
                verdicts.append(replace(known, status="ungraded", reason=reason))
                continue
            noted = replace(
                known,
                measures={**metrics, **{f"rewards/{name}": reward for name, reward in rewards.items()}},
                extra=batch.extra[at],
            )
            # What the verifier cannot grade is not wrong: without its part, the sum of the others is another reward.
            status = "correct" if value >= self._settings.correct_from - _ROUNDING else "wrong"
            undecided = answers is not None and known.status == "ungraded"
            verdicts.append(noted if undecided else replace(noted, status=status, value=value))
        return verdicts


def _sampled(solution: Solution) -> TokenIds:
    """The sampled tokens of the attempt that counts, without fixed text among them."""
    return tuple(id for piece in solution.attempt if not isinstance(piece, str) for id in piece)
