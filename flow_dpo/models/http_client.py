"""HTTP client on the standard library: one request to a server, with a deadline for the whole exchange.

    address = Address("http://127.0.0.1:8000", api_key="", deadline_s=60.0)
    answer = address.exchange("POST", "/v1/completions", b'{"prompt": [1, 5, 6]}')      # Answer(status=200, text=...)
    answer = address.retry("GET", "/v1/models", may_pass=busy, backoff_s=1.0, longest_wait_s=60.0, max_tries=5)

`retry` repeats an exchange, after a wait that doubles, as long as the failure can pass. No redirect is followed and no
proxy is used. An address can be used from several threads; `stop` aborts all pending exchanges. Invariants: the
deadline is for the whole of an exchange, however slowly bytes arrive; the API key is sent only to this address, and
appears in no answer and no error.
"""

from __future__ import annotations

import http.client
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from flow_dpo.core.errors import ConfigError, EngineError


class Passing(Exception):
    """A failure that can pass. `wait_s` is what the server asks for; `tries` and `seconds` are what `retry` spent."""

    def __init__(self, what: str, *, wait_s: float = 0.0, tries: int = 1, seconds: float = 0.0) -> None:
        super().__init__(what)
        self.wait_s, self.tries, self.seconds = wait_s, tries, seconds


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's response."""

    status: int
    text: str
    wait_s: float = 0.0
    """Seconds to wait before the next try, if the server states them (Retry-After)."""


def check_base_url(base_url: str) -> None:
    """Raise `ConfigError` if this is not a plain http or https address, or contains a secret."""
    try:
        url = urlsplit(base_url)
        known = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        url, known = urlsplit(""), False
    if not known or url.query or url.fragment or not base_url.isascii() or not base_url.isprintable():
        raise ConfigError(f"expected base_url such as http://127.0.0.1:8000/v1, found {base_url!r:.200}")
    if url.username is not None or url.password is not None:
        raise ConfigError("expected base_url without a name or password in it; put a key in OPENAI_API_KEY")


class Address:
    """One server's address, with its API key and deadline."""

    def __init__(self, base_url: str, *, api_key: str, deadline_s: float, max_bytes: int = 8 << 20) -> None:
        self.base_url = base_url
        self._url = urlsplit(base_url)
        self._key = api_key.strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise ConfigError("expected one line of printable ASCII in OPENAI_API_KEY, found something else")
        self._deadline_s, self._max_bytes = deadline_s, max_bytes
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()
        self.stopped = threading.Event()
        self.num_retries = 0
        """Number of repeated tries that `retry` has made."""

    def stop(self) -> None:
        """Abort all pending exchanges."""
        self.stopped.set()
        with self._lock:
            for connection in self._open:
                _shut(connection)

    def exchange(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """Send one request. Raises `Passing` if there is no complete answer within the deadline, `EngineError` for an
        answer of more than `max_bytes`."""
        kind = _TlsConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=self._deadline_s)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            with self._watched(connection) as late:
                try:
                    connection.connect()
                    if late.is_set() or self.stopped.is_set():  # nothing was there to be shut down yet
                        raise TimeoutError("stopped while connecting")
                    connection.request(method, self._url.path.rstrip("/") + path, body=body, headers=headers)
                    # An answer that is not read to its end keeps the socket open, whatever closes the connection.
                    with connection.getresponse() as response:
                        content = response.read(self._max_bytes + 1)
                except (OSError, http.client.HTTPException) as error:
                    raise Passing(self._late(late) or self._hidden(f"{type(error).__name__}: {error}")) from error
                if late.is_set():
                    raise Passing(self._late(late))
                # With a limit, `read` takes the end of the connection as the end of the answer.
                if response.length and len(content) <= self._max_bytes:
                    raise Passing(f"an answer that breaks off {response.length} bytes before its end")
        except (OSError, UnicodeError) as error:
            raise Passing(self._hidden(f"{type(error).__name__}: {error}")) from error
        finally:
            connection.close()
        if len(content) > self._max_bytes:
            raise EngineError(f"expected an answer from {self.base_url}, found over {self._max_bytes} bytes")
        text = self._hidden(content.decode("utf-8", "replace"))
        return Answer(response.status, text, _seconds(response.getheader("Retry-After")))

    def retry(
        self, method: str, path: str, body: bytes | None = None, *, may_pass: Callable[[Answer], bool],
        backoff_s: float, longest_wait_s: float, max_tries: float = math.inf, patience_s: float = math.inf,
    ) -> Answer:  # fmt: skip
        """Repeat the exchange until there is an answer for which `may_pass` is false.

        The wait between tries is `backoff_s`, doubled each time, or longer if the server asks for it, but at most
        `longest_wait_s`. Raises `Passing` after `max_tries`, `patience_s` after the first failure, or after `stop`.
        """
        since, tries = math.inf, 0
        while True:
            try:
                answer = self.exchange(method, path, body)
                if not may_pass(answer):
                    return answer
                failure = Passing(f"the status {answer.status}: {answer.text[:200]!r}", wait_s=answer.wait_s)
            except Passing as error:
                failure = error
            since, tries = min(since, time.monotonic()), tries + 1
            seconds = time.monotonic() - since
            if self.stopped.is_set() or tries >= max_tries or seconds >= patience_s:
                raise Passing(str(failure), tries=tries, seconds=seconds) from failure
            self.num_retries += 1
            growing_s = backoff_s * 2.0 ** min(tries - 1, 20)
            self.stopped.wait(min(max(failure.wait_s, growing_s), longest_wait_s))

    @contextmanager
    def _watched(self, connection: http.client.HTTPConnection) -> Iterator[threading.Event]:
        """Shut the connection down at its deadline, however slowly bytes arrive, or on `stop`; TLS's handshake, too."""
        late = threading.Event()

        def end() -> None:
            late.set()
            _shut(connection)

        timer = threading.Timer(self._deadline_s, end)
        timer.daemon = True
        with self._lock:
            self._open.add(connection)
        timer.start()
        try:
            yield late
        finally:
            timer.cancel()
            with self._lock:
                self._open.discard(connection)

    def _late(self, late: threading.Event) -> str:
        return f"no complete answer within {self._deadline_s:g} s" if late.is_set() else ""

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


class _TlsConnection(http.client.HTTPConnection):
    """An https connection whose handshake can be shut down: its socket is known before the handshake begins."""

    default_port = 443

    def connect(self) -> None:
        super().connect()
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        self.sock = context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
        self.sock.do_handshake()


def _shut(connection: http.client.HTTPConnection) -> None:
    """Shut down a connection from another thread, by the plain socket, without touching TLS's state."""
    opened: socket.socket | None = connection.sock
    if opened is None:
        return  # it is connecting, or closed
    try:
        socket.socket.shutdown(opened, socket.SHUT_RDWR)
    except OSError:
        return  # it is closed already


def _seconds(header: str | None) -> float:
    """Retry-After in seconds; its other form, a date, is left to the growing wait."""
    text = (header or "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0.0
