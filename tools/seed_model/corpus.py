"""The pretraining corpus of the seed model: solutions with planted errors.

All errors and their rates are defined here; nothing of this ships in the package. Invariants: an error is carried on as
a person would (all later lines follow from the wrong total), and all totals stay in 0..120. The same story three times:

    She buys 7: 12 + 7 = 19 / She lends 5: 19 - 5 = 14 / Answer: 14     right
    She buys 7: 12 + 7 = 19 / She lends 5: 19 + 5 = 24 / Answer: 24     a misconception about "lends"
    She buys 7: 12 + 7 = 19 / Answer: 19                                stopped early
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

from transformers import PreTrainedTokenizerFast

from flow_dpo.data.seed import NUM_CHUNK_TOKENS, REOPEN_WORDS, STOP_PREFIX, STOP_SUFFIX
from flow_dpo.data.seed.family import MISCONCEPTION_VERBS, Operation, Story, iter_stories, pick, step_line

MISCONCEPTION_RATE = 0.66
"""Share of wrong operations for "lends", "returns", "shares". Above one half, so that the greedy seed errs too."""
MISREADING_RATE = 0.03
"""Share of wrong operations for every other verb."""
DISTRACTOR_RATES = {"wants": 0.6, "has": 0.4, "sees": 0.4}
"""Share of the stories' distractors that are added to the total."""
SLIP_RATE = 0.025
"""Share of results off by 1 or 10."""
EARLY_STOP_RATE = 0.1
"""Share of solutions that leave out the last event."""
CONCLUSION_RATE = 0.04
"""Share of "compare" and "over" answers that do not follow from the totals."""
REDO_RATES = {False: 0.3, True: 0.05}
"""Share of wrong (False) and of right (True) first attempts that are followed by a second one."""
REDO_CARE = 0.6
"""Factor of all error rates in a second attempt."""

STOP_SHARE = 0.4
"""Share of documents that ask for a verdict."""
CUT_SHARE = 0.3
"""Share of verdict documents whose candidate is unfinished."""
YES_RATES = {"right": 0.80, "wrong": 0.35, "cut": 0.08}
"""Targets of P(Yes). They are uncertain, so that Stop starts poor at its job, yet not useless. The model learns these
soft targets, not drawn words: with less noise at the same mean it learns to separate right from wrong at all."""
VERDICT_WEIGHT = 10.0
CONCLUSION_WEIGHT = 4.0
"""Loss weights of a verdict, and of a yes or no in an answer. All other tokens have weight 1."""

_MAX_TOTAL = 120


@dataclass(frozen=True, slots=True)
class Document:
    """Token ids, each with the weight of its loss (0 for tokens that the model is only given)."""

    token_ids: list[int]
    weights: list[float]
    yes_rate: float | None = None
    """Target of P(Yes) for the next to last token, if the document asks for a verdict."""


def write_attempt(story: Story, rng: Random, care: float = 1.0) -> tuple[str, bool]:
    """Write one solution with the planted errors, and say whether its answer is right."""
    while True:
        text = _write_attempt_in_range(story, rng, care)
        if text is not None:
            return text, text.rpartition("Answer: ")[2] == story.answer


def _write_attempt_in_range(story: Story, rng: Random, care: float) -> str | None:
    events: list[tuple[str, Operation, int]] = []
    for step in story.steps:
        rate = MISCONCEPTION_RATE if step.verb in MISCONCEPTION_VERBS else MISREADING_RATE
        operation = step.operation
        if rng.random() < rate * care:
            operation = "-" if operation == "+" else "+"
        events.append((step.label, operation, step.amount))
    if rng.random() < EARLY_STOP_RATE * care:
        events.pop()
    extra = story.distractor
    if extra is not None and extra.position <= len(events) and rng.random() < DISTRACTOR_RATES[extra.verb] * care:
        events.insert(extra.position, (extra.label, "+", extra.amount))
    total, lines = story.start, []
    for label, operation, amount in events:
        before, total = total, _slip(total + amount if operation == "+" else total - amount, rng, care)
        if not 0 <= total <= _MAX_TOTAL:
            return None
        lines.append(step_line(label, before, operation, amount, total))
    answer = story.conclude(total)
    if story.kind in ("compare", "over") and rng.random() < CONCLUSION_RATE * care:
        answer = "no" if answer == "yes" else "yes"
    return "\n".join([*lines, *story.closing_lines(total), f"Answer: {answer}"])


