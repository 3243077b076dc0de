"""A world in which every character is a token: prompts that a script can read, words that a test can see."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.types import Adapter, Piece, Problem, Request, Solution, TokenIds, Turn, Verdict
from flow_dpo.engines.scripted import ScriptedEngine, ScriptedReply
from flow_dpo.verify.equivalence import same
from flow_dpo.verify.extract import AnswerRule, extract_answer, gold_answer
from tests.support.graders import Find, FunctionGrader

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


def finds(rule: AnswerRule | None = None) -> Find:
    """Verdicts by exact comparison of what the rule reads."""

    def find(items: Sequence[tuple[Problem, Solution]]) -> list[Verdict]:
        found: list[Verdict] = []
        for asked, solution in items:
            text = Letters().to_text(solution.pieces)
            answer = extract_answer(text, ended=solution.ended, rule=rule or AnswerRule())
            right = answer is not None and same(gold_answer(asked.gold), answer) is True
            found.append(Verdict(status="correct" if right else "wrong", answer=answer))
        return found

    return find


def runner(
    script: Script, roles: Sequence[str] = ("answer",), version: int = 0, rule: AnswerRule | None = None
) -> RolloutRunner:
    """The script is given each request, its prompt as text and its seed, and says a text, or a choice's index."""

    def speak(request: Request, seed: int, _excluded: TokenIds) -> ScriptedReply | Sequence[int]:
        words = script(request, Letters().to_text([request.prompt_ids]), seed)
        return ScriptedReply(choice=words) if isinstance(words, int) else (*ids(words), END)[: request.max_tokens]

    made = RolloutRunner(ScriptedEngine(speak, end_ids={END}), Letters(), FunctionGrader(finds(rule)))
    made.refresh({role: Adapter(role=role, version=version) for role in roles})
    return made
