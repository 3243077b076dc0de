"""Pretraining of the embedded seed model.

    python -m tools.seed_model.pretrain --output_dir flow_dpo/data/seed/model

writes tokenizer, model and model card from this folder and `data.seed` alone: about 50,000 short documents, one
thread, some ten minutes. Invariant: the same arguments give the same weights on the same machine and versions.
"""

from __future__ import annotations

import os

# Set before torch starts its thread pool: on a busy machine spinning threads cost more than they gain.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import argparse
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from flow_dpo.data.seed import STOP_CHOICES
from tools.seed_model.card import write_card
from tools.seed_model.corpus import VERDICT_WEIGHT, Document, iter_documents
from tools.seed_model.measure import measure
from tools.seed_model.tokenizer import END_ID, MAX_TOKENS, PAD_ID, build_tokenizer

BATCH_SIZE = 48
POOL_BATCHES = 16
"""Number of batches whose documents are sorted by length together, which keeps padding small."""
MUON_LEARNING_RATE = 0.02
ADAM_LEARNING_RATE = 4e-3
WARM_UP_STEPS = 40
DECAY_SHARE = 0.5
"""Share of the steps, at the end, over which the learning rates fall to zero."""


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A small Llama with random weights."""
    ends = {"pad_token_id": PAD_ID, "eos_token_id": END_ID, "bos_token_id": None}
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=MAX_TOKENS,
            tie_word_embeddings=True,
            use_cache=True,
            **ends,
        )
    )
    model.generation_config = GenerationConfig(**ends)
    return model


class Batch(NamedTuple):
    """Padded documents, and the positions of the verdicts in those that have one."""

    ids: torch.Tensor
    weights: torch.Tensor
    verdict_rows: torch.Tensor
    verdict_positions: torch.Tensor
    yes_rates: torch.Tensor


def compute_loss(model: LlamaForCausalLM, batch: Batch, choices: list[int]) -> torch.Tensor:
    """Weighted mean of -log p over weighted tokens and of the cross-entropy with the target P(Yes) over verdicts."""
    logits = model(input_ids=batch.ids[:, :-1], use_cache=False).logits
    # Only positions with a loss: half of the tokens are only given.
    weighted = batch.weights[:, 1:] > 0
    weights = batch.weights[:, 1:][weighted]
    loss = (cross_entropy(logits[weighted], batch.ids[:, 1:][weighted], reduction="none") * weights).sum()
    words = logits[batch.verdict_rows, batch.verdict_positions - 1].log_softmax(-1)[:, choices]
    verdicts = -(batch.yes_rates * words[:, 0] + (1 - batch.yes_rates) * words[:, 1]).sum() * VERDICT_WEIGHT
    return (loss + verdicts) / (weights.sum() + VERDICT_WEIGHT * len(batch.verdict_rows))


def iter_batches(documents: Iterator[Document], pad_id: int, rng: Random) -> Iterator[Batch]:
    """Right-padded token ids and loss weights. With a causal mask, right padding needs no attention mask."""
    while True:
        pool = sorted(islice(documents, BATCH_SIZE * POOL_BATCHES), key=lambda document: len(document.token_ids))
        starts = [k * BATCH_SIZE for k in range(POOL_BATCHES)]
        rng.shuffle(starts)
        for first in starts:
            batch = pool[first : first + BATCH_SIZE]
            length = max(len(document.token_ids) for document in batch)
            ids = [document.token_ids + [pad_id] * (length - len(document.token_ids)) for document in batch]
            weights = [document.weights + [0.0] * (length - len(document.weights)) for document in batch]
            verdicts = [(row, document) for row, document in enumerate(batch) if document.yes_rate is not None]
            yield Batch(
                ids=torch.tensor(ids),
                weights=torch.tensor(weights),
                verdict_rows=torch.tensor([row for row, _ in verdicts]),
                verdict_positions=torch.tensor([len(document.token_ids) - 2 for _, document in verdicts]),
                yes_rates=torch.tensor([document.yes_rate for _, document in verdicts]),
            )


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, num_steps: int, seed: int) -> int:
    """Pretrain the model in place. Returns the number of documents read."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=MUON_LEARNING_RATE, weight_decay=0.0, momentum=0.95),
        torch.optim.Adam(others, lr=ADAM_LEARNING_RATE, betas=(0.9, 0.98)),
    ]
    decay_steps = DECAY_SHARE * num_steps
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / WARM_UP_STEPS, 1.0, (num_steps - step) / decay_steps)
        )
        for optimizer in optimizers
    ]
    batches = iter_batches(iter_documents(tokenizer, seed), PAD_ID, Random(seed))
    choices = [tokenizer.get_vocab()[word] for word in STOP_CHOICES]
    started, running, num_tokens = time.monotonic(), 0.0, 0
    model.train()
    for step, batch in enumerate(islice(batches, num_steps)):
        loss = compute_loss(model, batch, choices)
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        running, num_tokens = running + loss.item(), num_tokens + batch.ids.numel()
        if (step + 1) % 50 == 0:
            seconds = time.monotonic() - started
            speed = num_tokens / seconds
            print(f"step {step + 1}/{num_steps}  loss {running / 50:.4f}  {speed:.0f} tokens/s", flush=True)
            running = 0.0
    model.eval()
    return num_steps * BATCH_SIZE


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded seed: tokenizer, model, model card.")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--num_steps", type=int, default=1150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_problems", type=int, default=1000, help="problems to measure on; 0: none, and no card")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    started = time.monotonic()
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    num_documents = train(model, tokenizer, arguments.num_steps, arguments.seed)
    train_s = time.monotonic() - started
    model.to(torch.bfloat16)  # pyright: ignore[reportCallIssue, reportArgumentType]
    tokenizer.save_pretrained(arguments.output_dir)
    model.save_pretrained(arguments.output_dir)
    for path in arguments.output_dir.iterdir():
        path.chmod(0o644)  # the weights are written readable by their owner only, and would stay so in a wheel
    if arguments.num_problems:
        # Measured as shipped: weights rounded to bf16, arithmetic in float32.
        figures = measure(model.float(), tokenizer, arguments.num_problems, arguments.seed)
        figures |= {
            "num_documents": num_documents,
            "num_tokens": len(tokenizer),
            "num_parameters": model.num_parameters(),
            "train_s": train_s,
        }
        write_card(arguments.output_dir, figures)
    print(f"written to {arguments.output_dir} in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
