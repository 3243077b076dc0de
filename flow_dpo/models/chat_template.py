"""Chat template: a model's own Jinja text, applied to messages; what it does with them is found by trying it.

    template = ChatTemplate(tokenizer, source=None, variables={}, date="2026-11-28T09:30:00")
    template.apply([{"role": "user", "content": "2 + 3 = ?"}])      # "<|user|>2 + 3 = ?<|assistant|>"
    template.lead                                                  # text it writes before an answer, " " for Llama 2

Templates differ: some want content as a list of parts, refuse a system message, open a thought, read the clock.
Invariant: the question reaches the model, or the template is refused; thoughts are closed unless the user opens them;
the clock is fixed at `date`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from flow_dpo.core.errors import ModelError

log = logging.getLogger("flow_dpo")

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{% if message.content %}{{ message.content }}\n\n{% endif %}"
    "{% elif message.role == 'user' %}{{ message.content }}\n"
    "{% else %}{{ message.content }}{{ eos_token }}\n\n{% endif %}"
    "{% endfor %}"
)
"""Chat template for base models without one: system, question and solution as plain paragraphs."""
MARK = "\ue0f1"
"""A private-use character in place of spliced ids, or of a whole message, while a template is rendered."""
_THOUGHT_SWITCHES = ("enable_thinking", "thinking")
"""Variables with which templates close the thought before an answer if they are false."""
_THOUGHT = re.compile(r"([<\[◁])([\w:]*(?:think|thought|reason)\w*)([>\]▷])", re.IGNORECASE)
_CLOCK = re.compile(r"strftime_now\(\s*(\"[^\"]*\"|'[^']*')\s*\)")
_FAILURES = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What a template can raise if it gets messages that it does not expect."""

_QUESTION, _MESSAGE = "Zq7question", "Zq7message"
"""Texts that no template writes by itself."""

Chat = Sequence[Mapping[str, str]]
"""Messages, each with a role and a content."""


