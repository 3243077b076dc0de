"""A world in which every character is a token: prompts that a script can read, words that a test can see."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flow_dpo.engines.scripted import Said, ScriptedEngine
from flow_dpo.speaker import Speaker
from flow_dpo.types import Adapter, Piece, Request, TokenIds, Turn

END = 0

Script = Callable[[Request, str, int], str | int]
"""Given a request, its prompt as text and its seed: a text, or a choice's index."""


def ids(text: str) -> TokenIds:
    return tuple(map(ord, text))


class Letters:
    """A renderer: "<user>What?<assistant>"."""

    def render(self, turn: Turn) -> Request:
        said = "".join(f"<{message.role}>{self.to_text(message.content)}" for message in turn.messages)
        prompt = ids(f"{said}<assistant>{self.to_text(turn.continuation)}")
        choices = tuple(ord(word[0]) for word in turn.choices)
        return Request(role=turn.role, prompt_ids=prompt, max_tokens=1 if choices else turn.max_tokens, choices=choices)

    def to_text(self, pieces: Sequence[Piece]) -> str:
        return "".join(piece if isinstance(piece, str) else "".join(map(chr, piece)) for piece in pieces)


def speaker(script: Script, roles: Sequence[str] = ("answer",), version: int = 0) -> Speaker:
    """The script is given each request, its prompt as text and its seed, and says a text, or a choice's index."""

    def speak(request: Request, seed: int, _excluded: TokenIds) -> Said | Sequence[int]:
        words = script(request, Letters().to_text([request.prompt_ids]), seed)
        return Said(choice=words) if isinstance(words, int) else (*ids(words), END)[: request.max_tokens]

    made = Speaker(ScriptedEngine(speak, end_ids={END}), Letters())
    made.refresh({role: Adapter(role=role, version=version) for role in roles})
    return made
