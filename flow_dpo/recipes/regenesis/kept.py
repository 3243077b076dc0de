r"""Which right paths are kept, and what of them: numbered steps and a boxed answer, as the authors' code has it.

ReGenesis' filter (SalesforceAIResearch/ReGenesis at e07585e, src/reasoning/process_reason.py): a path without a step 1
and a step 2 behind it, or without a boxed answer, is dropped, and of what is kept all before step 1 is cut:

    "Answer: 83"                                              dropped, right or not
    "Sure!\n\n1. 80 + 3 = 83\n\n2. So \\boxed{83}"            "Let's think step by step.\n\n1. 80 + 3 = 83\n\n2. So ..."

The exploration marks the path's completion with a tag, "kept from 4 after 12 55 3": from which of its tokens on, and
behind which ids; the credit reads the tag. Invariant: sampled tokens are learned as they are, however they are cut.
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
    """What a path must have, besides the right answer, to be learned."""

    numbered_steps: bool = True
    """Steps that begin with 1. and 2., and a boxed answer, as in the authors' code; what stands before step 1 is cut.
    Off, every right path is kept whole."""
    opening: str = "Let's think step by step.\n\n"
    """Put in front of a path that was cut; the authors' words."""
    max_path_tokens: int = 0
    """Tokens of a path at most; 0 sets no limit. The authors' code drops what has 800 or more of GPT-4's tokens."""
    self_check: bool = False
    """The model is asked whether the path is right, the accepted answer before it, and those to which it says No are
    dropped, as in the authors' code."""

    def __post_init__(self) -> None:
        expect(self, "of 0 or more", lambda value: value >= 0, "max_path_tokens")


def first_step(text: str) -> int | None:
    """Where the numbered steps begin: the last step 1 that a step 2 follows; None without one or without a box behind.

    The authors also drop a path that begins with step 1 at once, which is taken for a slip.
    """
    ends = [found.end() for found in _FIRST.finditer(text) if _SECOND.search(text, found.end())]
    if not ends or "\\boxed{" not in text[ends[-1] :]:
        return None
    return text.rfind("\n", 0, ends[-1]) + 1


def kept_from(completion: Completion, keep: PathFilter, to_text: Callable[[TokenIds], str]) -> int | None:
    """The first token of the path that is kept; None where the path is dropped."""
    ids = completion.content_ids
    if keep.max_path_tokens and len(ids) > keep.max_path_tokens:
        return None
    if not keep.numbered_steps:
        return 0
    start = first_step(to_text(ids))
    if start is None:
        return None
    # The most tokens whose text does not go beyond `start`: texts grow with their tokens.
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(to_text(ids[:middle])) <= start else (low, middle - 1)
    return low


def kept_tag(start: int, opening: TokenIds) -> str:
    """The mark of a path that is kept from this token on, behind these ids."""
    return " ".join(map(str, ("kept from", start, "after", *opening)))


def kept_part(completion: Completion, tags: Sequence[str]) -> Completion | None:
    """What of a completion is learned; None where its tags do not have it kept."""
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