class ChatTemplate:
    """A chat template with its variables. Raises `ModelError` if there is none, or if it loses the question."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, source: str | None, variables: Mapping[str, Any], date: str = ""
    ) -> None:
        """`source` replaces the tokenizer's own; "plain" names `PLAIN_TEMPLATE`."""
        self._tokenizer = tokenizer
        own = _plain_template(tokenizer) if source == "plain" else source or tokenizer.chat_template
        if isinstance(own, dict) and "default" in own:
            log.warning("the tokenizer has several chat templates (%s): default is used", ", ".join(own))
            own = own["default"]
        if not isinstance(own, str):
            raise ModelError(
                "expected a tokenizer with one chat template, found "
                + ("none" if own is None else f"several ({', '.join(own)})")
                + "; give one with --model.chat_template (a Jinja text, or the word plain for a base model)"
            )
        self.source = own
        """The Jinja text, as a tokenizer can store it."""
        self.reads_clock = "strftime_now" in own
        self.date = date or datetime.now().isoformat(timespec="seconds")
        """The time that it gets if it asks for it, in ISO 8601."""
        now = _moment(self.date)
        self._pinned = _CLOCK.sub(lambda found: json.dumps(now.strftime(found[1][1:-1])), own)
        self._variables = {name: False for name in _THOUGHT_SWITCHES if re.search(rf"\b{name}\b", own)}
        self._variables |= variables
        self._header = ""
        """Header that the template writes before an answer in the chat, but not where an answer is asked for."""
        self._parts = frozenset[str]()
        self._parts = self._roles_in_parts()
        self.folds_system = self._must_fold_system()
        """Whether it ignores or refuses a system message, which is then put before the first question."""
        self._header = self._missing_header()
        self.opening = self.apply([{"role": "user", "content": "USER"}]).rpartition("USER")[2]
        """What it writes between a question and the answer."""
        self.opens_thought = _open_thought(self.opening)
        """The tag of a thought that `opening` leaves open; "" if there is none."""
        self.lead = self._lead()
        """The text between `opening` and an answer: what the template itself writes there, and the end of a thought
        that is open."""

    def apply(self, chat: Chat, *, answers: bool = True) -> str:
        """The rendered chat; with `answers`, up to where the assistant is to answer. Raises `ModelError` if the
        template refuses it."""
        try:
            text = self._apply(chat, answers)
        except _FAILURES as error:
            raise ModelError(f"the chat template refused the prompt's messages: {error}") from error
        return text + self._header if answers and chat[-1]["role"] != "assistant" else text

    def after_answer(self) -> list[str]:
        """What it writes after an assistant's message: at the end of a chat, and before another question."""
        found: list[str] = []
        for more in ([], [{"role": "user", "content": "USER"}]):
            chat = [{"role": "user", "content": "USER"}, {"role": "assistant", "content": MARK}, *more]
            try:
                found.append(self._apply(chat, False).rpartition(MARK)[2])
            except _FAILURES:
                continue
        return found

    def _apply(self, chat: Chat, answers: bool) -> str:
        messages = [
            {**each, "content": [{"type": "text", "text": each["content"]}]} if each["role"] in self._parts else each
            for each in chat
        ]
        given: dict[str, Any] = {**self._variables, "tokenize": False, "add_generation_prompt": answers}
        text = self._tokenizer.apply_chat_template(messages, chat_template=self._pinned, **given)  # pyright: ignore
        assert isinstance(text, str)
        return text

    def _holds(self, chat: Chat, text: str) -> bool:
        try:
            return text.lower() in self._apply(chat, False).lower()
        except _FAILURES:
            return False

    def _roles_in_parts(self) -> frozenset[str]:
        """The roles whose content it wants as a list of parts: those whose text would otherwise be lost."""
        chat = [{"role": "user", "content": _QUESTION}]
        wants: frozenset[str] = frozenset()
        if not self._holds(chat, _QUESTION):
            self._parts = wants = frozenset({"user"})
            if not self._holds(chat, _QUESTION):
                self._parts = frozenset()
                raise ModelError(
                    "expected a chat template that renders a user's message, found that the question is lost, as a "
                    f"text and as a list of parts: it makes {self.apply(chat)!r:.300} of it; give another with "
                    "--model.chat_template"
                )
        for role in ("assistant", "system"):
            message = {"role": role, "content": _MESSAGE}
            whole = [*chat, message] if role == "assistant" else [message, *chat]
            if not self._holds(whole, _MESSAGE):
                self._parts = wants | {role}
                wants = self._parts if self._holds(whole, _MESSAGE) else wants
                self._parts = wants
        return wants

    def _must_fold_system(self) -> bool:
        chat = [{"role": "system", "content": _MESSAGE}, {"role": "user", "content": _QUESTION}]
        return not self._holds(chat, _MESSAGE)

    def _missing_header(self) -> str:
        """The header before an answer, if the template ignores a request for one; "" if it is only whitespace."""
        chat = [{"role": "user", "content": "USER"}]
        before = self.apply(chat)
        lead = self._before_answer(before) if before == self._apply(chat, False) else ""
        return lead if lead.strip() else ""

    def _lead(self) -> str:
        lead = self._before_answer(self.apply([{"role": "user", "content": "USER"}]))
        return lead + _closing(self.opening + lead)

    def _before_answer(self, before: str) -> str:
        """What the template writes between `before`, a chat that asks for an answer, and the answer."""
        chat = [{"role": "user", "content": "USER"}]
        try:
            whole = self._apply([*chat, {"role": "assistant", "content": MARK}], False).rpartition(MARK)[0]
        except _FAILURES:
            whole = ""
        return whole[len(before) :] if whole.startswith(before) else ""


def _open_thought(text: str) -> str:
    """The last tag in a text that opens a thought, if the thought is not closed; otherwise ""."""
    found = ""
    for tag in _THOUGHT.finditer(text):
        found = tag[0] if _end_of(tag[0]) not in text[tag.end() :] else ""
    return found


def _end_of(tag: str) -> str:
    return f"{tag[0]}/{tag[1:]}"


def _closing(text: str) -> str:
    """What closes a thought that a text leaves open, in the form in which thinking models write an empty one."""
    tag = _open_thought(text)
    if not tag:
        return ""
    thought = text.rpartition(tag)[2]
    return "\n" * max(2 - thought.count("\n"), 0) + _end_of(tag) + "\n\n"


def _moment(date: str) -> datetime:
    try:
        return datetime.fromisoformat(date)
    except ValueError as error:
        raise ModelError(f"expected a date such as 2026-11-28 under --model.template_date, found {date!r}") from error


def added_in_front(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that the tokenizer itself writes before a text, such as its beginning-of-text token."""
    bare, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    size = next((at for at in range(len(whole)) if bare and whole[at : at + len(bare)] == bare), 0)
    return whole[:size]


def _plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    first = added_in_front(tokenizer)
    if first == [tokenizer.bos_token_id]:
        return "{{ bos_token }}" + PLAIN_TEMPLATE
    words = "".join(tokenizer.convert_ids_to_tokens(first))
    return f"{{{{ {json.dumps(words, ensure_ascii=False)} }}}}{PLAIN_TEMPLATE}" if words else PLAIN_TEMPLATE
