"""The page and its data over HTTP, for this machine only.

    with Library(paths) as library, ViewServer(library, port=0) as server:
        print(server.address)        http://127.0.0.1:43121/
        server.serve_forever()

Model output and files are hostile. A page of another site can neither read what is served (`Host`, `Origin` and
`Sec-Fetch-Site` are checked, which defeats DNS rebinding) nor frame it, and nothing in a text can load or run anything
(`POLICY`). Invariant: only GET and HEAD; a path names one of the page's own files or a resource, and is never joined to
a folder; every answer has the same headers, and every error is `{"error": text}`.
"""

from __future__ import annotations

import gzip
import json
import logging
import socket
import sys
import threading
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTP_PORT
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from flow_dpo.core.errors import DataError, FlowDpoError, visible
from flow_dpo.report.viewer.items import Missing
from flow_dpo.report.viewer.library import Library

_logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
}
_BUG = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b'Content-Length: 54\r\n\r\n{"error":"the viewer failed; its terminal says where"}'
)
_IDLE_S = 20.0
"""Seconds after which a silent connection is closed."""
_MOST_CONNECTIONS = 64
_LONGEST_QUERY = 4_000
_COMPRESSED = 1_000
"""Bytes from which an answer is compressed."""


def page_file(name: str) -> bytes | None:
    """The content of one of the page's own files; None if there is none with that name."""
    folder = resources.files("flow_dpo.report.viewer") / "assets"
    names = {each.name: each for each in folder.iterdir() if each.is_file()} if folder.is_dir() else {}
    found = names.get(name) if name.rpartition(".")[2] in _TYPES else None
    return None if found is None else found.read_bytes()


def hosts_of(port: int) -> frozenset[str]:
    """What the `Host` of a request to this machine can be. A browser leaves out HTTP's own port."""
    names = (HOST, "localhost", "[::1]")
    return frozenset({f"{name}:{port}" for name in names} | (set(names) if port == HTTP_PORT else set()))


class ViewServer(ThreadingHTTPServer):
    """A server for one library, on 127.0.0.1. Port 0 means any free one."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 32

    def __init__(self, library: Library, *, port: int = 0) -> None:
        """Raises `OSError` if the port is taken."""
        self.library = library
        self._free = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        super().__init__((HOST, port), _Handler)
        own = self.server_address[1]
        self.hosts = hosts_of(own)
        self.address = f"http://{HOST}:{own}/"

    def __enter__(self) -> Self:
        return self

    def verify_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: Any) -> bool:
        """Refuse connections beyond the limit, since each has a thread."""
        return self._free.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a broken connection; anything else is a bug, which is logged and answered."""
        if isinstance(sys.exception(), OSError):
            return
        _logger.error("a request could not be answered", exc_info=True)
        with suppress(OSError):
            request.sendall(_BUG)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: ViewServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    server_version = "flow-dpo"
    sys_version = ""
    timeout = _IDLE_S

    def do_GET(self) -> None:
        """Answer with a file of the page or a resource."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """The same, but only headers."""
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        refused = self._refused()
        if refused:
            self._send(HTTPStatus.FORBIDDEN, {"error": refused}, with_body=with_body)
            return
        try:
            address = urlsplit(self.path)
        except ValueError:
            error = "expected an address that can be read, found another"
            self._send(HTTPStatus.BAD_REQUEST, {"error": error}, with_body=with_body)
            return
        kind = address.path.removeprefix("/data/")
        if kind != address.path:
            self._send(*self._resource(kind, address.query), with_body=with_body)
            return
        name = address.path.removeprefix("/") or "index.html"
        content = page_file(name)
        if content is None:
            self._send(HTTPStatus.NOT_FOUND, {"error": f"there is no page {address.path[:200]}"}, with_body=with_body)
        else:
            self._write(HTTPStatus.OK, content, _TYPES[name.rpartition(".")[2]], with_body=with_body)

    def _refused(self) -> str:
        """Why a request is refused; "" if it comes from this page, or was typed by a person."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or hosts[0].strip().lower() not in self.server.hosts:
            return f"expected the host {HOST}:{self.server.server_address[1]}, found another; use the printed address"
        origin = self.headers.get("Origin")
        if origin is not None and origin.removeprefix("http://").lower() not in self.server.hosts:
            return "expected a request of this page, found one of another origin"
        site = self.headers.get("Sec-Fetch-Site", "none")
        # A link on another page can lead here; its scripts, images and frames cannot.
        followed = self.headers.get("Sec-Fetch-Mode") == "navigate" and self.headers.get("Sec-Fetch-Dest") == "document"
        if site not in ("none", "same-origin") and not (followed and not self.path.startswith("/data/")):
            return "expected a request of this page, found one of another site"
        return ""

    def _resource(self, kind: str, query: str) -> tuple[HTTPStatus, dict[str, Any]]:
        try:
            return HTTPStatus.OK, self.server.library.get(kind, _params(query))
        except Missing as error:
            return HTTPStatus.NOT_FOUND, {"error": visible(str(error))}
        except FlowDpoError as error:
            return HTTPStatus.BAD_REQUEST, {"error": visible(str(error))}

    def _send(self, status: HTTPStatus, value: dict[str, Any], *, with_body: bool) -> None:
        self._write(status, to_json(value), "application/json; charset=utf-8", with_body=with_body)

    def _write(self, status: HTTPStatus, content: bytes, kind: str, *, with_body: bool) -> None:
        accepted = {word.partition(";")[0].strip() for word in self.headers.get("Accept-Encoding", "").split(",")}
        compressed = "gzip" in accepted and len(content) >= _COMPRESSED
        content = gzip.compress(content, compresslevel=1, mtime=0) if compressed else content
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Vary", "Accept-Encoding")
        if compressed:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def end_headers(self) -> None:
        """Every answer has the same headers."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the base class refuses (other methods, broken requests) with JSON, and close the connection."""
        self.close_connection = True
        content = to_json({"error": message or HTTPStatus(code).phrase})
        self.send_response(code, message)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def version_string(self) -> str:
        """The server's name without a version."""
        return self.server_version

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: a request is hostile text."""


def _params(query: str) -> dict[str, str]:
    """The parameters of an address. Raises `DataError` if there are too many, or if one is repeated."""
    if len(query) > _LONGEST_QUERY:
        raise DataError(f"expected at most {_LONGEST_QUERY} characters of parameters, found {len(query)}")
    pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=None, errors="replace")
    found = dict(pairs)
    if len(found) != len(pairs) or len(pairs) > 40:
        raise DataError("expected each parameter once, found one twice, or too many")
    return found


def to_json(value: object) -> bytes:
    """A value as JSON in ASCII: lone surrogates are escaped, and numbers that JSON lacks become null."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, separators=(",", ":")).encode("ascii")
    except RecursionError:
        return b'{"error":"expected values that are not nested too deeply, found others"}'


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))) else value
