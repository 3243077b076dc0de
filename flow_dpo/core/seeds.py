"""Seeds: every random number of a run is derived from the run's seed and the name of what is drawn.

Invariant: no generator is global and none is carried along, so the draws for one problem do not depend on which others
were sampled before it or at the same time:

    derive(7, "gsm8k/train/12", "trunk", 3)  ->  a 63-bit seed for the trunk's fourth turn
"""

from __future__ import annotations

import hashlib


def derive(*parts: int | str) -> int:
    """A seed in [0, 2**63) that depends on every part and its order, the same on every machine and Python."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