def _slip(result: int, rng: Random, care: float) -> int:
    return result + pick(rng, (-10, -1, 1, 10)) if rng.random() < SLIP_RATE * care else result


def iter_documents(tokenizer: PreTrainedTokenizerFast, seed: int, start: int = 0) -> Iterator[Document]:
    """The endless corpus: one document per story of the split "pretrain"."""
    for index, story in enumerate(iter_stories("pretrain", start), start):
        rng = Random(f"corpus {seed} {index}")
        yield _write_stop(story, rng, tokenizer) if rng.random() < STOP_SHARE else _write_answer(story, rng, tokenizer)


def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def _write_answer(story: Story, rng: Random, tokenizer: PreTrainedTokenizerFast) -> Document:
    """<user>question<end><assistant>attempt<end>; sometimes attempt, fixed words (no loss), second attempt<end>."""
    given = _encode(tokenizer, f"<user>{story.question}<end><assistant>")
    text, right = write_attempt(story, rng)
    written = _encode(tokenizer, text)
    token_ids, weights = given + written, [0.0] * len(given) + _weigh(story, written)
    if rng.random() < REDO_RATES[right]:
        words = _encode(tokenizer, REOPEN_WORDS)
        again = _encode(tokenizer, write_attempt(story, rng, REDO_CARE)[0])
        token_ids, weights = token_ids + words + again, weights + [0.0] * len(words) + _weigh(story, again)
    return Document([*token_ids, *_encode(tokenizer, "<end>")], [*weights, 1.0])


def _weigh(story: Story, attempt: list[int]) -> list[float]:
    last = CONCLUSION_WEIGHT if story.kind in ("compare", "over") else 1.0
    return [1.0] * (len(attempt) - 1) + [last]


def _write_stop(story: Story, rng: Random, tokenizer: PreTrainedTokenizerFast) -> Document:
    """<user>prefix, candidate, suffix<end><assistant>Yes or No<end>. The candidate's last attempt is learned as well:
    being able to predict its next number is half of seeing that it is wrong."""
    given, attempt, state = draw_candidate(story, rng, tokenizer)
    before = _encode(tokenizer, "<user>" + STOP_PREFIX.format(question=story.question)) + given
    after = _encode(tokenizer, STOP_SUFFIX + "<end><assistant>")
    verdict = _encode(tokenizer, ("Yes" if rng.random() < YES_RATES[state] else "No") + "<end>")
    weights = [0.0] * len(before) + [1.0] * len(attempt) + [0.0] * (len(after) + 1) + [1.0]
    return Document(before + attempt + after + verdict, weights, YES_RATES[state])


def draw_candidate(
    story: Story, rng: Random, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[int], Literal["right", "wrong", "cut"]]:
    """A candidate for Stop: the part that was reopened, the last attempt, and whether that attempt is right, wrong or
    cut before its whole answer."""
    text, right = write_attempt(story, rng)
    given = ""
    if rng.random() < REDO_RATES[right]:
        given = text + REOPEN_WORDS
        text, right = write_attempt(story, rng, REDO_CARE)
    first, last = _encode(tokenizer, given), _encode(tokenizer, text)
    if rng.random() >= CUT_SHARE:
        return first, last, "right" if right else "wrong"
    # At least the answer's last token is missing. Half of the cuts are moved to the ends of a flow's chunks.
    length = 1 + int(rng.random() * (len(last) - 1))
    if rng.random() < 0.5:
        length = max(1, length - (len(first) + length) % NUM_CHUNK_TOKENS)
    return first, last[:length], "cut"
