"""Prompt preview: what each role is asked about a problem, in tokens that say where they come from.

    [answer] = preview(flow, renderer, problem)[:1]
    answer.text()        # "⟦<|user|>⟧2 + 3 = ?⟦<|assistant|>⟧"

No model is needed: the flow is run with made-up completions of one token, and every kind of prompt on the way is
rendered as it would be for a rollout. Invariant: control tokens and text that spells them look different.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flow_dpo.core.flow import Flow
from flow_dpo.core.types import Completion, FinishReason, Problem, Request, Role, Turn
from flow_dpo.models.render import Renderer

_MOST_TURNS = 40
_FINISHES: tuple[FinishReason, ...] = ("stop", "length")
SAMPLED = "[...]"
"""Stands for what would be sampled."""
Kind = Literal["control", "text", "sampled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptToken:
    """A token of a prompt."""

    id: int
    text: str
    """Decoded by itself, or as the vocabulary spells it if that is not text."""
    kind: Kind
    """Whether it is a control token of the chat template, encoded from text, or sampled earlier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPreview:
    """A prompt of a role."""

    name: str
    """The role, with a number if it has several kinds of prompts."""
    role: Role
    request: Request
    tokens: tuple[PromptToken, ...]
    stretches: tuple[tuple[Kind, str], ...]
    """Stretches of tokens of one kind, each decoded together."""

    def text(self) -> str:
        """The prompt for people: control tokens in double brackets, `SAMPLED` for what would be sampled."""
        marked = {"control": "\u27e6{}\u27e7", "text": "{}", "sampled": SAMPLED}
        return "".join(marked[kind].format(_plain(text)) for kind, text in self.stretches)

    def facts(self) -> dict[str, str]:
        """The SHA-256 of its ids, and the text."""
        ids = [*self.request.prompt_ids, -1, *self.request.choices]
        return {"sha256": hashlib.sha256(json.dumps(ids).encode("ascii")).hexdigest(), "text": self.text()}


def preview(flow: Flow[Any], renderer: Renderer, problem: Problem) -> list[PromptPreview]:
    """The prompts of a rollout on this problem, one of each kind; kinds differ by more than what was sampled."""
    found: dict[tuple[Any, ...], Turn] = {}
    for finish_reason, takes_last in itertools.product(_FINISHES, (False, True)):
        for turn in _turns(flow, renderer, problem, finish_reason, takes_last=takes_last):
            found.setdefault(_kind(turn), turn)
    counts = dict[Role, int]()
    made: list[PromptPreview] = []
    for turn in found.values():
        number = counts[turn.role] = counts.get(turn.role, 0) + 1
        made.append(_preview(turn, renderer, turn.role if number == 1 else f"{turn.role} ({number})"))
    return made


def prompt_facts(flow: Flow[Any], renderer: Renderer, problems: Sequence[Problem]) -> dict[str, Any]:
    """The prompts for the first two problems, by problem and role, as recorded with a run."""
    return {problem.id: {one.name: one.facts() for one in preview(flow, renderer, problem)} for problem in problems[:2]}


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str]:
    """The first difference between two `prompt_facts`, as an excerpt from each."""
    for id in dict.fromkeys([*before, *now]):
        one, other = before.get(id, {}), now.get(id, {})
        for name in dict.fromkeys([*one, *other]):
            if one.get(name) != other.get(name):
                texts = [facts.get(name, {}).get("text", "none") for facts in (one, other)]
                at = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
                start = max(at - 30, 0)
                first, second = (f"{name} of {id}: {text[start : at + 50]!r}" for text in texts)
                return first, second if texts[0] != texts[1] else "the same text in other tokens"
    return "", ""


def _turns(
    flow: Flow[Any], renderer: Renderer, problem: Problem, finish_reason: FinishReason, *, takes_last: bool
) -> Iterator[Turn]:
    token = (renderer.to_ids(("...",)) or (0,))[0]
    state = flow.start(problem)
    for _ in range(_MOST_TURNS):
        turn = flow.turn(state)
        if turn is None:
            return
        yield turn
        state = flow.advance(state, _made_up(turn, token, finish_reason, takes_last=takes_last))


def _made_up(turn: Turn, token: int, finish_reason: FinishReason, *, takes_last: bool) -> Completion:
    """One token, followed by an end token if the completion ends; or a choice."""
    num = len(turn.choices)
    zeros = (0.0,) * (1 if num or finish_reason == "length" else 2)
    return Completion(
        token_ids=(token,) * len(zeros),
        logprobs=zeros,
        sampled_logprobs=zeros,
        finish_reason="choice" if num else finish_reason,
        policy_version=0,
        choice=(num - 1 if takes_last else 0) if num else None,
        choice_logprobs=(0.0,) * num,
    )


def _kind(turn: Turn) -> tuple[Any, ...]:
    """What distinguishes a prompt from others of its role: its texts, regardless of what was sampled in between."""
    pieces = [piece for message in turn.messages for piece in (message.role, *message.content)] + [*turn.continuation]
    return (turn.role, tuple(dict.fromkeys(piece for piece in pieces if isinstance(piece, str))), turn.choices)


def _preview(turn: Turn, renderer: Renderer, name: str) -> PromptPreview:
    request = renderer.render(turn)
    kinds: list[Kind] = []
    for sampled, ids in renderer.stretches(turn):
        kinds.extend("sampled" if sampled else "control" if id in renderer.encoder.controls else "text" for id in ids)
    # A choice can follow more than the prompt, or less: what the template writes before an answer.
    kinds = kinds[: len(request.prompt_ids)]
    for id in request.prompt_ids[len(kinds) :]:
        kinds.append("control" if id in renderer.encoder.controls else "text")
    decode = renderer.tokenizer.decode
    stretches: list[tuple[Kind, list[int]]] = []
    for id, kind in zip(request.prompt_ids, kinds, strict=True):
        if kind == "control" or not stretches or stretches[-1][0] != kind:
            stretches.append((kind, []))
        stretches[-1][1].append(id)
    return PromptPreview(
        name=name,
        role=turn.role,
        request=request,
        tokens=tuple(
            PromptToken(id=id, text=token_text(renderer, id), kind=kind)
            for id, kind in zip(request.prompt_ids, kinds, strict=True)
        ),
        stretches=tuple((kind, str(decode(ids, skip_special_tokens=False))) for kind, ids in stretches),
    )


def token_text(renderer: Renderer, id: int) -> str:
    """A token for people: its text with its leading space, or as the vocabulary spells it if it is not text."""
    word = str(renderer.tokenizer.convert_ids_to_tokens(id))
    text = str(renderer.tokenizer.decode([id], skip_special_tokens=False))
    if "\ufffd" in text or not text:
        return word
    return f" {text}" if word.startswith("\u2581") and not text.startswith(" ") else text


def _plain(text: str) -> str:
    """Text in which nothing looks like a marked control token."""
    return text.replace("\u27e6", "\\u27e6").replace("\u27e7", "\\u27e7")
