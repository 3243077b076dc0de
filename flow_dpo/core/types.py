"""The values that the parts exchange: problem, turn, request, completion, verdict, pair.

All are immutable and use only the standard library. Token ids are the truth everywhere; text is for verifiers and
people. From one problem to an example, with concrete tokens:

    Problem("gsm8k/7", "2 + 3 * 4 = ?", gold="14")
    Turn("answer", messages, continuation=((11, 12),))     what a flow asks for: text with sampled ids spliced into it
    Request("answer", prompt_ids=(1, 5, 6, 11, 12))        the same turn in token ids, as the engine gets it
    Completion(token_ids=(13, 2), finish_reason="stop")    what the engine sampled; 2 is the end token
    Pair(request, chosen, rejected)                        two completions of one request, the better one first
    ScoredCompletion(request, completion, advantage=0.7)   or one, and how much better it did than expected
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

Role = str
"""The name of a part in a flow and of the adapter that it is sampled with: "answer", "stop"."""

TokenIds = tuple[int, ...]

Piece = str | TokenIds
"""A stretch of a prompt: text that is still to be encoded, or sampled token ids that are spliced in as they are."""

FinishReason = Literal["stop", "stop_string", "length", "choice"]
Status = Literal["correct", "wrong", "ungraded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One question and its accepted final answer."""

    id: str
    """Unique within its data set and stable across machines."""
    question: str
    gold: str
    """The accepted final answer, never a worked solution; "" only if reward functions grade."""
    source: str = ""
    """Where it comes from: "gsm8k/train"."""
    solution: str = ""
    """A worked solution, written by a human or a program; "" if the data set has none."""
    level: str = ""
    subject: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any], compare=False, metadata={"unwritten": True})
    """The problem's row in the data set, for reward functions; never written to records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One chat turn of a prompt. `content` mixes text with spliced token ids."""

    role: Literal["system", "user", "assistant"]
    content: tuple[Piece, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The prompt of a role's turn: text, and the sampled ids that the role reads or continues."""

    role: Role
    messages: tuple[Message, ...]
    continuation: tuple[Piece, ...] = ()
    """What the assistant has already written in the turn that it now continues."""
    max_tokens: int = 1
    """Maximum length of the completion, including its end token. Ignored if `choices` are given."""
    choices: tuple[str, ...] = ()
    """If not empty, the completion is one of these words: all are scored in one forward pass, and one is drawn."""
    greedy: bool | None = None
    """Whether to take the likeliest token, whatever the exploration says; None leaves it to the exploration."""
    threshold: float | None = None
    """With two choices: take the first if its probability exceeds this, otherwise the second. None samples."""
    one_line: bool = False
    """End the completion with its first line that is not blank, at the token that holds the line break."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The distribution that a completion is drawn from."""

    temperature: float = 1.0
    top_p: float = 1.0
    greedy: bool = False
    """Take the likeliest token instead of drawing. `sampled_logprobs` are still those of `temperature` and `top_p`."""
    threshold: float | None = None
    """With two choices: take the first if its probability at temperature 1 exceeds this, otherwise the second; nothing
    is drawn. `sampled_logprobs` are still those of `temperature`."""
    stop_strings: tuple[str, ...] = ()
    """A text ends with the token that completes one of these. An engine can sample past it: the runner cuts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt for an engine to complete, in token ids."""

    role: Role
    prompt_ids: TokenIds
    max_tokens: int = 1
    choices: TokenIds = ()
    """One distinct token id per declared choice; the completion is one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What an engine sampled for one request."""

    token_ids: TokenIds
    """The sampled tokens, including the end token or the tokens of a stop string if one was sampled."""
    logprobs: tuple[float, ...]
    """Log-probability of each token in nats, under the unscaled, untruncated distribution; for a choice, under the
    distribution renormalised over the choices."""
    sampled_logprobs: tuple[float, ...]
    """The same under the distribution after temperature and top-p, before any token was excluded."""
    finish_reason: FinishReason
    policy_version: int
    """Version of the adapters that sampled it; -1 if it is learned under another request than it was sampled for."""
    choice: int | None = None
    """Index of the drawn choice, if the request declared choices."""
    choice_logprobs: tuple[float, ...] = ()
    """Unscaled log-probability of every declared choice, renormalised over the choices."""
    num_stop_tokens: int = 0
    """Number of final tokens that hold nothing but the stop string, if it ended with one."""
    raw_logprobs: tuple[float, ...] = field(default=(), metadata={"sparse": True})
    """`logprobs` as they were recorded, if a learner has converted them to its `logit_temperature`."""

    @property
    def content_ids(self) -> TokenIds:
        """The tokens without the sampled end token or stop string: the part that enters later context."""
        ending = {"stop": 1, "stop_string": self.num_stop_tokens}.get(self.finish_reason, 0)
        return self.token_ids[: max(0, len(self.token_ids) - ending)]

    @property
    def ended(self) -> bool:
        """Whether it ended by itself, with the end token or a stop string, rather than being cut off."""
        return self.finish_reason in ("stop", "stop_string")


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """What a rollout has written so far, for the verifier to read."""

    pieces: tuple[Piece, ...]
    ended: bool
    """Whether the Answer role's last completion ended with its end token or a stop string: nothing was cut off."""
    attempt_start: int = 0
    """Index of the first piece of the attempt that counts; earlier pieces belong to abandoned attempts."""

    @property
    def attempt(self) -> tuple[Piece, ...]:
        """The pieces of the attempt that counts, without fixed text after its last sampled ids."""
        pieces = self.pieces[self.attempt_start :]
        while pieces and isinstance(pieces[-1], str):
            pieces = pieces[:-1]
        return pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The three-valued result of a verifier, or of reward functions, which add a real-valued reward."""

    status: Status
    answer: str | None = None
    """The final answer that was found in the solution."""
    reason: str = ""
    value: float | None = field(default=None, metadata={"sparse": True})
    """The weighted sum of the reward functions; None if a verifier graded or nothing could be graded."""
    measures: Mapping[str, float] = field(default_factory=dict[str, float], hash=False, metadata={"sparse": True})
    """The value of each reward function ("rewards/brevity"), and whatever else it measured."""
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False, metadata={"sparse": True})
    """What the reward functions noted about this solution, for people."""

    @property
    def right(self) -> float | None:
        """1.0, 0.0, or None if it could not be graded; None is never averaged as zero."""
        return {"correct": 1.0, "wrong": 0.0, "ungraded": None}[self.status]

    @property
    def reward(self) -> float | None:
        """`value` if there is one, otherwise `right`; None if ungraded."""
        return self.right if self.value is None or self.status == "ungraded" else self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """The weights of one role after `version` updates of the policy."""

    role: Role
    version: int
    path: str = ""
    """A folder in PEFT's layout; "" if the engine shares the learner's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two different completions of one request, the better one first. They are never equal and never tied."""

    request: Request
    chosen: Completion
    rejected: Completion
    margin: float
    """Difference of the two rewards (1 for a verifier's verdicts) or of two values."""
    weight: float = 1.0
    """Factor of this pair's loss."""
    problem_id: str = ""
    chosen_node: int = 0
    """`chosen_node` and `rejected_node`: ids of the two siblings in the problem's tree."""
    rejected_node: int = 0
    depth: int = 0
    """Turns taken before this one."""
    tags: tuple[str, ...] = ()
    """The flow's tags for the state in which the pair was made, such as "finished" or "unfinished" for Stop."""
    verdicts: tuple[Verdict, ...] = ()
    """Verdicts on the two sides, chosen first, if they differ from those of the rollouts that sampled the two."""

    def __post_init__(self) -> None:
        if self.chosen.token_ids == self.rejected.token_ids:
            raise ValueError(f"a pair needs two different completions, found {self.chosen.token_ids} twice")
        if not self.margin > 0:
            raise ValueError(f"a pair needs a margin above 0 (a tie is not a preference), found {self.margin}")

    @property
    def completions(self) -> tuple[Completion, ...]:
        """The completions whose log-probabilities an objective reads: the chosen one, then the rejected one."""
        return (self.chosen, self.rejected)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredCompletion:
    """One completion, and how much better its rollout did than expected of its request."""

    request: Request
    completion: Completion
    advantage: float
    """In the reward's unit or in standard deviations, as the credit defines; never 0, which teaches nothing."""
    weight: float = 1.0
    """Factor of this example's loss."""
    problem_id: str = ""
    node: int = 0
    """Its id in the problem's tree."""
    depth: int = 0
    """Turns taken before this one."""
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not math.isfinite(self.advantage) or self.advantage == 0:
            raise ValueError(f"a scored completion needs a finite advantage that is not 0, found {self.advantage}")

    @property
    def completions(self) -> tuple[Completion, ...]:
        """The completions whose log-probabilities an objective reads."""
        return (self.completion,)


Example = Pair | ScoredCompletion
"""What a credit passes to an objective."""

ExampleT = TypeVar("ExampleT", Pair, ScoredCompletion, Example)


def by_role(examples: Sequence[ExampleT]) -> dict[Role, list[ExampleT]]:
    """Group examples by the role that was sampled, in order of first appearance."""
    groups: dict[Role, list[ExampleT]] = {}
    for example in examples:
        groups.setdefault(example.request.role, []).append(example)
    return groups
