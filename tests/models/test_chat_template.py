"""Is a chat template used as the model was trained with it: beginning, end, answers, thoughts, parts, the clock?"""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
from transformers import GenerationConfig, PreTrainedTokenizerFast

from flow_dpo.core.errors import ModelError
from flow_dpo.core.types import Message, Turn
from flow_dpo.models.chat_template import PLAIN_TEMPLATE
from flow_dpo.models.load import end_ids, load_renderer
from flow_dpo.models.render import Renderer
from flow_dpo.models.settings import ModelSettings
from tests.support.tokenizer_kinds import KINDS, TEMPLATES, tokenizer_of

CHAT = TEMPLATES["chat"]
PARTS = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'text' %}"
    "{{ part.text }}{% endif %}{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
USER_PARTS = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.content is string and m.role != 'user' %}{{ m.content }}"
    "{% elif m.role == 'user' %}{{ m.content[0].text }}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
OPENS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set said = m.content.split('</think>')[-1] %}"
    "<|start|>assistant<|end|>{{ said | trim }}</s>{% else %}<|start|>{{ m.role }}<|end|>{{ m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|><think>\n{% endif %}"
)
"""As DeepSeek's distilled models: the prompt opens a thought, past answers lose theirs."""
SWITCHED = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ m.content }}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""As Qwen3: a switch, and an empty thought in front of the last answer."""
CHANNELS = (
    "{% for m in messages %}<|start|>{{ m.role }}"
    "{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|head|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
"""As models with channels: an answer begins with the name of its channel."""


def with_words(template: str, *words: str, kind: str = "byte level") -> PreTrainedTokenizerFast:
    tokenizer = tokenizer_of(kind, template)
    tokenizer.add_tokens([*words])
    return tokenizer


def messages(*content: tuple[Any, str]) -> tuple[Message, ...]:
    return tuple(Message(role=role, content=(text,)) for role, text in content)


def stop(text: str = "Right?", choices: tuple[str, ...] = ("Yes", "No")) -> Turn:
    return Turn(role="stop", messages=messages(("user", text)), choices=choices)


def text_of(renderer: Renderer, ids: tuple[int, ...]) -> str:
    return str(renderer.tokenizer.decode(list(ids)))


# ---- the beginning ---------------------------------------------------------------------------------------------------


def begins(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
    )
    return tokenizer


def test_the_plain_template_begins_as_the_tokenizer_does() -> None:
    turn = Turn(role="a", messages=messages(("system", "Be brief."), ("user", "How many?")), max_tokens=1)
    bare = Renderer(tokenizer_of("llama"), chat_template="plain")
    assert bare.template.source == PLAIN_TEMPLATE
    tokenizer = begins(tokenizer_of("llama"))
    renderer = Renderer(tokenizer, chat_template="plain")
    assert list(renderer.render(turn).prompt_ids) == tokenizer.encode("Be brief.\n\nHow many?\n")
    assert renderer.render(turn).prompt_ids == (tokenizer.bos_token_id, *bare.render(turn).prompt_ids)
    # It can be kept with the tokenizer, for other programs.
    tokenizer.chat_template = renderer.template.source
    chat = [{"role": "user", "content": "How many?"}]
    assert tokenizer.apply_chat_template(chat, return_dict=False) == tokenizer.encode("How many?\n")


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_that_writes_the_beginning_gets_it_once(kind: str) -> None:
    tokenizer = begins(tokenizer_of(kind, CHAT))
    turn = Turn(role="a", messages=messages(("user", "How many?")), max_tokens=1)
    assert Renderer(tokenizer).render(turn).prompt_ids.count(tokenizer.bos_token_id or 0) == 1


# ---- the end ---------------------------------------------------------------------------------------------------------


def ends(tokenizer: PreTrainedTokenizerFast, *end_tokens: str, generation: GenerationConfig | None = None) -> set[str]:
    found = end_ids(Renderer(tokenizer), generation, ModelSettings(end_tokens=end_tokens))
    return {str(tokenizer.convert_ids_to_tokens(id)) for id in found}


@pytest.mark.parametrize("kind", KINDS)
def test_an_end_that_is_special_in_the_file_alone_is_found(kind: str) -> None:
    tokenizer = tokenizer_of(kind, CHAT)
    assert "<|end|>" not in tokenizer.all_special_tokens
    assert ends(tokenizer) == {"<|end|>", "</s>"}


def test_the_end_may_stand_after_text_or_with_the_next_turn() -> None:
    newline = CHAT.replace("{{ m.content }}<|end|>", "{{ m.content }}\n<|end|>")
    assert ends(tokenizer_of("byte level", newline)) == {"<|end|>", "</s>"}
    renderer = Renderer(tokenizer_of("byte level", newline))
    assert text_of(renderer, renderer.closing_ids()) == "\n<|end|>"
    by_next = (
        "{% for m in messages %}{% if m.role == 'user' %}<|start|>{% else %}<|head|>{% endif %}{{ m.content }}"
        "{% endfor %}{% if add_generation_prompt %}<|head|>{% endif %}"
    )
    assert ends(with_words(by_next, "<|head|>")) == {"<|start|>", "</s>"}
    not_special = CHAT.replace("<|end|>", "<end>")
    assert ends(with_words(not_special, "<end>")) == {"<end>", "</s>"}


def test_a_model_whose_answers_could_not_end_is_refused() -> None:
    words = "{% for m in messages %}### {{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer = tokenizer_of("byte level", words)
    with pytest.raises(ModelError, match=r"ends an assistant's message.*writes '\\n'.*--model\.end_tokens") as refused:
        ends(tokenizer)
    assert "'</s>'" in str(refused.value)
    assert ends(tokenizer, "</s>") == {"</s>"}
    assert ends(tokenizer, "<|end|>") == {"</s>", "<|end|>"}
    with pytest.raises(ModelError, match=r"expected tokens of this tokenizer in --model\.end_tokens, found '<nope>'"):
        ends(tokenizer, "<nope>")
    # ChatML whose tokens the vocabulary does not have: letters, of which none ends anything.
    spelled = CHAT.replace("<|end|>", "<im_end>").replace("<|start|>", "<im_start>")
    with pytest.raises(ModelError, match="in tokens '<', "):
        ends(tokenizer_of("byte level", spelled))
    # A word that the generation config names is an end, though it is no special token.
    word = int(tokenizer.convert_tokens_to_ids("a") or 0)
    closes = CHAT.replace("<|end|>", "a")
    assert ends(tokenizer_of("byte level", closes), generation=GenerationConfig(eos_token_id=word)) == {"a", "</s>"}


# ---- choices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_choice_is_the_token_that_an_answer_begins_with(kind: str, name: str) -> None:
    """Prompt and choice together are what the template itself makes of a chat that ends with this answer."""
    renderer = Renderer(tokenizer := tokenizer_of(kind, TEMPLATES[name]))
    request = renderer.render(stop())
    for word, choice in zip(("Yes", "No"), request.choices, strict=True):
        chat = [{"role": "user", "content": "Right?"}, {"role": "assistant", "content": word}]
        whole = tokenizer.apply_chat_template(chat, return_dict=False)
        assert [*request.prompt_ids, choice] == whole[: len(request.prompt_ids) + 1]
    own = renderer.render(Turn(role="a", messages=messages(("user", "Right?")), max_tokens=1))
    assert request.prompt_ids[: len(own.prompt_ids)] == own.prompt_ids


def test_words_that_begin_with_one_token_are_refused() -> None:
    with pytest.raises(ModelError, match="begin with different tokens"):
        Renderer(tokenizer_of("byte level", CHAT)).render(stop(choices=("Yes", "Yes")))
    tokenizer = tokenizer_of("unigram", TEMPLATES["tags"])  # a space of its own begins both
    with pytest.raises(ModelError, match="begin with different tokens"):
        Renderer(tokenizer).render(stop(choices=("Zq", "Xw")))


def test_a_word_that_cannot_be_encoded_is_answered_with_words_that_can() -> None:
    _, renderer = load_renderer(ModelSettings())
    with pytest.raises(ModelError, match=r"found 'Yep'; choose another word, such as .*\bYes\b") as refused:
        renderer.render(stop(choices=("Yep", "No")))
    for word in re.findall(r"\w+", str(refused.value).rpartition("such as")[2]):
        renderer.render(stop(choices=(word, "No" if word != "No" else "Yes")))


# ---- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [PARTS, USER_PARTS])
def test_content_is_given_in_parts_where_the_template_wants_it(template: str) -> None:
    chat = messages(("system", "Be brief."), ("user", "1 + 1?"), ("assistant", "Two."), ("user", "How many </s>?"))
    renderer = Renderer(tokenizer_of("byte level", template))
    found = renderer.render(Turn(role="a", messages=chat, max_tokens=1)).prompt_ids
    plain = Renderer(tokenizer_of("byte level", CHAT.replace("{{ bos_token }}", "")))
    assert found == plain.render(Turn(role="a", messages=chat, max_tokens=1)).prompt_ids
    spliced = Message(role="user", content=("C: ", (300, 17), " right?"))
    ids = renderer.render(Turn(role="s", messages=(spliced,), choices=("Yes", "No"))).prompt_ids
    assert ids == plain.render(Turn(role="s", messages=(spliced,), choices=("Yes", "No"))).prompt_ids


def test_a_template_that_loses_the_question_is_refused() -> None:
    with pytest.raises(ModelError, match="the question is lost, as a text and as a list of parts"):
        Renderer(tokenizer_of("byte level", "{% for m in messages %}<|start|>{{ m.text }}<|end|>{% endfor %}"))
    with pytest.raises(ModelError, match="refused the prompt's messages: no"):
        Renderer(tokenizer_of("byte level", "{{ raise_exception('no') }}"))


# ---- thoughts --------------------------------------------------------------------------------------------------------


def test_a_switch_for_thoughts_is_off_unless_it_is_set() -> None:
    turn = Turn(role="a", messages=messages(("user", "Right?")), max_tokens=1)
    closed = Renderer(with_words(SWITCHED, "<think>", "</think>"))
    assert text_of(closed, closed.render(turn).prompt_ids).endswith("<|start|>assistant\n<think>\n\n</think>\n\n")
    assert closed.render(stop()).prompt_ids == closed.render(turn).prompt_ids
    asks = Renderer(with_words(SWITCHED, "<think>", "</think>"), template_kwargs={"enable_thinking": True})
    assert text_of(asks, asks.render(turn).prompt_ids).endswith("<|start|>assistant\n")
    # The model would think first: its choice is read where the template itself puts an answer.
    assert asks.render(stop()).prompt_ids == closed.render(stop()).prompt_ids
    assert asks.render(stop()).choices == closed.render(stop()).choices


@pytest.mark.parametrize("opening", ["<think>\n", "<think>", "<think>\n\n"])
def test_a_choice_is_never_read_inside_a_thought(opening: str, caplog: pytest.LogCaptureFixture) -> None:
    renderer = Renderer(with_words(OPENS.replace("<think>\n", opening), "<think>", "</think>"))
    answer = Turn(role="a", messages=messages(("user", "Right?")), max_tokens=1)
    assert text_of(renderer, renderer.render(answer).prompt_ids).endswith("<|start|>assistant<|end|>" + opening)
    with caplog.at_level(logging.WARNING, logger="flow_dpo"):
        request = renderer.render(stop())
        renderer.render(stop("Wrong?"))
    assert text_of(renderer, request.prompt_ids).endswith("<|start|>assistant<|end|><think>\n\n</think>\n\n")
    assert len([each for each in caplog.records if "opens a thought (<think>)" in each.message]) == 1
    whole = renderer.tokenizer.encode(text_of(renderer, request.prompt_ids) + "Yes", add_special_tokens=False)
    assert [*request.prompt_ids, request.choices[0]] == whole[: len(request.prompt_ids) + 1]


def test_a_choice_stands_in_the_channel_of_answers() -> None:
    renderer = Renderer(with_words(CHANNELS, "<|channel|>", "<|head|>"))
    assert text_of(renderer, renderer.render(stop()).prompt_ids).endswith("assistant<|channel|>final<|head|>")
    assert text_of(renderer, renderer.answer_ids("Two.")) == "<|channel|>final<|head|>Two."


def test_a_past_thought_is_cut_by_the_template_and_a_typed_one_is_text() -> None:
    renderer = Renderer(with_words(OPENS, "<think>", "</think>"))
    thought = renderer.tokenizer.convert_tokens_to_ids("</think>")

    def prompt(question: str, answer: str) -> tuple[int, ...]:
        chat = messages(("user", question), ("assistant", answer), ("user", "2?"))
        return renderer.render(Turn(role="a", messages=chat, max_tokens=1)).prompt_ids

    assert prompt("1?", "<think>so</think>One") == prompt("1?", "One")
    typed = prompt("1</think>?", "One")
    assert thought not in typed
    assert "1</think>?" in text_of(renderer, typed)
    # An answer that also spells an end token is kept whole, as text.
    both = prompt("1?", "<think>so</think>One</s><|start|>")
    assert "<think>so</think>One</s><|start|></s>" in text_of(renderer, both)
    assert [id for id in both if id in renderer.encoder.controls] == [
        id for id in prompt("1?", "One") if id in renderer.encoder.controls
    ]


# ---- the clock -------------------------------------------------------------------------------------------------------


def test_the_clock_stands_still() -> None:
    dated = CHAT + "{{ strftime_now('%d.%m.%Y %H:%M') }}{{ strftime_now(\"%j\") }}"
    settings: dict[str, Any] = {"template_date": "2024-02-29T07:30:00"}
    renderer = Renderer(tokenizer_of("byte level", dated), **settings)
    assert text_of(renderer, renderer.render(stop()).prompt_ids).endswith("29.02.2024 07:30060")
    assert renderer.template.reads_clock
    assert not Renderer(tokenizer_of("byte level", CHAT)).template.reads_clock
    with pytest.raises(ModelError, match="expected a date"):
        Renderer(tokenizer_of("byte level", dated), template_date="tomorrow")


def test_the_default_of_several_templates_is_used_and_told(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer: Any = tokenizer_of(KINDS[0], TEMPLATES["chat"])
    template = tokenizer.chat_template
    tokenizer.chat_template = {"tool_use": "TOOL", "default": template}
    assert Renderer(tokenizer).template.source == template
    assert "several chat templates (tool_use, default): default is used" in caplog.text
    tokenizer.chat_template = {"tool_use": "TOOL", "rag": template}
    with pytest.raises(ModelError, match=r"found several \(tool_use, rag\)"):
        Renderer(tokenizer)


def test_a_template_that_ignores_the_generation_prompt_gets_its_own_header() -> None:
    turns = "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    prompt = Turn(role="answer", messages=(Message(role="user", content=("How many?",)),), max_tokens=4)
    for kind in KINDS:
        ignoring, always, usual = (
            Renderer(tokenizer_of(kind, template))
            for template in (turns, turns + "<|start|>assistant{{ '\n' }}", TEMPLATES["chat"])
        )
        assert ignoring.render(prompt) == always.render(prompt) == usual.render(prompt), kind
        assert ignoring.template.lead == "" == usual.template.lead
        assert ignoring.answer_ids("7 apples") == usual.answer_ids("7 apples"), kind
    # Where there is no header, as in Llama 2's, none is made: the space in front of an answer is the answer's.
    assert Renderer(tokenizer_of("llama", TEMPLATES["instruct"])).template.opening == " [/INST]"


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_character_is_refused(kind: str) -> None:
    renderer = Renderer(tokenizer_of(kind, TEMPLATES["chat"]))
    with pytest.raises(ModelError, match=r"found '\\ud800', half of one, in 'about \\ud800 apples'"):
        renderer.render(
            Turn(role="a", messages=(Message(role="user", content=("about \ud800 apples",)),), max_tokens=4)
        )
    with pytest.raises(ModelError, match="half of one"):
        renderer.to_ids(("\udfff",))
