"""What can be trained without a download? A small arithmetic problem family, a 0.9M-parameter model, its prompts.

Endless arithmetic stories, and a language model that was pretrained on flawed solutions of them, so that two roles
visibly learn on a laptop. Everything except the model file needs only the standard library. Invariant: the prompts
below are exactly those that the model was pretrained on. Its tokenizer is word level, so any other wording works but
starts untrained (or contains `<unk>`). One Stop prompt, with the candidate between the constants:

    Problem: Anna has 12 apples. She buys 7 apples. How many apples does Anna have now?
    Solution:
    She buys 7: 12 + 7 = 19
    Answer: 19
    Is it correct? Say Yes or No.

May import what the room data may import.
"""

from __future__ import annotations

from pathlib import Path

from flow_dpo.data.seed.family import SEED_SPLITS, iter_seed_problems, seed_problems
from flow_dpo.data.seed.step_checker import StepVerdict, check_steps, is_sound, judge_steps

__all__ = [
    "MAX_CHUNKS",
    "MODEL_FOLDER",
    "NUM_CHUNK_TOKENS",
    "REOPEN_WORDS",
    "SEED_SPLITS",
    "STOP_CHOICES",
    "STOP_PREFIX",
    "STOP_SUFFIX",
    "StepVerdict",
    "check_steps",
    "is_sound",
    "iter_seed_problems",
    "judge_steps",
    "seed_problems",
]

MODEL_FOLDER = Path(__file__).parent / "model"
"""The embedded model in transformers' layout, with its tokenizer and its model card."""

STOP_PREFIX = "Problem: {question}\nSolution:\n"
"""The Stop role's prompt before the candidate (`str.format` with `question`)."""
STOP_SUFFIX = "\nIs it correct? Say Yes or No."
"""The Stop role's prompt after the candidate. It begins with the newline that ends the candidate's last line."""
STOP_CHOICES = ("Yes", "No")
REOPEN_WORDS = "\nWait, that is wrong.\n"
"""Replaces the end token of a finished answer that Stop rejects; the next attempt starts from scratch."""

NUM_CHUNK_TOKENS = 16
MAX_CHUNKS = 8
"""Together 128 tokens: an ordinary solution (at most about 57 tokens) and a second attempt."""
