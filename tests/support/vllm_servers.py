"""Real vLLM for the tests that are marked `vllm`: a tiny model, its adapters, and a server that is started once.

    with serving(model_folder()) as server: server.url

The model is a random Llama of 12 words whose heads are as large as vLLM's CPU kernels ask for. Whatever is started here
is ended here, with all its processes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.vllm_server import BLOCK, ENVIRONMENT, Server
from benchmarks.vllm_server import serving as serving_any
from flow_dpo.core.engine import Engine
from flow_dpo.core.types import Adapter, TokenIds
from flow_dpo.engines.vllm.client import VllmClient, VllmServerSettings
from flow_dpo.engines.vllm.in_process import VllmEngine, VllmSettings, open_vllm
from flow_dpo.engines.vllm.requests import ModelFacts
from flow_dpo.engines.vllm.server import VllmServerEngine
from flow_dpo.learner.policy import LoraSettings, Policy

VOCAB = 12
ROLES = ("answer", "stop")


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


def taught(adapter: Path, prompt: TokenIds) -> list[float]:
    """What PEFT's own model with this adapter says next."""
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5 a question by its old name.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        model = PeftModel.from_pretrained(tiny_llama(), str(adapter))
    return spoken(model.eval(), prompt)


def spoken(model: Any, prompt: TokenIds) -> list[float]:
    """What the model says next."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1).tolist()


def serving(model: Path, log: Path, *words: str) -> AbstractContextManager[Server]:
    """A server of single precision on one thread."""
    return serving_any(model, log, "--dtype", "float32", *words, OMP_NUM_THREADS="1")


class Lent:
    """vLLM's engine, for several of our engines one after another: closing one of these leaves it as it is."""

    def __init__(self, vllm: Any) -> None:
        self._vllm = vllm
        self.engine_core = self

    def shutdown(self) -> None:
        """Whoever lends it ends it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vllm, name)


def _opened(settings: VllmSettings, model: Path, *, num_roles: int) -> Any:
    """vLLM in this process."""
    os.environ.update(ENVIRONMENT)
    return open_vllm(
        settings, model=str(model), dtype="float32", on_cpu=True, context_tokens=512, num_roles=num_roles, rank=8
    )


@contextmanager
def merging_vllm(model: Path, *, folder_of: Callable[[Adapter], Path]) -> Iterator[Engine]:
    """An engine of one role over vLLM in process, whose refreshes load all weights anew."""
    settings = VllmSettings(kv_budget_gib=0.5, block_tokens=BLOCK, sync="merged")
    vllm, facts = (
        _opened(settings, model, num_roles=1),
        ModelFacts(end_ids=frozenset({2}), vocab_size=VOCAB, num_top_logprobs=4),
    )
    with closing(VllmEngine(vllm, facts, context_tokens=512, folder_of=folder_of, merged_into=model)) as engine:
        yield engine


@contextmanager
def opened_vllm(model: Path, **settings: Any) -> Iterator[VllmEngine]:
    """An engine of both roles over a vLLM of its own, which parts of blocks are reused in."""
    vllm = _opened(
        VllmSettings(kv_budget_gib=0.5, block_tokens=BLOCK, partial_blocks="always", **settings),
        save_model(model),
        num_roles=2,
    )
    facts = ModelFacts(end_ids=frozenset({2}), vocab_size=VOCAB, num_top_logprobs=4)
    with closing(VllmEngine(vllm, facts, context_tokens=512, folder_of=lambda one: Path(one.path))) as engine:
        yield engine


@contextmanager
def real_vllm(
    kind: str, folder: Path, *, context_tokens: int
) -> Iterator[tuple[Callable[[], Engine], PreTrainedModel]]:
    """How engines over a real vLLM are built, in process ("real_vllm") or over HTTP, and the model for an oracle.

    Every adapter without a path is all zero: it speaks as the base does.
    """
    model, adapters = save_model(folder / "model"), save_adapters(folder / "adapters", seed=0)
    facts = ModelFacts(end_ids=frozenset({2}), vocab_size=VOCAB, num_top_logprobs=4)

    def folder_of(adapter: Adapter) -> Path:
        return Path(adapter.path or adapters[adapter.role])

    if kind == "real_vllm":
        vllm = _opened(VllmSettings(kv_budget_gib=0.5, block_tokens=BLOCK), model, num_roles=2)
        lent = Lent(vllm)
        try:
            yield (
                lambda: VllmEngine(lent, facts, context_tokens=context_tokens, folder_of=folder_of),
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
            return VllmServerEngine(client, facts, base=base, context_tokens=context_tokens, folder_of=folder_of)

        yield build, tiny_llama()
