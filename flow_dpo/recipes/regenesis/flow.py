r"""ReGenesis' flow: from a general guideline to a solution in three turns of one role.

ReGenesis (arXiv 2410.02108, section 3.1): adapt general guidelines to the problem, turn them into a structure of steps,
and only then reason along it. With one guideline:

    adapt      "Break the problem into parts."  ->  "Find what the apples cost, then what is left of the money."
    structure  ->  "1. Multiply apples and price. 2. Subtract from the money."
    path       the problem's own prompt and the structure  ->  "1. 3 * 2 = 6 ... \boxed{4}"

The path's prompt is that of the plain turn that it will be learned for, followed by `words.path`, so system text and
worked examples are the same. Each turn's sampled ids go into the next prompt unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from flow_dpo.core.flow import Flow
from flow_dpo.core.prompts import check_gaps, fill
from flow_dpo.core.types import Completion, Message, Piece, Problem, Role, Solution, Turn

HINTED = "hinted"
"""Tag of turns in a rollout whose prompts contain the accepted answer, which is sampled only if no other was kept."""
GUIDELINES = (
    "Say in your own words what is asked for before you begin.",
    "List every given quantity with its unit, and leave out what does not matter.",
    "Break the problem into smaller parts that can be solved one after another.",
    "Work backwards from what is asked to what is known.",
    "Give names to the unknown quantities and write down how they are related.",
    "Solve an easier version first, and see what changes in the full problem.",
    "Try small or extreme cases to see how the quantities behave.",
    "Look for a pattern, a symmetry or something that stays the same.",
    "Go through the events in the order in which they happen and keep track of every change.",
    "Draw a table or a picture of the situation in words.",
    "Estimate the answer roughly, so that a wrong result will stand out.",
    "Write every calculation on a line of its own, and finish it before you go on.",
    "Keep units through the whole calculation and check that they fit.",
    "Check every step as soon as it is written, before you build on it.",
    "Put the result back into the problem and see whether all conditions hold.",
    "Solve the problem a second way and compare the two results.",
    "Ask which assumptions you are making, and whether the text supports them.",
    "Tell apart what is known for certain and what has to be found out.",
    "Recall a similar problem, and use what worked there.",
    "Consider several approaches briefly and take the simplest that is sure to work.",
    "Rule out what is impossible until one possibility is left.",
    "Separate the general rule from the particular numbers, and apply the rule last.",
    "Watch for words that change a meaning, such as each, more than, left, or at least.",
    "Think of the mistake that is most easily made here, and avoid it.",
    "Sum up what each part has shown, and draw the conclusion from that alone.",
)
"""25 general guidelines, in our own words; the paper has 25, too."""


@dataclass(frozen=True, kw_only=True)
class GuidedWords:
    """The prompts of the three turns, in our own words, not the paper's. `{question}` is the problem, `{guidelines}`,
    `{adapted}` and `{structure}` are what the turn before has made, `{gold}` is the accepted answer."""

    adapt: str = (
        "Problem:\n{question}\n\nGeneral advice:\n{guidelines}\n\n"
        "Rewrite the advice so that it fits this very problem, in a few sentences. Do not solve the problem yet."
    )
    structure: str = (
        "Problem:\n{question}\n\nAdvice:\n{adapted}\n\n"
        "Turn the advice into a short numbered list of the steps that solve this problem. Do not calculate yet."
    )
    path: str = (
        "\n\nFollow this plan, and do not mention it:\n{structure}\n\nWrite fewer than 8 steps, each a paragraph that "
        "begins with its number (1., 2.), and end with the final answer as \\boxed{answer}."
    )
    """Follows the question in the plain prompt."""
    plan_hint: str = "\n\nThe final answer is {gold}. Do not mention it."
    """Follows the first two prompts of a hinted path."""
    hint: str = "\n\nThe final answer is {gold}. Give the reasoning that leads to it, as if nobody had told you."
    """Follows the path's prompt of a hinted path."""
    check: str = (
        "Problem:\n{question}\n\nSolution:\n{solution}\n\nThe correct answer is {gold}. Is the solution correct? "
        "Answer Yes or No."
    )
    """With `explore.keep.self_check`: asks whether the path is right."""

    def __post_init__(self) -> None:
        question = ("question",)
        needs = {"adapt": question, "structure": question, "path": (), "hint": (), "plan_hint": (), "check": question}
        check_gaps(self, needs, ("question", "guidelines", "adapted", "structure", "gold", "solution"))


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidedState:
    """A problem, and what was made of the guidelines so far."""

    problem: Problem
    adapted: tuple[Piece, ...] | None = None
    structure: tuple[Piece, ...] | None = None
    path: Completion | None = None
    checked: bool = False
    """Whether the model was asked if the path is right (`Checked`)."""


