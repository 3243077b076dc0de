"""A `vllm serve` process for benchmarks and tests: started, killed, and ended with all its children.

    with serving(folder, log) as server: server.url

It is meant for this machine alone: on loopback, at a free port, with room for four adapters of rank 8.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

BLOCK = 32
"""Tokens in a block of the prefix cache: the least that the CPU build takes."""
STARTED_WITHIN_S = 600.0
ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass
class Server:
    """A running `vllm serve`, in a process group of its own."""

    model: Path
    log: Path
    words: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    port: int = 0
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, and wait until it answers. Raises `RuntimeError` with its last words where it ends before."""
        if not self.port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        command = [
            str(Path(sys.executable).with_name("vllm")), "serve", str(self.model), "--served-model-name", "base",
            "--enable-lora", "--max-loras", "4", "--max-lora-rank", "8", "--max-logprobs", "-1", "--enforce-eager",
            # vLLM 0.32 on a CPU cannot draw by a seed after a prompt that it read in parts.
            "--no-enable-chunked-prefill", "--block-size", str(BLOCK), "--enable-prompt-tokens-details",
            "--disable-uvicorn-access-log",
            "--host", "127.0.0.1", "--port", str(self.port), *self.words,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            environment = {**os.environ, **ENVIRONMENT, **self.environment}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        end = time.monotonic() + STARTED_WITHIN_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError(f"vllm serve did not start: {self.log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.5)

    def kill(self) -> None:
        """End it at once, as a machine that loses power does."""
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            self._process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def serving(model: Path, log: Path, *words: str, **environment: str) -> Iterator[Server]:
    """A server that is ended with the context."""
    server = Server(model, log, words, environment)
    try:
        server.start()
        yield server
    finally:
        server.kill()
