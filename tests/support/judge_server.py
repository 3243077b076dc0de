"""Traces and judges of tests: a judge that prefers what it is told to, and an address that speaks chat completions."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from flow_dpo.core.types import Verdict
from flow_dpo.runs.records import to_json
from flow_dpo.traces.trace import Trace


def trace(problem_id: str, solution: str, *, question: str = "", dataset: str = "made/up") -> Trace:
    """A right trace of made-up words."""
    return Trace(
        problem_id=problem_id, question=question or f"What is {problem_id}?", gold="1", dataset=dataset, level="",
        subject="", messages=(), solution=solution, token_ids=(1,), ended=True, verdict=Verdict(status="correct"),
        source="self_generated", draw=1, draws_used=1, tokens_spent=1,
    )  # fmt: skip


def folder(path: Path, traces: list[Trace]) -> Path:
    """A folder of traces, written as ASCII so that it may hold anything."""
    path.mkdir(parents=True)
    (path / "traces.jsonl").write_text("".join(json.dumps(to_json(one)) + "\n" for one in traces))
    (path / "traces.json").write_text(json.dumps({"schema": "traces/1", "source": path.name}))
    return path


def good_and_bad(path: Path, num: int = 4) -> tuple[Path, Path]:
    """Side a says "good" in each trace, side b "bad"."""
    ids = [f"p{i}" for i in range(num)]
    a = folder(path / "a", [trace(id, f"{id}: a good way\nAnswer: 1") for id in ids])
    return a, folder(path / "b", [trace(id, f"{id}: a bad way\nAnswer: 1") for id in ids])


def place_of(text: str, word: str) -> str:
    """The place whose solution holds `word`, read as a judge must: from the chat alone."""
    return "A" if word in text.partition("[Solution B]")[0].partition("[Solution A]")[2] else "B"


Answer = Callable[[str, int], Any]
"""Given the user's message and how many requests came before: the words; or (status, body bytes); or None to hang."""


class Address:
    """What the address heard, and where it is."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.released = threading.Event()
        self.models: list[str] = ["tiny"]


@contextmanager
def serving(answer: Answer) -> Iterator[Address]:
    """A local server that speaks the chat completions format."""
    address, lock = Address(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, json.dumps({"data": [{"id": name} for name in address.models]}).encode())

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(address.requests)
                address.requests.append(asked)
                address.keys.append(self.headers["Authorization"])
            said = answer(asked["messages"][-1]["content"], number)
            if said is None:
                address.released.wait(20)
                return
            if isinstance(said, str):
                choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
                said = (200, json.dumps({"choices": [choice], "usage": {"completion_tokens": 7}}).encode())
            self._send(*said)

        def _send(self, status: int, body: bytes) -> None:
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                return  # whoever asked has gone

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    address.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield address
    finally:
        address.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
