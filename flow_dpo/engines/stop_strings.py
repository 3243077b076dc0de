"""Stop strings: whether a completion's last token completes one of the texts that end it.

The runner cuts every completion at its first stop string (`core.rollouts`), whichever engine sampled it. An engine that
can decode stops there, so it samples nothing that would be cut:

    stopped((8, 9, 4), Sampling(stop_strings=("###",)), to_text)      # True where 4 completes "###"

Invariant: only the last tokens are decoded, so a string that began in the prompt can be missed here, and is found by
the runner. There are no false positives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flow_dpo.core.types import FinishReason, Sampling, TokenIds

ToText = Callable[[TokenIds], str]
"""Decodes tokens together, leaving out control tokens."""
_MOST_BYTES = 4
"""Maximum number of bytes in a character; each byte can be a token."""


def stopped(token_ids: Sequence[int], sampling: Sampling, to_text: ToText | None) -> bool:
    """Whether one of the stop strings is at, or just before, the end of the tokens' text; False without `to_text`."""
    if not sampling.stop_strings or to_text is None:
        return False
    most = _MOST_BYTES * max(map(len, sampling.stop_strings)) + 1
    text = to_text(tuple(token_ids[-most:]))
    return any(string in text for string in sampling.stop_strings)


def finish_reason(token_ids: Sequence[int], sampling: Sampling, to_text: ToText | None, *, ended: bool) -> FinishReason:
    """Why a completion ends: its end token (`ended`), a stop string, or its length."""
    return "stop" if ended else "stop_string" if stopped(token_ids, sampling, to_text) else "length"
