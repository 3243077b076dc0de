"""Settings for drawing traces, and for fine-tuning a model on them.

    GenerateSettings(mode="single").source(trained=False)       # "self_generated"

Invariant: nothing heavy is imported, so a command line is parsed before torch is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flow_dpo.core.errors import ConfigError, expect
from flow_dpo.learner.settings import LoraSettings
from flow_dpo.traces.trace import Source

PAPER_LORA = LoraSettings(lora_r=16, lora_alpha=16, lora_dropout=0.05)
"""arXiv 2410.22304, the table of hyper-parameters, "Compile": r, alpha, dropout, all linear layers."""


@dataclass(frozen=True, kw_only=True)
class SftSettings:
    """Settings of a fine-tuning run: traces, seed and folder."""

    traces: str = ""
    """A folder or file of traces (`flow-dpo generate`)."""
    num_traces: int | None = None
    """Use exactly this many, the first ones, so that models can be compared; all if not given. The paper: 1,500."""
    output_dir: str = "runs/sft"
    seed: int = 0
    """Seed of the adapter's initial weights, the order of the traces, and dropout."""
    merge: bool = False
    """Also write the base model with the adapter merged into it, to `merged/`."""

    def __post_init__(self) -> None:
        expect(self, "to name a folder", lambda value: bool(value.strip()), "output_dir")
        expect(self, "of at least 1, or null for all", lambda value: value is None or value >= 1, "num_traces")


@dataclass(frozen=True, kw_only=True)
class SftTrainingSettings:
    """Values of the updates, under TRL's names. Defaults are the paper's (arXiv 2410.22304, "Compile")."""

    learning_rate: float = 2e-4
    num_train_epochs: float = 3.0
    per_device_train_batch_size: int = 8
    """Traces per forward pass; with `gradient_accumulation_steps` this makes the paper's batch of 16."""
    gradient_accumulation_steps: int = 2
    warmup_ratio: float = 0.1
    """Share of the updates over which the learning rate rises."""
    max_grad_norm: float = 1.0
    lr_scheduler_type: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """Course of the learning rate after the warm-up (not stated in the paper)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""

    def __post_init__(self) -> None:
        batches = ("per_device_train_batch_size", "gradient_accumulation_steps")
        expect(self, "of at least 1", lambda value: value >= 1, *batches)
        expect(self, "above 0", lambda value: value > 0, "learning_rate", "num_train_epochs")
        expect(self, "from 0 to 1", lambda value: 0 <= value <= 1, "warmup_ratio")
        expect(self, "of 0 or more", lambda value: value >= 0, "max_grad_norm")


@dataclass(frozen=True, kw_only=True)
class GenerateSettings:
    """Source of the traces, and how many draws are made."""

    mode: Literal["flow", "single", "ground_truth"] = "flow"
    """"flow" samples the whole flow, "single" one pass of the Answer role; "ground_truth" samples nothing: it takes
    those of the data set's own solutions that the verifier finds right."""
    num_samples: int = 8
    """Maximum number of draws per problem; one that has its traces is not drawn again (not stated in the paper)."""
    max_traces: int | None = None
    """Stop at the end of the batch that reaches this many traces; if not given, draw on all problems."""
    problems_of: str = ""
    """A folder or file of traces: draw only on the problems of these traces, so that sources can be compared on the
    same problems."""
    output_dir: str = "runs/traces"
    seed: int = 0
    """Seed of the draws and of their sampling."""
    batch_problems: int = 64
    """Problems whose traces are drawn and written together. Workers elsewhere have enough such batches under way for
    two shards each. The number changes timing, and where `max_traces` ends the command."""

    def __post_init__(self) -> None:
        expect(self, "to name a folder", lambda value: bool(value.strip()), "output_dir")
        for name in ("num_samples", "batch_problems", "max_traces"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"expected {name} of at least 1, found {value}")

    def source(self, *, trained: bool) -> Source:
        """The name of the traces' source."""
        if self.mode == "ground_truth":
            return "ground_truth"
        if self.mode == "flow":
            return "trained_flow" if trained else "untrained_flow"
        return "trained_answer" if trained else "self_generated"
