"""Is an answer over HTTP a whole one, within its time, or a failure that may pass?"""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.core.errors import ConfigError, EngineError
from flow_dpo.models.http_client import Address, Answer, Passing, check_base_url


@contextmanager
def saying(*pieces: bytes, pause_s: float = 0.0, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server that says these bytes to whoever asks first, piece by piece, and hangs up; over TLS with a `context`."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            try:
                connection = connection if context is None else context.wrap_socket(connection, server_side=True)
            except OSError:
                return  # whoever asked does not trust the certificate
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


def test_a_handshake_that_comes_slowly_does_not_stretch_the_deadline_and_can_be_stopped() -> None:
    """The header of a TLS record of 16 KB, and then a byte at a time."""
    slow = [b"\x16\x03\x03\x40\x00", *[b"x"] * 40]
    for deadline_s, stopped_s in ((0.2, None), (60.0, 0.2)):
        started = time.monotonic()
        with saying(*slow, pause_s=0.05) as url:
            address = Address(url.replace("http:", "https:"), api_key="", deadline_s=deadline_s)
            if stopped_s is not None:
                threading.Timer(stopped_s, address.stop).start()
            with pytest.raises(Passing):
                address.exchange("GET", "/x")
            assert time.monotonic() - started < 1.5, "the server takes two seconds"


def test_an_answer_over_tls_comes_from_whom_its_certificate_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = [
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=here",
        "-addext", "subjectAltName=IP:127.0.0.1",
    ]  # fmt: skip
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, *words, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with saying(answer, context=context) as url:
        assert _ask(url.replace("http:", "https:")).text == "ok"
    for known, host in ((certificate, "localhost"), (tmp_path / "none.pem", "127.0.0.1")):
        monkeypatch.setenv("SSL_CERT_FILE", str(known))
        with saying(answer, context=context) as url, pytest.raises(Passing, match="CERTIFICATE_VERIFY_FAILED"):
            _ask(url.replace("http:", "https:").replace("127.0.0.1", host))


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
