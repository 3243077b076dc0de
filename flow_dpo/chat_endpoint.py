"""How is a model behind an OpenAI-compatible address asked?

    endpoint = ChatEndpoint(EndpointSettings(base_url="http://127.0.0.1:8000/v1"), api_key="")
    endpoint.check()                                                     # refuses at once where nobody answers
    reply = endpoint.ask([{"role": "user", "content": "..."}], max_tokens=64)

The standard library alone; no redirect is followed and no proxy used. Each request has a deadline for the whole of it.
What may pass is tried again after a growing wait: a connection that fails, 429 and 5xx; nothing else is. Invariant: the
API key is sent to this address alone and is found in no reply, error or record.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from flow_dpo.errors import ConfigError, EngineError

_MOST_BYTES = 8 << 20
_LONGEST_WAIT_S = 60.0
_UNREADABLE = (ValueError, RecursionError)
"""What `json.loads` raises."""


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """An address that speaks the chat completions format. Its API key is read from OPENAI_API_KEY and nowhere else."""

    base_url: str = ""
    """Such as http://127.0.0.1:8000/v1; the model in this process is the judge where it is empty."""
    served_model: str = ""
    """The model's name there; may be left out where it serves one only."""
    concurrency: int = 8
    """Requests under way at once."""
    deadline_s: float = 120.0
    """Seconds that one request may take in all."""
    retries: int = 5
    """Further tries of a request that failed for a reason that may pass."""
    backoff_s: float = 1.0
    """Seconds before the first further try; twice as many before each that follows, a minute at most."""
    body: dict[str, Any] = field(default_factory=dict[str, Any])
    """Put into every request, such as {"reasoning_effort": "low"}; null takes a field out.
    It is recorded: no place for a secret."""

    def __post_init__(self) -> None:
        if not self.base_url:
            return
        try:
            url = urlsplit(self.base_url)
            known = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            url, known = urlsplit(""), False
        if not known or url.query or url.fragment or not self.base_url.isascii() or not self.base_url.isprintable():
            raise ConfigError(f"expected base_url such as http://127.0.0.1:8000/v1, found {self.base_url!r:.200}")
        if url.username is not None or url.password is not None:
            raise ConfigError("expected base_url without a name or password in it; give a key by OPENAI_API_KEY")
        if self.concurrency < 1 or self.retries < 0 or not 0 < self.deadline_s < 1e6 or not 0 <= self.backoff_s < 1e6:
            raise ConfigError(
                "expected concurrency of 1 at least, deadline_s above 0, retries and backoff_s of 0 or more, found "
                f"{self.concurrency}, {self.deadline_s}, {self.retries} and {self.backoff_s}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the model at the address said."""

    words: str
    finished: bool
    """It ended by itself and was not cut off."""
    tokens: int
    refused: bool = False
    """The address refused this one request (400, 413, 422); `words` are its reason."""


class _Passing(Exception):
    """A failure that may pass. `wait_s` is what the address asks for."""

    def __init__(self, what: str, wait_s: float = 0.0) -> None:
        super().__init__(what)
        self.wait_s = wait_s


class ChatEndpoint:
    """One address. `ask` may be called from several threads; after `stop` it raises."""

    def __init__(self, settings: EndpointSettings, *, api_key: str) -> None:
        self._settings = settings
        self._url = urlsplit(settings.base_url)
        self._key = api_key.strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise ConfigError("expected one line of printable ASCII in OPENAI_API_KEY, found something else in it")
        self._stopped = threading.Event()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.model = settings.served_model

    def check(self) -> None:
        """Raise `ConfigError` where the address does not answer, refuses the key, or the model is not named and is not
        the only one there."""
        base = self._settings.base_url
        try:
            status, text, _ = self._exchange("GET", "/models", None)
        except _Passing as error:
            raise ConfigError(
                f"expected an answer from {base}, found {error}; start the server there, or give another --base_url"
            ) from error
        if status in (401, 403):
            raise ConfigError(f"{base} refused the API key ({status}); set the environment variable OPENAI_API_KEY")
        if not self.model:
            names = _names(text) if status == 200 else []
            if len(names) != 1:
                raise ConfigError(
                    f"expected the name of a model at {base}, found none; give one with --served_model"
                    + (f", such as {', '.join(names[:5])}" if names else "")
                )
            self.model = names[0]

    def ask(self, messages: Sequence[Mapping[str, str]], *, max_tokens: int) -> Reply:
        """Greedy words to a chat. Raises `EngineError` where the address goes on failing, or speaks another format."""
        fields: dict[str, Any] = {
            "model": self.model, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0,
        } | self._settings.body  # fmt: skip
        body = json.dumps({name: value for name, value in fields.items() if value is not None}).encode("ascii")
        failed = ""
        for attempt in range(self._settings.retries + 1):
            try:
                status, text, wait_s = self._exchange("POST", "/chat/completions", body)
                if status == 429 or status >= 500:
                    raise _Passing(f"the status {status}: {text[:200]!r}", wait_s)
                return self._reply(status, text)
            except _Passing as error:
                failed = str(error)
                wait_s = max(error.wait_s, self._settings.backoff_s * 2.0 ** min(attempt, 20))
            if self._stopped.is_set():
                break
            if attempt < self._settings.retries:
                self._stopped.wait(min(wait_s, _LONGEST_WAIT_S))
        raise EngineError(
            f"expected an answer from {self._settings.base_url}, found {failed} after {self._settings.retries + 1} "
            "tries; what was answered so far is kept: look after the server and give the same command again "
            "(--deadline_s, --retries)"
        )

    def stop(self) -> None:
        """Give up whatever is under way."""
        self._stopped.set()
        with self._lock:
            for opened in self._open:
                _shut(opened)

    def _reply(self, status: int, text: str) -> Reply:
        base = self._settings.base_url
        if status in (400, 413, 422):
            return Reply(words=text[:2000], finished=False, tokens=0, refused=True)
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
        return Reply(words=words or "", finished=reason == "stop", tokens=known)

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, str, float]:
        """Status, text and the wait that the address asks for. Raises `_Passing` where there is no whole answer within
        the deadline."""
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        limit_s = self._settings.deadline_s
        connection = kind(self._url.hostname or "", self._url.port, timeout=limit_s)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            connection.connect()
            with self._watched(connection.sock, limit_s) as late:
                try:
                    connection.request(method, self._url.path.rstrip("/") + path, body=body, headers=headers)
                    response = connection.getresponse()
                    content = response.read(_MOST_BYTES + 1)
                except (OSError, http.client.HTTPException) as error:
                    raise _Passing(self._late(late) or self._hidden(f"{type(error).__name__}: {error}")) from error
                if late.is_set():
                    raise _Passing(self._late(late))
        except (OSError, UnicodeError) as error:
            raise _Passing(self._hidden(f"{type(error).__name__}: {error}")) from error
        finally:
            connection.close()
        if len(content) > _MOST_BYTES:
            raise EngineError(
                f"expected a chat completion from {self._settings.base_url}, found over {_MOST_BYTES} bytes"
            )
        text = self._hidden(content.decode("utf-8", "replace"))
        return response.status, text, _seconds(response.getheader("Retry-After"))

    @contextmanager
    def _watched(self, opened: socket.socket, limit_s: float) -> Iterator[threading.Event]:
        """Shut the connection when its time is over, however slowly bytes may come, or when all is given up."""
        late = threading.Event()

        def end() -> None:
            late.set()
            _shut(opened)

        timer = threading.Timer(limit_s, end)
        timer.daemon = True
        with self._lock:
            self._open.add(opened)
        timer.start()
        if self._stopped.is_set():
            _shut(opened)
        try:
            yield late
        finally:
            timer.cancel()
            with self._lock:
                self._open.discard(opened)

    def _late(self, late: threading.Event) -> str:
        return f"no whole answer within {self._settings.deadline_s:g} s" if late.is_set() else ""

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def _shut(opened: socket.socket) -> None:
    """End a connection from another thread: the plain socket's own way, which TLS's state does not notice."""
    try:
        socket.socket.shutdown(opened, socket.SHUT_RDWR)
    except OSError:
        return  # it is closed already


def _seconds(header: str | None) -> float:
    """Retry-After in seconds; its other form, a date, is left to the growing wait."""
    text = (header or "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0.0


def _names(text: str) -> list[str]:
    """The models that GET /models lists; none where the reply is something else."""
    try:
        found = json.loads(text)["data"]
        return [one["id"] for one in found if isinstance(one["id"], str)]
    except (*_UNREADABLE, LookupError, TypeError):
        return []
