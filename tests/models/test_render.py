"""Does a turn become the ids that its template says, with sampled ids untouched?"""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from flow_dpo.core.answer_stop import AnswerStop, AnswerStopPrompts, WorkedExample
from flow_dpo.core.errors import ModelError
from flow_dpo.core.types import Completion, Message, Problem, Turn
from flow_dpo.models.render import Renderer
from tests.support.chat_models import TEMPLATES, chat_tokenizer

PROBLEM = Problem(id="p", question="Anna has 12 apples. She buys 7 more. How many?", gold="19")
KINDS = sorted(TEMPLATES)


def turn(
    *content: str | tuple[int, ...], continuation: tuple[tuple[int, ...] | str, ...] = (), system: str = "Be brief."
) -> Turn:
    messages = (Message(role="system", content=(system,)), Message(role="user", content=content))
    return Turn(role="answer", messages=messages, continuation=continuation, max_tokens=4)


def template_ids(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]) -> list[int]:
    # Where the template has a switch for thoughts, it is off (docs/prompts.md).
    found = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, enable_thinking=False
    )
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_plain_prompts_are_the_templates_own(kind: str) -> None:
    tokenizer = chat_tokenizer(kind)
    found = Renderer(tokenizer).render(turn("How many apples?")).prompt_ids
    if kind == "gemma3":
        messages = [{"role": "user", "content": "Be brief.\n\nHow many apples?"}]
    else:
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many apples?"}]
    assert list(found) == template_ids(tokenizer, messages)


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_ids_are_spliced_in_untouched(kind: str) -> None:
    """Ids that no encoding of text would give, in the middle of a message and behind the prompt."""
    tokenizer = chat_tokenizer(kind)
    renderer = Renderer(tokenizer)
    odd = (300, 17, 17, 301)
    request = renderer.render(turn("Candidate:", odd, "\nCorrect?", continuation=((40, 41), "Wait.", (42,))))
    ids = request.prompt_ids
    at = next(i for i in range(len(ids)) if ids[i : i + 4] == odd)
    before = renderer.render(turn("Candidate:")).prompt_ids
    assert ids[:at] == before[:at]
    assert ids[-(3 + len(renderer.encode("Wait."))) :] == (40, 41, *renderer.encode("Wait."), 42)
    text = tokenizer.decode(list(ids[at + 4 :]))
    assert text.startswith("\nCorrect?<|end|>")


@pytest.mark.parametrize("kind", KINDS)
def test_a_growing_solution_only_appends(kind: str) -> None:
    """Chunk k+1's prompt is chunk k's prompt and chunk k's sampled ids; Stop's prompts share all up to the
    candidate."""
    renderer = Renderer(chat_tokenizer(kind))
    flow = AnswerStop(chunk_tokens=3, max_chunks=4)
    state = flow.start(PROBLEM)
    answers, stops = [], []
    while (asked := flow.turn(state)) is not None:
        request = renderer.render(asked)
        (stops if request.choices else answers).append(request)
        if request.choices:
            said = Completion(
                token_ids=(request.choices[1],), logprobs=(-1.0,), sampled_logprobs=(-1.0,), finish_reason="choice",
                policy_version=0, choice=1, choice_logprobs=(-1.0, -0.5),
            )  # fmt: skip
        else:
            ids = tuple(100 + 3 * len(answers) + i for i in range(3))
            said = Completion(
                token_ids=ids,
                logprobs=(-1.0,) * 3,
                sampled_logprobs=(-1.0,) * 3,
                finish_reason="length",
                policy_version=0,
            )
        state = flow.advance(state, said)
    for k, request in enumerate(answers):
        said_ids = tuple(t for j in range(k) for t in range(103 + 3 * j, 106 + 3 * j))
        assert request.prompt_ids == answers[0].prompt_ids + said_ids
    first = stops[0].prompt_ids.index(103)
    for k, request in enumerate(stops):
        assert request.prompt_ids[:first] == stops[0].prompt_ids[:first]
        assert request.prompt_ids[first : first + 3 * (k + 1)] == tuple(range(103, 106 + 3 * k))
        assert request.prompt_ids[first + 3 * (k + 1) :] == stops[0].prompt_ids[first + 3 :]


@pytest.mark.parametrize("kind", KINDS)
def test_choices_are_the_tokens_that_stand_there(kind: str) -> None:
    tokenizer = chat_tokenizer(kind)
    asked = Turn(role="stop", messages=turn("Correct?").messages, choices=("Yes", "No"))
    request = Renderer(tokenizer).render(asked)
    rendered = tokenizer.decode(list(request.prompt_ids))
    for word, choice in zip(("Yes", "No"), request.choices, strict=True):
        assert tokenizer.encode(rendered + word, add_special_tokens=False)[len(request.prompt_ids)] == choice
    assert request.max_tokens == 1


def test_choices_that_begin_alike_are_refused() -> None:
    asked = Turn(role="stop", messages=turn("Correct?").messages, choices=("Yes", "Yes"))
    with pytest.raises(ModelError, match="begin with different tokens"):
        Renderer(chat_tokenizer("llama")).render(asked)


def test_an_empty_system_keeps_the_default_text_away() -> None:
    found = Renderer(tokenizer := chat_tokenizer("qwen2")).render(turn("How many?", system="")).prompt_ids
    assert "default" not in tokenizer.decode(list(found))


def test_worked_examples_survive_a_template_that_rewrites_assistant_turns() -> None:
    prompts = AnswerStopPrompts(examples=(WorkedExample(question="1 + 1?", solution="1 + 1 = 2.\nAnswer: 2"),))
    flow = AnswerStop(prompts=prompts)
    for kind in KINDS:
        asked = flow.turn(flow.start(PROBLEM))
        assert asked is not None
        text = (tokenizer := chat_tokenizer(kind)).decode(list(Renderer(tokenizer).render(asked).prompt_ids))
        assert text.index("1 + 1?") < text.index("Answer: 2") < text.index("Anna has 12")


def test_template_kwargs_reach_the_template() -> None:
    tokenizer = chat_tokenizer("qwen3")
    ids = Renderer(tokenizer, template_kwargs={"enable_thinking": False}).render(turn("Hi")).prompt_ids
    assert tokenizer.decode(list(ids)).endswith("<think>\n\n</think>\n\n")


def test_without_a_template_there_is_a_clear_error_and_a_plain_one() -> None:
    with pytest.raises(ModelError, match="chat_template"):
        Renderer(chat_tokenizer(None))
    tokenizer = chat_tokenizer(None)
    ids = Renderer(tokenizer, chat_template="plain").render(turn("How many?")).prompt_ids
    assert tokenizer.decode(list(ids)) == "Be brief.\n\nHow many?\n"


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_decoded_together(kind: str) -> None:
    """A boundary inside a character is no boundary in the text."""
    renderer = Renderer(tokenizer := chat_tokenizer(kind))
    ids = tuple(tokenizer.encode("Answer: 19 \u20ac", add_special_tokens=False))
    assert renderer.to_text([ids[:-1], ids[-1:]]) == "Answer: 19 \u20ac"


@pytest.mark.parametrize(("kind", "closing"), [("llama", "<|end|>"), ("qwen2", "<|end|>"), ("gemma3", "<|end|>")])
def test_the_templates_end_token_is_found(kind: str, closing: str) -> None:
    renderer = Renderer(tokenizer := chat_tokenizer(kind))
    assert renderer.closing_id() == tokenizer.convert_tokens_to_ids(closing)
