"""A client for chat completions of a model at an OpenAI-compatible address.

    endpoint = ChatEndpoint(EndpointSettings(base_url="http://127.0.0.1:8000/v1"), api_key="")
    endpoint.check()                                                     # raises at once if nobody answers
    reply = endpoint.ask([{"role": "user", "content": "..."}], max_tokens=64)

Failures that can pass are retried after a growing wait: a failed connection, 429 and 5xx; nothing else. Invariant: a
request ends in a reply or an error, within its deadline and its tries (`models.http_client` keeps the deadline).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flow_dpo.core.errors import ConfigError, EngineError
from flow_dpo.models.http_client import Address, Passing, check_base_url

_LONGEST_WAIT_S = 60.0
_UNREADABLE = (ValueError, RecursionError)
"""What `json.loads` raises."""


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """An address that serves chat completions. Its API key is read only from OPENAI_API_KEY."""

    base_url: str = ""
    """The address, such as http://127.0.0.1:8000/v1. If empty, the model in this process is the judge."""
    served_model: str = ""
    """The model's name on the server; can be left out if it serves only one."""
    concurrency: int = 8
    """Number of requests at the same time."""
    deadline_s: float = 120.0
    """Maximum duration of one try of a request, in seconds."""
    retries: int = 5
    """Number of retries of a request that failed for a reason that can pass."""
    backoff_s: float = 1.0
    """Seconds to wait before the first retry; doubled before each further one, up to a minute."""
    body: dict[str, Any] = field(default_factory=dict[str, Any])
    """Fields to add to every request, such as {"reasoning_effort": "low"}; null removes a field.
    They are recorded, so do not put a secret here."""

    def __post_init__(self) -> None:
        if not self.base_url:
            return
        check_base_url(self.base_url)
        if self.concurrency < 1 or self.retries < 0 or not 0 < self.deadline_s < 1e6 or not 0 <= self.backoff_s < 1e6:
            raise ConfigError(
                "expected concurrency of 1 at least, deadline_s above 0, retries and backoff_s of 0 or more, found "
                f"{self.concurrency}, {self.deadline_s}, {self.retries} and {self.backoff_s}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatReply:
    """The reply of the model at the address."""

    words: str
    finished: bool
    """Whether it ended by itself and was not cut off."""
    tokens: int
    refused: bool = False
    """Whether the server refused this one request (400, 413, 422); `words` is then its reason."""


class ChatEndpoint:
    """One address. `ask` can be called from several threads; after `stop` it raises."""

    def __init__(self, settings: EndpointSettings, *, api_key: str) -> None:
        self._settings = settings
        self._address = Address(settings.base_url, api_key=api_key, deadline_s=settings.deadline_s)
        self.model = settings.served_model

    def check(self) -> None:
        """Raise `ConfigError` if the server does not answer or refuses the key, or if no model is named and it does
        not serve exactly one."""
        base = self._settings.base_url
        try:
            answer = self._address.exchange("GET", "/models")
        except Passing as error:
            raise ConfigError(
                f"expected an answer from {base}, found {error}; start the server there, or give another --base_url"
            ) from error
        if answer.status in (401, 403):
            raise ConfigError(
                f"{base} refused the API key ({answer.status}); set the environment variable OPENAI_API_KEY"
            )
        if not self.model:
            names = _names(answer.text) if answer.status == 200 else []
            if len(names) != 1:
                raise ConfigError(
                    f"expected the name of a model at {base}, found none; give one with --served_model"
                    + (f", such as {', '.join(names[:5])}" if names else "")
                )
            self.model = names[0]

    def ask(self, messages: Sequence[Mapping[str, str]], *, max_tokens: int) -> ChatReply:
        """A greedy reply to a chat. Raises `EngineError` if the server keeps failing, or answers in another format."""
        fields: dict[str, Any] = {
            "model": self.model, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0,
        } | self._settings.body  # fmt: skip
        body = json.dumps({name: value for name, value in fields.items() if value is not None}).encode("ascii")
        settings = self._settings
        try:
            answer = self._address.retry(
                "POST", "/chat/completions", body, may_pass=lambda found: found.status == 429 or found.status >= 500,
                backoff_s=settings.backoff_s, longest_wait_s=_LONGEST_WAIT_S, max_tries=settings.retries + 1,
            )  # fmt: skip
        except Passing as error:
            raise EngineError(
                f"expected an answer from {settings.base_url}, found {error} after {error.tries} tries; earlier "
                "answers are kept: check the server and run the same command again (--deadline_s, --retries)"
            ) from error
        return self._reply(answer.status, answer.text)

    def stop(self) -> None:
        """Abort all pending requests."""
        self._address.stop()

    def _reply(self, status: int, text: str) -> ChatReply:
        base = self._settings.base_url
        if status in (400, 413, 422):
            return ChatReply(words=text[:2000], finished=False, tokens=0, refused=True)
        if status != 200:
            raise EngineError(
                f"expected a chat completion of {self.model} from {base}, found the status {status}: {text[:200]!r}; "
                "check --base_url, --served_model and OPENAI_API_KEY"
            )
        try:
            found = json.loads(text)
            choice = found["choices"][0]
            words, reason = choice["message"].get("content"), choice.get("finish_reason")
            if not (words is None or isinstance(words, str)):
                raise TypeError(f"content of type {type(words).__name__}")
            usage = found.get("usage")
            tokens = usage.get("completion_tokens") if isinstance(usage, dict) else 0
        except (*_UNREADABLE, LookupError, TypeError, AttributeError) as error:
            raise EngineError(
                f"expected a chat completion in JSON from {base}, found {text[:200]!r} ({error!r:.100}); is this an "
                "OpenAI-compatible address? It usually ends in /v1"
            ) from error
        known = tokens if isinstance(tokens, int) and 0 <= tokens < 1 << 40 else 0
        return ChatReply(words=words or "", finished=reason == "stop", tokens=known)


def _names(text: str) -> list[str]:
    """The models that GET /models lists; empty if the reply is something else."""
    try:
        found = json.loads(text)["data"]
        return [one["id"] for one in found if isinstance(one["id"], str)]
    except (*_UNREADABLE, LookupError, TypeError):
        return []