@dataclass(frozen=True, kw_only=True)
class Guided(Flow[GuidedState]):
    """Adapt, structure, path: one role, three turns."""

    plain: Turn
    """The plain turn that asks the problem's question, text alone: the path's prompt begins with it."""
    guidelines: tuple[str, ...] = GUIDELINES[:1]
    """One guideline, or a group of them."""
    hinted: bool = False
    """Whether all three prompts contain the accepted answer."""
    plan_tokens: int = 256
    """Longest adapted advice and longest structure, in tokens; not stated in the paper."""
    words: GuidedWords = field(default_factory=GuidedWords)

    roles: ClassVar[tuple[Role, ...]] = ("answer",)

    def start(self, problem: Problem) -> GuidedState:
        return GuidedState(problem=problem)

    def turn(self, state: GuidedState) -> Turn | None:
        if state.path is not None:
            return None
        values: dict[str, tuple[Piece, ...]] = {
            "question": (state.problem.question,),
            "guidelines": ("\n".join(self.guidelines),),
            "adapted": state.adapted or (),
            "structure": state.structure or (),
            "gold": (state.problem.gold,),
        }
        if state.adapted is None or state.structure is None:
            words = self.words.adapt if state.adapted is None else self.words.structure
            hint = self.words.plan_hint if self.hinted else ""
            messages = (Message(role="user", content=fill(words + hint, values)),)
            return Turn(role=self.plain.role, messages=messages, max_tokens=self.plan_tokens)
        *before, last = self.plain.messages
        suffix = fill(self.words.path + (self.words.hint if self.hinted else ""), values)
        return replace(self.plain, messages=(*before, replace(last, content=(*last.content, *suffix))))

    def advance(self, state: GuidedState, completion: Completion) -> GuidedState:
        if state.adapted is None:
            return replace(state, adapted=(completion.content_ids,))
        if state.structure is None:
            return replace(state, structure=(completion.content_ids,))
        return replace(state, path=completion)

    def solution(self, state: GuidedState) -> Solution:
        if state.path is None:
            return Solution(pieces=(), ended=False)
        return Solution(pieces=(state.path.content_ids,), ended=state.path.ended)

    def tags(self, state: GuidedState) -> tuple[str, ...]:
        stage = "adapt" if state.adapted is None else "structure" if state.structure is None else "path"
        return (stage, HINTED) if self.hinted else (stage,)


@dataclass(frozen=True, kw_only=True)
class Checked(Guided):
    """The same, with the self-check after the path: all that a rollout can ask for, which must fit the window."""

    def turn(self, state: GuidedState) -> Turn | None:
        if state.path is None or state.checked:
            return super().turn(state)
        return self_check_turn(self.words, state.problem, state.path.content_ids)

    def advance(self, state: GuidedState, completion: Completion) -> GuidedState:
        return super().advance(state, completion) if state.path is None else replace(state, checked=True)


def self_check_turn(words: GuidedWords, problem: Problem, path: Piece) -> Turn:
    """The question whether a path is right, with the accepted answer in the prompt."""
    gaps: dict[str, tuple[Piece, ...]] = {"question": (problem.question,), "solution": (path,), "gold": (problem.gold,)}
    message = Message(role="user", content=fill(words.check, gaps))
    return Turn(role=Guided.roles[0], messages=(message,), choices=("Yes", "No"))
