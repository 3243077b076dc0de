"""Real vLLM for the tests that are marked `vllm`: a tiny model, its adapters, and a server that is started once.

    with serving(model_folder()) as server: server.url

The model is a random Llama of 12 words whose heads are as large as vLLM's CPU kernels ask for. Whatever is started here
is ended here, with all its processes.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from flow_dpo.engines.base import Engine
from flow_dpo.engines.vllm_asking import Speech
from flow_dpo.engines.vllm_client import VllmClient, VllmServerSettings
from flow_dpo.engines.vllm_local import VllmEngine, VllmSettings, open_vllm
from flow_dpo.engines.vllm_server import VllmServerEngine
from flow_dpo.policy import LoraSettings, Policy
from flow_dpo.types import Adapter

VOCAB = 12
ROLES = ("answer", "stop")
_STARTED_WITHIN_S = 600.0
ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
}


def tiny_llama(seed: int = 0) -> PreTrainedModel:
    """The model in this process."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2, bos_token_id=1,
                eos_token_id=2, pad_token_id=0,
            )
        ).eval()  # fmt: skip


def save_model(folder: Path) -> Path:
    """The model as a hub folder, with a tokenizer of twelve words."""
    tiny_llama().save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2", unk_token="w0").save_pretrained(folder)
    return folder


def save_adapters(folder: Path, seed: int) -> dict[str, Path]:
    """An adapter of random weights for each role, in PEFT's layout; all zero, and so the base, for seed 0."""
    policy = Policy(tiny_llama(), ROLES, LoraSettings(lora_r=8, lora_alpha=8), seed=seed)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for role in ROLES if seed else ():
            for weight in policy.weights(role):
                weight.normal_(0, 0.3)
            policy.publish(role)
    return {role: policy.save_adapter(role, folder / str(seed) / role) for role in ROLES}


@dataclass
class Served:
    """A running `vllm serve`, in a process group of its own."""

    model: Path
    words: Sequence[str] = ()
    port: int = 0
    log: Path = field(default_factory=lambda: Path("vllm.log"))

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
            "--dtype", "float32", "--enable-lora", "--max-loras", "4", "--max-lora-rank", "8", "--max-logprobs", "-1",
            "--enforce-eager", "--block-size", "32", "--enable-prompt-tokens-details", "--host", "127.0.0.1",
            "--port", str(self.port), *self.words,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **ENVIRONMENT}, start_new_session=True
            )
        end = time.monotonic() + _STARTED_WITHIN_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError(f"vllm serve did not start: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.5)

    def kill(self) -> None:
        """End it at once, as a machine that loses power does."""
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
def serving(model: Path, log: Path, *words: str) -> Iterator[Served]:
    """A server that is ended with the context."""
    server = Served(model, words, log=log)
    server.start()
    try:
        yield server
    finally:
        server.kill()


class Lent:
    """vLLM's engine, for several of our engines one after another: closing one of these leaves it as it is."""

    def __init__(self, vllm: Any) -> None:
        self._vllm = vllm
        self.engine_core = self

    def shutdown(self) -> None:
        """Whoever lends it ends it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vllm, name)


@contextmanager
def real_vllm(
    kind: str, folder: Path, *, context_tokens: int
) -> Iterator[tuple[Callable[[], Engine], PreTrainedModel]]:
    """How engines over a real vLLM are built, in process ("real_vllm") or over HTTP, and the model for an oracle.

    Every adapter without a path is all zero: it speaks as the base does.
    """
    model, adapters = save_model(folder / "model"), save_adapters(folder / "adapters", seed=0)
    speech = Speech(end_ids=frozenset({2}), num_words=VOCAB, top_logprobs=4)

    def folder_of(adapter: Adapter) -> Path:
        return Path(adapter.path or adapters[adapter.role])

    if kind == "real_vllm":
        os.environ.update({name: value for name, value in ENVIRONMENT.items() if name.startswith("VLLM")})
        settings = VllmSettings(kv_budget_gib=0.5, block_tokens=32)
        vllm = open_vllm(
            settings, model=str(model), dtype="float32", on_cpu=True, context_tokens=512, num_roles=2, rank=8
        )  # fmt: skip
        lent = Lent(vllm)
        try:
            yield (
                lambda: VllmEngine(lent, speech, context_tokens=context_tokens, folder_of=folder_of),
                tiny_llama(),
            )
        finally:
            vllm.engine_core.shutdown()
        return
    with serving(model, folder / "vllm.log") as server:
        settings = VllmServerSettings(base_url=server.url)

        def build() -> Engine:
            client = VllmClient(settings, api_key="")
            [base] = [one for one in client.models() if not one.parent]
            return VllmServerEngine(client, speech, base=base, context_tokens=context_tokens, folder_of=folder_of)

        yield build, tiny_llama()
