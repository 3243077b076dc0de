"""Is an answer over HTTP a whole one, within its time, or a failure that may pass?"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flow_dpo.core.errors import ConfigError, EngineError
from flow_dpo.models.http_client import Address, Answer, Passing, check_base_url


@contextmanager
def saying(*pieces: bytes, pause_s: float = 0.0) -> Iterator[str]:
    """A server that says these bytes to whoever asks first, piece by piece, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                for piece in pieces:
                    try:
                        connection.sendall(piece)
                    except OSError:
                        return  # whoever asked has hung up
                    time.sleep(pause_s)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


def _ask(url: str, *, deadline_s: float = 5.0, max_bytes: int = 100) -> Answer:
    return Address(url, api_key="secret", deadline_s=deadline_s, max_bytes=max_bytes).exchange("GET", "/x")


def test_a_whole_answer() -> None:
    with saying(b"HTTP/1.1 503 No\r\nContent-Length: 9\r\nRetry-After: 7\r\n\r\n", b"my secret") as url:
        assert _ask(url) == Answer(503, "my [key]", 7.0)
    with saying(b"HTTP/1.1 200 OK\r\n\r\n", b"until the end") as url:
        assert _ask(url).text == "until the end"


def test_an_answer_that_breaks_off_may_pass() -> None:
    with (
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"half") as url,
        pytest.raises(Passing, match="5 bytes before its end"),
    ):
        _ask(url)
    with saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n") as url, pytest.raises(Passing, match="breaks off"):
        _ask(url)
    with saying(b"") as url, pytest.raises(Passing):
        _ask(url)


def test_bytes_that_come_slowly_do_not_stretch_the_deadline() -> None:
    drops = [b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n", *[b"x"] * 20]
    with saying(*drops, pause_s=0.05) as url, pytest.raises(Passing, match=r"within 0\.2 s|timed out"):
        _ask(url, deadline_s=0.2)


def test_more_than_is_meant_is_an_error() -> None:
    with saying(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n" + b"x" * 900) as url, pytest.raises(EngineError):
        _ask(url)


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"ok"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"half"],
        [b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 900],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n", *[b"x"] * 8],
        [b"nonsense\r\n\r\n"],
        [],
    ],
    ids=["whole", "half", "too long", "late", "nonsense", "nothing"],
)
def test_no_socket_stays_open(pieces: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even while the exception, and so the frame that holds the answer, is kept."""
    opened: list[socket.socket] = []
    connect = socket.create_connection

    def kept(*args: Any, **kwargs: Any) -> socket.socket:
        opened.append(connect(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr(socket, "create_connection", kept)
    with saying(*pieces, pause_s=0.05) as url:
        failed: Exception | None = None
        try:
            _ask(url, deadline_s=0.2)
        except (Passing, EngineError) as error:
            failed = error
        assert (failed is None) == (pieces[-1:] == [b"ok"])
        assert [each.fileno() for each in opened] == [-1]


@pytest.mark.parametrize("url", ["x", "ftp://h", "http://", "http://h:0", "http://a:b@h", "http://h?q=1", "http://h/ü"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url"):
        check_base_url(url)
