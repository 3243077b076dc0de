"""Is the page served to this machine alone, by the names it has, and every wrong request answered in words?"""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.report.viewer import server as module
from flow_dpo.report.viewer.library import Library
from flow_dpo.report.viewer.server import POLICY, ViewServer, page_file, to_json
from tests.report.viewer.conftest import served
from tests.support.report_sources import HOSTILE, run

VERDICTS: list[tuple[Any, ...]] = [("correct", "wrong", "correct", "wrong", "wrong"), ("wrong",) * 5]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Library]]:
    folder = tmp_path_factory.mktemp("runs")
    run(folder / "one", VERDICTS * 8, question=HOSTILE)
    with served([folder], tmp_path_factory.mktemp("cache")) as (address, library):
        yield int(address.split(":")[2].strip("/")), library


Answer = tuple[int, dict[str, str], bytes]


def ask(port: int, path: str, method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def raw(port: int, request: bytes) -> bytes:
    """What comes back on a connection, to its end."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        found = b""
        while block := connection.recv(65_536):
            found += block
        return found


def test_data_is_what_the_library_gives(site: tuple[int, Library]) -> None:
    port, library = site
    for path, kind, params in (
        ("/data/sources", "sources", {}), ("/data/curves?source=one", "curves", {"source": "one"}),
        ("/data/items?source=one&sort=-time&q=%3Cscript", "items", {"source": "one", "sort": "-time", "q": "<script"}),
        ("/data/item?source=one&n=3", "item", {"source": "one", "n": "3"}),
    ):  # fmt: skip
        status, headers, content = ask(port, path)
        assert status == 200
        assert headers["content-type"] == "application/json; charset=utf-8"
        assert json.loads(content) == json.loads(json.dumps(library.get(kind, params)))
        assert content.isascii()


def test_every_answer_has_the_same_headers(site: tuple[int, Library]) -> None:
    port, _ = site
    for path, method in (("/", "GET"), ("/", "HEAD"), ("/data/sources", "GET"), ("/nothing", "GET"), ("/", "POST"),
                         ("/data/items?limit=x", "GET"), ("/style.css", "GET"), ("/", "OPTIONS")):  # fmt: skip
        _, headers, _ = ask(port, path, method)
        assert headers["content-security-policy"] == POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in headers
        assert "Python" not in headers["server"]
    assert "unsafe" not in POLICY
    assert POLICY.startswith("default-src 'none'")


@pytest.mark.parametrize(
    ("headers", "answered"),
    [
        ({}, True), ({"Host": "localhost:{port}"}, True), ({"Host": "LOCALHOST:{port}"}, True),
        ({"Host": "[::1]:{port}"}, True),
        ({"Host": "evil.example"}, False), ({"Host": "evil.example:{port}"}, False), ({"Host": "127.0.0.1"}, False),
        ({"Host": "127.0.0.1:1"}, False), ({"Host": "127.0.0.1:{port}.evil.example"}, False), ({"Host": ""}, False),
        ({"Host": "127.0.0.1:{port}@evil"}, False), ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False), ({"Origin": "https://127.0.0.1:{port}"}, False),
        ({"Origin": "http://127.0.0.1:{port}"}, True), ({"Origin": "http://localhost:{port}"}, True),
        ({"Sec_Fetch_Site": "same-origin"}, True), ({"Sec_Fetch_Site": "none"}, True),
        ({"Sec_Fetch_Site": "cross-site"}, False), ({"Sec_Fetch_Site": "same-site"}, False),
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "iframe"}, False),
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}, False),
    ],
)  # fmt: skip
def test_only_this_pages_own_requests_are_answered(
    headers: dict[str, str], answered: bool, site: tuple[int, Library]
) -> None:
    port, _ = site
    status, _, content = ask(port, "/data/sources", **{k: v.format(port=port) for k, v in headers.items()})
    assert status == (200 if answered else 403)
    assert answered or set(json.loads(content)) == {"error"}


def test_a_link_on_another_page_opens_this_one_and_no_data(site: tuple[int, Library]) -> None:
    port, _ = site
    followed = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert ask(port, "/", **followed)[0] == 200
    assert ask(port, "/data/sources", **followed)[0] == 403


def test_a_browser_leaves_out_the_port_of_http() -> None:
    assert module.hosts_of(80) > {"127.0.0.1", "localhost", "[::1]", "127.0.0.1:80"}
    assert module.hosts_of(8080) == {"127.0.0.1:8080", "localhost:8080", "[::1]:8080"}


def test_an_address_that_is_none_is_refused_in_words(site: tuple[int, Library]) -> None:
    request = f"GET http://[ HTTP/1.1\r\nHost: 127.0.0.1:{site[0]}\r\n\r\n".encode()
    answer = raw(site[0], request)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.partition(b"\r\n\r\n")[2].startswith(b'{"error":"')


def test_two_hosts_or_none_are_refused(site: tuple[int, Library]) -> None:
    port, _ = site
    own = f"Host: 127.0.0.1:{port}\r\n".encode()
    for hosts in (b"", own + own, own + b"Host: evil.example\r\n"):
        assert raw(port, b"GET /data/sources HTTP/1.1\r\n" + hosts + b"\r\n").startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize(
    "path",
    [
        "/../server.py", "/..%2fserver.py", "/%2e%2e/server.py", "/assets/../server.py", "/style.css/", "/./style.css",
        "//etc/passwd", "/etc/passwd", "/one/trees.jsonl", "/data/", "/data/../style.css", "/data/items/one", "/.git",
        "/style.css%00", "/server.py", "/__init__.py", "/data", "/index.html/..", "/C:/x", "/\\..\\x",
    ],
)  # fmt: skip
def test_no_other_path_is_served(path: str, site: tuple[int, Library]) -> None:
    status, headers, content = ask(site[0], path)
    assert status == 404
    assert headers["content-type"].startswith("application/json")
    assert list(json.loads(content)) == ["error"]


def test_the_pages_own_files_have_their_types(site: tuple[int, Library]) -> None:
    page = ask(site[0], "/")
    assert page[1]["content-type"] == "text/html; charset=utf-8"
    assert page[2] == page_file("index.html") == ask(site[0], "/index.html")[2]
    for name, kind in (("style.css", "text/css"), ("app.js", "text/javascript")):
        status, headers, content = ask(site[0], f"/{name}")
        assert (status, headers["content-type"]) == (200, f"{kind}; charset=utf-8")
        assert content == page_file(name)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("items?source=one&limit=1e9", 400), ("items?source=one&limit=99999999999999999999", 400),
        ("items?source=one&source=two", 400), ("items?source=one&q=" + "x" * 5_000, 400), ("items?source=one&x=1", 400),
        ("item?source=one&n=%D9%A3", 400), ("item?source=one&n=0x1", 400), ("item?source=one&n=1%00", 400),
        ("items?source=one&q=%ff%fe", 200), ("items?source=%00", 404), ("items?source=one&&&", 200),
        ("items?" + "&".join(f"a{n}=1" for n in range(200)), 400), ("item?source=one&n=99", 404), ("items", 404),
    ],
)  # fmt: skip
def test_wrong_parameters_are_answered_in_words(query: str, status: int, site: tuple[int, Library]) -> None:
    found, _, content = ask(site[0], f"/data/{query}")
    assert found == status
    assert status == 200 or (set(json.loads(content)) == {"error"} and len(content) < 1_000)


def test_nothing_can_be_sent(site: tuple[int, Library]) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "\x1b[31m"):
        answer = raw(site[0], f"{method} / HTTP/1.1\r\nHost: 127.0.0.1:{site[0]}\r\n\r\n".encode())
        assert answer.split(b" ")[1] in (b"501", b"400"), method
        assert answer.partition(b"\r\n\r\n")[2].startswith(b'{"error"')


def test_head_has_no_body(site: tuple[int, Library]) -> None:
    status, headers, content = ask(site[0], "/data/item?source=one&n=0", "HEAD")
    assert (status, content) == (200, b"")
    assert int(headers["content-length"]) == len(ask(site[0], "/data/item?source=one&n=0")[2])


def test_long_answers_are_compressed_for_who_can_read_it(site: tuple[int, Library]) -> None:
    plain = ask(site[0], "/data/items?source=one")[2]
    _, headers, content = ask(site[0], "/data/items?source=one", Accept_Encoding="br, gzip;q=0.5")
    assert headers["content-encoding"] == "gzip"
    assert len(content) < len(plain) / 3
    assert gzip.decompress(content) == plain
    assert "content-encoding" not in ask(site[0], "/data/nothing", Accept_Encoding="gzip")[1]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n", b"GET /\r\n\r\n", b"nonsense\r\n\r\n", b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost",
    ],
    ids=range(9),
)  # fmt: skip
def test_broken_requests_are_refused(request_bytes: bytes, site: tuple[int, Library]) -> None:
    answer = raw(site[0], request_bytes)
    assert b"Traceback" not in answer
    assert b" 200 " not in answer.partition(b"\r\n")[0]
    assert ask(site[0], "/data/sources")[0] == 200


def test_a_connection_that_says_nothing_is_closed(
    site: tuple[int, Library], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module._Handler, "timeout", 0.2)
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", site[0]), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost:")
        assert connection.recv(100) == b""
    assert time.monotonic() - started < 5
    assert capfd.readouterr() == ("", "")


def test_a_client_that_leaves_early_is_no_error(site: tuple[int, Library], caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", site[0]), timeout=10) as connection:
            connection.sendall(f"GET /data/items?source=one HTTP/1.1\r\nHost: 127.0.0.1:{site[0]}\r\n\r\n".encode())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    assert ask(site[0], "/data/sources")[0] == 200
    assert not caplog.records


def test_a_bug_is_logged_and_answered(
    site: tuple[int, Library], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Library, "get", lambda *_: 1 / 0)
    status, _, content = ask(site[0], "/data/sources")
    assert status == 500
    assert "terminal" in json.loads(content)["error"]
    assert "ZeroDivisionError" in caplog.text


def test_no_more_than_so_many_connections(site: tuple[int, Library]) -> None:
    held = [socket.create_connection(("127.0.0.1", site[0]), timeout=10) for _ in range(module._MOST_CONNECTIONS + 8)]
    try:
        closed = 0
        for connection in held[-8:]:
            connection.settimeout(5)
            closed += connection.recv(10) == b""
        assert closed == 8
    finally:
        for connection in held:
            connection.close()
    end = time.monotonic() + 10
    while True:
        try:
            assert ask(site[0], "/data/sources")[0] == 200
            return
        except (http.client.HTTPException, OSError):
            assert time.monotonic() < end
            time.sleep(0.02)


def test_many_ask_at_once_while_it_indexes(tmp_path: Path) -> None:
    run(tmp_path / "one", VERDICTS * 30)
    with Library([tmp_path], cache=tmp_path / "cache") as library, ViewServer(library) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port, wrong = server.server_address[1], list[str]()

        def work() -> None:
            for _ in range(10):
                for path in ("/data/sources", "/data/items?source=one", "/data/curves?source=one"):
                    status, _, content = ask(port, path)
                    if status != 200:
                        wrong.append(f"{path}: {content!r}")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert not wrong
        library.wait(30)
        assert json.loads(ask(port, "/data/items?source=one")[2])["total"] == 60
        server.shutdown()


def test_json_holds_what_json_can(site: tuple[int, Library]) -> None:
    assert to_json({"a": [float("nan"), float("-inf"), 1.5], "b": "\ud800\u202e"}) == (
        b'{"a":[null,null,1.5],"b":"\\ud800\\u202e"}'
    )
    deep: Any = []
    for _ in range(5_000):
        deep = [deep]
    assert b"too deeply" in to_json(deep)


def test_a_script_is_a_comment_and_one_function() -> None:
    """A line of the comment that lost its slashes is code, which only a browser would find."""
    scripts = sorted((Path(module.__file__).parent / "assets").glob("*.js"))
    assert len(scripts) > 15
    for script in scripts:
        head, _, body = script.read_text().partition("(() => {\n")
        assert all(line.startswith("//") for line in head.splitlines()), script.name
        assert body.endswith("\n})();\n"), script.name
