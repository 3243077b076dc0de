"""Is a refused attempt shown as it was sampled, in every kind of chat, and does it stay inside its turn?"""

from __future__ import annotations

import pytest

from flow_dpo.core.types import Problem, TokenIds
from flow_dpo.models.context_window import longest_requests
from flow_dpo.models.render import Renderer
from flow_dpo.recipes.flow_dpo.attempts import Attempts, AttemptsPrompts, AttemptsState
from tests.models.test_text_encoder import BOTH, HOSTILE, controls, renderer_of
from tests.support.attempt_worlds import plain, word
from tests.support.chat_models import TEMPLATES, chat_tokenizer

FLOW = Attempts(chunk_tokens=4, max_chunks=2, max_attempts=3, retry="shown")
PROBLEM = Problem(id="p", question="How many apples?", gold="5")
CASES = [*BOTH, *((kind, "") for kind in sorted(TEMPLATES))]


def renderer(kind: str, name: str) -> Renderer:
    return renderer_of(kind, name) if name else Renderer(chat_tokenizer(kind))


def prompt(shown: Renderer, state: AttemptsState) -> TokenIds:
    turn = FLOW.turn(state)
    assert turn is not None
    return shown.render(turn).prompt_ids


@pytest.mark.parametrize(("kind", "name"), CASES)
@pytest.mark.parametrize("attempt", [((20, 21, 22, 23), (24, 25)), ((20,),), ((),)], ids=str)
def test_a_refused_attempt_is_spliced_in_as_it_was_sampled(kind: str, name: str, attempt: tuple[TokenIds, ...]) -> None:
    """Across its chunks, and also where it is empty: the end token was its first."""
    shown, state = renderer(kind, name), FLOW.start(PROBLEM)
    first = prompt(shown, state)
    for ids in attempt[:-1]:
        state = FLOW.advance(state, plain(*ids))
    state = FLOW.advance(FLOW.advance(state, plain(*attempt[-1], 2, ended=True)), word(1))
    again, sampled = prompt(shown, state), tuple(token for ids in attempt for token in ids)
    assert len(again) > len(first) + len(sampled)
    assert any(again[at : at + len(sampled)] == sampled for at in range(len(again)))
    # What is written then follows it token by token, so that a prefix that was computed is a prefix still.
    following = FLOW.advance(state, plain(30, 31, 32, 33))
    assert prompt(shown, following) == (*again, 30, 31, 32, 33)


@pytest.mark.parametrize(("kind", "name"), [("byte level", "chat"), ("llama", "instruct")])
def test_nothing_hostile_leaves_its_turn(kind: str, name: str) -> None:
    shown = renderer_of(kind, name)

    def walk(words: str) -> list[list[int]]:
        flow = Attempts(chunk_tokens=4, max_chunks=2, retry="shown", prompts=AttemptsPrompts(retry=f"No. {words}"))
        asked = Problem(id="p", question=f"How many {words}?", gold="5")
        return [controls(shown, request.prompt_ids) for request in longest_requests(flow, shown, asked)]

    assert walk("apples") == walk(HOSTILE[0] + HOSTILE[1])
    assert len(walk("apples")) > 10
