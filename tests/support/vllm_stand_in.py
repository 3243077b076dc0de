"""A stand-in for `vllm serve`: an HTTP server that speaks the part of its protocol that the engine uses.

What it says comes from a function that names the next token's log-probabilities, drawn by our own rule, so that tests
know what to expect. It can be killed and started anew on its port, as a process that forgets every adapter, and can be
told to misbehave. Its words for what it refuses are vLLM 0.32's.

    with StandIn(lambda adapter, prefix: [...], num_words=12) as server:
        VllmServerSettings(base_url=server.url)
"""

from __future__ import annotations

import contextlib
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from flow_dpo.core.types import Sampling
from flow_dpo.engines.sampling_rule import draw, uniform
from flow_dpo.engines.vllm.client import ServedModel, VllmClient, VllmServerSettings
from flow_dpo.engines.vllm.requests import ModelFacts
from flow_dpo.engines.vllm.server import VllmServerEngine

NextLogprobs = Callable[[str, tuple[int, ...]], Sequence[float]]
"""Given the folder of an adapter ("" for the base) and all ids so far: every next token's log-probability."""


@dataclass
class StandIn:
    """One server; the fields are its flags, and may be changed while it runs."""

    next_logprobs: NextLogprobs
    num_words: int
    base: str = "base"
    root: str = "models/base"
    max_model_len: int = 512
    max_logprobs: int = -1
    max_loras: int = 4
    max_lora_rank: int = 16
    runtime_lora: bool = True
    token_ids: bool = True
    processed: bool = False
    """Tell log-probabilities after temperature, as --logprobs-mode processed_logprobs does."""
    encode: Callable[[str], Sequence[int]] = lambda text: [ord(char) % 7 for char in text]
    key: str = ""
    before: Callable[[str], None] = lambda path: None
    """Called before every answer with the path that was asked: a test counts, waits or kills there."""
    adapters: dict[str, str] = field(default_factory=dict[str, str])
    asked: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Every completion that was asked for."""
    port: int = 0

    def __enter__(self) -> StandIn:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Begin as a new process does: with no adapter."""
        self.adapters.clear()
        self._connections = set[socket.socket]()
        self._server = _Server(("127.0.0.1", self.port), self)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """End at once: connections break off in the midst of their answers."""
        self._server.shutdown()
        self._server.server_close()
        for connection in [*self._connections]:
            # Reset rather than closed, as the system does it for a process that was killed.
            with contextlib.suppress(OSError):  # it has just been answered
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def answer(self, method: str, path: str, asked: dict[str, Any]) -> tuple[int, Any]:
        """The status and what is said."""
        if path == "/v1/models":
            cards = [{"id": self.base, "root": self.root, "parent": None, "max_model_len": self.max_model_len}]
            cards += [
                {"id": name, "root": folder, "parent": self.base, "max_model_len": None}
                for name, folder in self.adapters.items()
            ]
            return 200, {"object": "list", "data": cards}
        if path == "/metrics":
            return 200, f'vllm:lora_requests_info{{max_lora="{self.max_loras}",running_lora_adapters=""}} 1.0\n'
        if path == "/tokenize":
            return 200, {"tokens": [*self.encode(asked["prompt"])], "max_model_len": self.max_model_len}
        if path == "/v1/completions":
            self.asked.append(asked)
            return self._complete(asked)
        if path.endswith("load_lora_adapter") and self.runtime_lora:
            return self._load(asked) if path == "/v1/load_lora_adapter" else self._unload(asked)
        return 404, {"detail": "Not Found"}

    def _load(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name, folder = asked["lora_name"], Path(asked["lora_path"])
        if name in self.adapters:
            return 400, _error(f"The lora adapter '{name}' has already been loaded. If you want to load ...")
        if not (folder / "adapter_config.json").exists():
            return 404, _error(f"Loading lora {name} failed: No adapter found for {folder}")
        rank = json.loads((folder / "adapter_config.json").read_text())["r"]
        if rank > self.max_lora_rank:
            return 500, _error(f"LoRA rank {rank} is greater than max_lora_rank {self.max_lora_rank}.")
        self.adapters[name] = str(folder)
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _unload(self, asked: dict[str, Any]) -> tuple[int, Any]:
        if self.adapters.pop(asked["lora_name"], None) is None:
            return 404, _error(f"The lora adapter '{asked['lora_name']}' cannot be found.")
        return 200, f"Success: LoRA adapter '{asked['lora_name']}' removed successfully."

    def _complete(self, asked: dict[str, Any]) -> tuple[int, Any]:
        model, count = asked["model"], asked["logprobs"]
        if model != self.base and model not in self.adapters:
            return 404, _error(f"The model `{model}` does not exist. Valid aliases: {self.base}.")
        if self.max_logprobs >= 0 and (count == -1 or count > self.max_logprobs):
            return 400, _error(f"Requested sample logprobs of {count}, which is greater than max allowed: 20")
        prefix, folder = tuple(asked["prompt"]), self.adapters.get(model, "")
        ids, values, told = list[int](), list[float](), list[dict[str, float]]()
        greedy = asked["temperature"] == 0
        sampling = Sampling(temperature=asked["temperature"] or 1.0, top_p=asked["top_p"], greedy=greedy)
        while len(ids) < asked["max_tokens"] and not (ids and ids[-1] in asked.get("stop_token_ids", ())):
            logprobs = self.next_logprobs(folder, prefix)
            known = {token: value for token, value in enumerate(logprobs) if value > -math.inf}
            number = uniform(asked.get("seed", 0), len(ids))
            if allowed := asked.get("allowed_token_ids"):
                known = {token: known[token] for token in allowed}
            drawn = draw(known, sampling, uniform=number)
            assert drawn is not None
            shown = [max(value, -9999.0) for value in logprobs]
            if self.processed and not greedy:
                weights = [math.exp(value / sampling.temperature) for value in logprobs]
                shown = [math.log(weight / sum(weights)) if weight else -9999.0 for weight in weights]
            likeliest = sorted(range(len(shown)), key=lambda token: -shown[token])
            named = likeliest if count == -1 else likeliest[:count]
            told.append({f"token_id:{token}": shown[token] for token in dict.fromkeys([drawn.token, *named])})
            ids.append(drawn.token)
            values.append(shown[drawn.token])
            prefix += (drawn.token,)
        choice = {
            "index": 0, "text": "", "finish_reason": "length", "token_ids": ids if self.token_ids else None,
            "logprobs": {"token_logprobs": values, "tokens": [f"token_id:{i}" for i in ids], "top_logprobs": told},
        }  # fmt: skip
        usage = {"prompt_tokens": len(asked["prompt"]), "prompt_tokens_details": {"cached_tokens": 0}}
        return 200, {"model": model, "choices": [choice], "usage": usage}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], stand_in: StandIn) -> None:
        self.stand_in = stand_in
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or a server that was killed: nothing to tell."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.stand_in._connections.add(self.connection)

    def finish(self) -> None:
        self.server.stand_in._connections.discard(self.connection)
        super().finish()

    def do_GET(self) -> None:
        self._answer("GET", {})

    def do_POST(self) -> None:
        self._answer("POST", json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, method: str, asked: dict[str, Any]) -> None:
        stand_in = self.server.stand_in
        stand_in.before(self.path)
        if stand_in.key and self.headers.get("Authorization") != f"Bearer {stand_in.key}":
            status, said = 401, {"error": "Unauthorized"}
        else:
            status, said = stand_in.answer(method, self.path, asked)
        body = (said if isinstance(said, str) else json.dumps(said)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""


def adapter_folder(folder: Path, *, rank: int = 8) -> Path:
    """An adapter as far as the stand-in reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
    return folder


def engine_of(
    url: str, base: str, *, root: Path, num_words: int, end_ids: Collection[int], context_tokens: int, **settings: Any
) -> VllmServerEngine:
    """An engine over a server, which is asked for nothing yet. Adapters without a folder get one under `root`."""
    client = VllmClient(VllmServerSettings(base_url=url, backoff_s=0.01, **settings), api_key="")
    served = ServedModel(id=base, root="models/base", parent="", max_model_len=512)
    return VllmServerEngine(
        client,
        ModelFacts(end_ids=frozenset(end_ids), vocab_size=num_words, num_top_logprobs=client.settings.top_logprobs),
        base=served,
        context_tokens=context_tokens,
        folder_of=lambda adapter: Path(adapter.path or adapter_folder(root / adapter.role / str(adapter.version))),
    )


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}}


def wait_until(done: Callable[[], bool], *, at_most_s: float = 10.0) -> None:
    """Look again until it is so. Raises `TimeoutError` where it never is."""
    end = time.monotonic() + at_most_s
    while not done():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.005)
