"""TRL's DPOTrainer on given pairs, in every configuration that could be its best.

A configuration is a tuple of flags of `benchmarks.learner_vs_trl`; every combination is a candidate:

    --batch_size 1, 2, 4, 8      pairs of a micro-batch (at most those of an update), gradients accumulated
    --precompute                 reference log-probabilities beforehand; their forward passes are counted
    --checkpointing              gradient checkpointing
    --autocast, --no_autocast    bf16 autocast of a float32 model, or none of a bf16 one (TRL's default there)

A callback times the optimisation steps. Where a batch size does not divide the pairs of an update, the last micro-batch
is smaller, and losses are weighted by their pairs, so a step is always on the mean over pairs. Invariant: candidates
differ only in settings; model, pairs and the adapter's initial weights are the same.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import math
import random
import statistics
import tempfile
import zlib
from collections.abc import Sequence
from typing import Any

from benchmarks import measuring
from benchmarks.measuring import Report

Way = tuple[str, ...]
"""Flags of one way of running TRL."""
BATCH_SIZES = (1, 2, 4, 8)
FLOAT32 = ("tiny", "50m")
"""Models that are not in bf16."""
RANK, ALPHA, BETA, RATE = 8, 8, 0.1, 1e-4


def ways(num_pairs: int, batch_sizes: Sequence[int], *, half: bool, autocast: bool = True) -> list[Way]:
    """Every combination, for an update of so many pairs and a model in half precision or not."""
    casts: list[Way] = [("--no_autocast",) if half else ()]
    if autocast:
        casts.append(() if half else ("--autocast",))
    sizes = sorted({min(size, num_pairs) for size in batch_sizes})
    choices = (sizes, ((), ("--precompute",)), ((), ("--checkpointing",)), casts)
    return [("--batch_size", str(size), *a, *b, *c) for size, a, b, c in itertools.product(*choices)]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a way."""
    parser.add_argument("--batch_size", type=int, default=1, help=argparse.SUPPRESS)
    for name in ("precompute", "checkpointing", "autocast"):
        parser.add_argument(f"--{name}", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--no_autocast", action="store_true", help="do not try TRL with autocast in bf16")


def adapter_weights(name: str, like: Any, roles: Sequence[str] = ()) -> Any:
    """The values that this parameter begins with on both sides: drawn by name, without the adapter's own name."""
    import torch

    words = [word for word in name.removeprefix("base_model.model.").split(".") if word not in (*roles, "default")]
    generator = torch.Generator().manual_seed(zlib.crc32(".".join(words).encode()))
    return (0.02 * torch.randn(like.shape, generator=generator)).to(like.dtype)


def search(candidates: Sequence[argparse.Namespace], model: Any, batches: Sequence[Sequence[Any]]) -> list[Report]:
    """Seconds of an update and peak of memory of each candidate, one after another; `model()` makes a fresh model.

    Memory that one leaves behind is returned before the next, whose peak would hide in it.
    """
    found: list[Report] = []
    for number, settings in enumerate(candidates):
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        done = train(settings, model(), batches, run=str(number))
        found.append({"seconds": done["seconds"], "peak_mib": done["peak_mib"]})
    return found


def train(settings: argparse.Namespace, model: Any, batches: Sequence[Sequence[Any]], *, run: str = "") -> Report:
    """An update of each batch of pairs, the first not timed; `run` keeps what TRL caches of other runs apart."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    half = model.dtype == torch.bfloat16
    rows = [
        {"prompt_ids": p.request.prompt_ids, "chosen_ids": p.chosen.token_ids, "rejected_ids": p.rejected.token_ids}
        for pairs in batches
        for p in pairs
    ]
    num_pairs, size = len(batches[0]), settings.batch_size
    micro_batches = math.ceil(num_pairs / size)
    ahead = max(n for n in range(1, size + 1) if num_pairs % n == 0)
    reference_s: list[float] = []
    step_s: list[float] = []
    losses = [0.0] * len(batches)

    class Trainer(DPOTrainer):
        """Takes token ids as they are, in micro-batches of one update each, and times reference passes."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def get_train_dataloader(self) -> Any:
            firsts = [(b, low) for b in range(len(batches)) for low in range(0, num_pairs, size)]
            parts = [[*range(b * num_pairs + low, b * num_pairs + min(low + size, num_pairs))] for b, low in firsts]
            loader = torch.utils.data.DataLoader(
                self.train_dataset,  # pyright: ignore[reportArgumentType]
                batch_sampler=parts,
                collate_fn=self.data_collator,
            )
            return self.accelerator.prepare(loader)

        def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
            started = measuring.clock()
            found = super().compute_ref_log_probs(model, inputs)
            reference_s.append(measuring.clock() - started)
            return found

        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            share = len(inputs["input_ids"]) / 2 / num_pairs  # chosen and rejected lie in one batch
            loss: Any = super().compute_loss(model, inputs, *rest, **named)
            losses[self.state.global_step] += float(loss) * share
            return loss * share * micro_batches

    class Clock(TrainerCallback):
        """Times every optimisation step with all its micro-batches."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = measuring.clock()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            step_s.append(measuring.clock() - self.started)

    memory = measuring.PeakMemory()
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=micro_batches,
            num_train_epochs=1,
            beta=BETA,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            max_length=None,
            precompute_ref_log_probs=settings.precompute,
            precompute_ref_batch_size=ahead,
            gradient_checkpointing=settings.checkpointing,
            bf16=settings.autocast or (half and not settings.no_autocast),
            train_sampling_strategy="sequential",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list([{**row, "run": run} for row in rows]),
            processing_class=word_tokenizer(),
            callbacks=[Clock()],
            peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        expected = len(rows) // ahead if settings.precompute else 0
        assert len(reference_s) == expected, f"{len(reference_s)} passes of the reference beforehand, not {expected}"
        precomputed = reference_s[num_pairs // ahead :]
        trained: Any = trainer.model
        for name, parameter in trained.named_parameters():
            if parameter.requires_grad:
                with torch.no_grad():
                    parameter.copy_(adapter_weights(name, parameter))
        trainer.train()
    dtype, peak = str(model.dtype).removeprefix("torch."), memory.mib()
    assert len(step_s) == len(batches), f"{len(step_s)} steps, {len(batches)} updates"
    assert all(map(math.isfinite, losses)), losses
    return {
        "seconds": statistics.mean(step_s[1:]) + sum(precomputed) / (len(step_s) - 1),
        "peak_mib": peak,
        "losses": losses,
        "dtype": "bfloat16" if settings.autocast else dtype,
    }


def sample_model(size: str, share: int) -> Any:
    """A random model with one of `share` parts of the layers and of the vocabulary, all else as in the whole one."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from benchmarks import workloads

    config = workloads.config(size) if size in workloads.MODELS else AutoConfig.from_pretrained(size)
    config.num_hidden_layers = max(1, config.num_hidden_layers // share)
    config.vocab_size = max(64, config.vocab_size // share)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dtype = torch.float32 if size in FLOAT32 else torch.bfloat16
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def sample_pairs(shape: Any, role: str, vocabulary: int, *, num_updates: int = 2) -> list[list[Any]]:
    """One role's pairs of a small tree, and of whole ones."""
    from benchmarks.workloads import Shape, tree_pairs

    rng = random.Random(0)
    shapes = [Shape(8, 4, shape.num_nodes)] + [shape] * (num_updates - 1)
    trees = [tree_pairs(rng, f"p{i}", each, vocabulary=vocabulary) for i, each in enumerate(shapes)]
    return [[pair for pair in pairs if pair.request.role == role] for pairs in trees]


def word_tokenizer() -> Any:
    """A tokenizer for a trainer that insists on one; nothing is encoded with it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"t{i}": i for i in range(8)}, unk_token="t0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", bos_token="t1", eos_token="t2")
