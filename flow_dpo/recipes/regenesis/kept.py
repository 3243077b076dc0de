r"""Which right paths are kept, and what part of them: numbered steps and a boxed answer, as in the authors' code.

ReGenesis' filter (SalesforceAIResearch/ReGenesis at e07585e, src/reasoning/process_reason.py): a path without a step 1
followed by a step 2, or without a boxed answer, is dropped. Of a path that is kept, everything before step 1 is cut:

    "Answer: 83"                                              dropped, right or not
    "Sure!\n\n1. 80 + 3 = 83\n\n2. So \\boxed{83}"            "Let's think step by step.\n\n1. 80 + 3 = 83\n\n2. So ..."

The exploration marks the path's completion with a tag, "kept from 4 after 12 55 3": the first of its tokens to keep,
and the ids to put before it; the credit reads it. Invariant: sampled tokens are learned as they are, however cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from flow_dpo.core.errors import expect
from flow_dpo.core.types import Completion, TokenIds
from flow_dpo.recipes.scored import ELSEWHERE

_FIRST = re.compile(r"^[\s#*>-]*(?:step\s+)?1\.(?!\d)", re.MULTILINE | re.IGNORECASE)
_SECOND = re.compile(r"^[\s#*>-]*(?:step\s+)?2\.(?!\d)", re.MULTILINE | re.IGNORECASE)
_TAG = re.compile(r"kept from (\d+) after((?: \d+)*)")


@dataclass(frozen=True, kw_only=True)
class PathFilter:
    """What a path must have to be learned, apart from the right answer."""

    numbered_steps: bool = True
    """Whether a path must have steps numbered 1 and 2 and a boxed answer, as in the authors' code; what comes before
    step 1 is cut. If off, every right path is kept whole."""
    opening: str = "Let's think step by step.\n\n"
    """Text put in front of a path that is kept for its numbered steps; the authors' words."""
    max_path_tokens: int = 0
    """Most tokens of a path; 0 sets no limit. The authors' code drops paths of 800 or more of GPT-4's tokens."""
    self_check: bool = False
    """Ask the model whether a path is right, with the accepted answer in the prompt, and drop those to which it says
    No, as in the authors' code."""

    def __post_init__(self) -> None:
        expect(self, "of 0 or more", lambda value: value >= 0, "max_path_tokens")


def first_step(text: str) -> int | None:
    """Where the numbered steps begin: at the last step 1 before a step 2; None without one or without a later box.

    The authors also drop a path that begins directly with step 1, which we take for a slip.
    """
    ends = [found.end() for found in _FIRST.finditer(text) if _SECOND.search(text, found.end())]
    if not ends or "\\boxed{" not in text[ends[-1] :]:
        return None
    return text.rfind("\n", 0, ends[-1]) + 1


def kept_from(completion: Completion, keep: PathFilter, to_text: Callable[[TokenIds], str]) -> int | None:
    """The index of the first token of the path that is kept; None if the path is dropped."""
    ids = completion.content_ids
    if keep.max_path_tokens and len(ids) > keep.max_path_tokens:
        return None
    if not keep.numbered_steps:
        return 0
    start = first_step(to_text(ids))
    if start is None:
        return None
    # The most tokens whose text does not go beyond `start`: a text grows with its tokens.
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(to_text(ids[:middle])) <= start else (low, middle - 1)
    return low


def kept_tag(start: int, opening: TokenIds) -> str:
    """The tag of a path that is kept from token `start` on, with the ids `opening` before it."""
    return " ".join(map(str, ("kept from", start, "after", *opening)))


def kept_part(completion: Completion, tags: Sequence[str]) -> Completion | None:
    """The part of a completion that is learned; None if no tag says that it is kept."""
    [found] = [found for tag in tags if (found := _TAG.fullmatch(tag))] or [None]
    if found is None:
        return None
    start, opening = int(found[1]), tuple(map(int, found[2].split()))
    zeros = (0.0,) * len(opening)
    return replace(
        completion,
        token_ids=opening + completion.token_ids[start:],
        logprobs=zeros + completion.logprobs[start:],
        sampled_logprobs=zeros + completion.sampled_logprobs[start:],
        policy_version=ELSEWHERE,
    )
