"""Settings of the learner: of all roles, of single roles, of the reference policy, and of the rows of a forward.

    LearnerSettings(learning_rate=3e-3, warmup_updates=8).rate_share(4)     # 0.5: half of the warm-up

Invariants: a value that no run could use is refused when it is set; nothing heavy is imported, so a command line is
read before torch is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from flow_dpo.core.errors import expect
from flow_dpo.core.types import Role
from flow_dpo.models.settings import LoraSettings as LoraSettings  # so that both can be imported from here

ShortBatch = Literal["wait", "learn", "fill"]
Schedule = Literal["inverse", "inverse_sqrt", "linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class ReferenceSettings:
    """The reference policy of DPO and its relatives. Not stated in the paper."""

    kind: Literal["base", "snapshot"] = "base"
    """"base": the base model with all adapters off; "snapshot": a frozen copy of each role's adapter at the start."""
    every: int = 0
    """Move a role's snapshot after every this many updates of the role's pool; 0 never moves it."""
    each_batch: bool = False
    """Move every snapshot before each batch of problems is learned from, as in iterated DPO."""
    lerp: float = 1.0
    """Fraction of the way towards the current weights that a snapshot moves: 1 copies them."""

    def __post_init__(self) -> None:
        expect(self, "above 0 and at most 1", lambda value: 0 < value <= 1, "lerp")
        rule = "of 0 or more" if self.kind == "snapshot" else "of 0, since only a snapshot moves"
        expect(self, rule, lambda value: value == 0 or (value > 0 and self.kind == "snapshot"), "every", "each_batch")


@dataclass(frozen=True, kw_only=True)
class RowSettings:
    """How examples are laid out in rows for the model. Affects time and memory, and results only by rounding."""

    packed: bool = True
    """Compute shared prefixes only once. A model for which this is not possible is detected on first use."""
    max_tokens: int | Literal["auto"] = "auto"
    """Maximum number of tokens in one forward. A larger tree is split; a pair never is. "auto" is 4,096; in a run it is
    1,024 for a small model on a CPU, and less if the device lacks the memory."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute each layer in the backward pass instead of keeping its activations. "auto" does so in a run if the
    device lacks the memory for them."""
    shard_base: bool = False
    """Let each rank hold only a part of every frozen layer, for a base that does not fit in memory together with its
    activations; results are identical to the bit. Each rank still needs room for the whole base while loading it, and
    the engine must not be in this process."""

    def __post_init__(self) -> None:
        expect(self, 'above 0, or "auto"', lambda value: value == "auto" or value > 0, "max_tokens")

    @property
    def most(self) -> int:
        """`max_tokens` as a number."""
        return 4096 if self.max_tokens == "auto" else self.max_tokens


@dataclass(frozen=True, kw_only=True)
class RoleSettings:
    """Settings of one role; those that are not given are the same as for all roles. Not stated in the paper."""

    learning_rate: float | None = None
    """Replaces the learner's learning rate."""
    constant_rate: bool = False
    """Keep the rate constant after the warm-up."""
    examples_per_update: int | None = None
    """Examples per update, from the role's own pool; 0: all that wait there. None: from the pool that roles share."""
    window: int = 0
    """Number of most recent examples to keep. Each update draws `examples_per_update` of them, equally many of each
    choice if they are choices. 0: each example is learned once."""
    updates_per_batch: int = 1
    """Updates from the window for each batch with examples of the role. Other pools use `epochs_per_batch`."""
    by_problem: bool = False
    """Draw from the window problem by problem, since the examples of a problem share prefixes: on the seed an update
    then has 0.64 times the tokens, and six runs of 512 problems learned equally well."""

    def __post_init__(self) -> None:
        finite = "to be a finite number above 0"
        expect(self, finite, lambda value: value is None or 0 < value < math.inf, "learning_rate")
        expect(self, "of 0 or more", lambda value: value is None or value >= 0, "examples_per_update", "window")
        expect(self, "of 1 or more", lambda value: value >= 1, "updates_per_batch")
        if self.window:
            enough = f"of 2 to {self.window}, as its window needs"
            expect(self, enough, lambda value: value and 2 <= value <= self.window, "examples_per_update")
        else:
            expect(self, "of 1 without a window", lambda value: value == 1, "updates_per_batch")
            expect(self, "to be false without a window", lambda value: not value, "by_problem")


@dataclass(frozen=True, kw_only=True)
class PassSettings:
    """How a batch is cut into updates."""

    minibatches: int = 1
    """Updates per pass over a batch, which is this many times `examples_per_update`. If that is 0 or `short_batch` is
    "learn", it is all examples, in about this many parts ("learn": or more). A clip acts from the second update on."""
    epochs_per_batch: int = 1
    """Passes over each batch (PPO's epochs)."""
    short_batch: ShortBatch = "wait"
    """What happens to examples that fill no update: "wait" keeps them for the next batch, of another version; "learn"
    learns all in updates of about `examples_per_update`; "fill" samples on under one version, drops the rest (DAPO)."""
    problems_per_update: int = 0
    """Problems per update, with all their examples, in place of a recipe's `examples_per_update`; 0 counts examples."""
    skip_nonfinite: bool = False
    """Drop and count a batch whose loss or gradient is not finite, instead of stopping."""

    def __post_init__(self) -> None:
        expect(self, "of 1 or more", lambda value: value >= 1, "epochs_per_batch", "minibatches")
        expect(self, "of 0 or more", lambda value: value >= 0, "problems_per_update")


@dataclass(frozen=True, kw_only=True)
class LearnerSettings:
    """How the adapters are updated. The paper: Adam at 5e-6, batches of 32 pairs, gradients clipped at norm 1."""

    learning_rate: float = 2e-4
    """The paper's 5e-6 changes next to nothing within a few dozen updates."""
    roles: Mapping[Role, RoleSettings] = field(default_factory=dict[Role, RoleSettings])
    """Settings of single roles: `--learner.roles.stop.learning_rate 1e-3`."""
    warmup_updates: int = 0
    """Number of first updates over which the rate rises linearly; 0 starts at the full rate."""
    decay_after: int = 0
    """Updates at the full rate before it falls. For "linear" and "cosine": the total number of updates, after which the
    last rate is kept. 0 never lets it fall."""
    schedule: Schedule = "inverse"
    """How the rate falls: as 1 / t (Robbins and Monro 1951), as 1 / sqrt(t), or to 0 linearly or as half a cosine."""
    max_grad_norm: float = 1.0
    """Norm to which a role's gradient is clipped; 0 turns clipping off."""
    examples_per_update: int = 32
    """Examples per update, all roles together; 0: all that wait. How 32 pairs are pooled is not stated in the paper."""
    passes: PassSettings = field(default_factory=PassSettings)
    reference: ReferenceSettings = field(default_factory=ReferenceSettings)
    rows: RowSettings = field(default_factory=RowSettings)
    logit_temperature: float = 1.0
    """What logits of texts are divided by before log-probabilities are taken: for the policy, the reference, and those
    recorded at sampling (one more forward). PPO and GRPO in most libraries use the sampling temperature."""
    max_logprob_drift: float = 0.2
    """Stop a run, and name the likeliest cause, if log-probabilities at sampling and at learning under one version
    differ by more than this on average, in nats per token. Half precision drifts by 0.01 to 0.03. 0 never stops."""

    def __post_init__(self) -> None:
        finite = "to be a finite number above 0"
        expect(self, finite, lambda value: 0 < value < math.inf, "learning_rate", "logit_temperature")
        numbers = ("warmup_updates", "decay_after", "max_grad_norm", "examples_per_update", "max_logprob_drift")
        expect(self, "to be a finite number of 0 or more", lambda value: 0 <= value < math.inf, *numbers)
        if not self.decay_after:
            expect(self, '"inverse" where decay_after is 0', lambda value: value == "inverse", "schedule")

    def rate(self, role: Role, update: int) -> float:
        """The learning rate of the role's n-th update; `update` counts from 1."""
        own = self.roles.get(role, RoleSettings())
        schedule = replace(self, schedule="inverse", decay_after=0) if own.constant_rate else self
        return (own.learning_rate or self.learning_rate) * schedule.rate_share(update)

    def rate_share(self, update: int) -> float:
        """Factor on the learning rate at a role's n-th update, which counts from 1. Never 0."""
        warmup, end = self.warmup_updates, self.decay_after
        rise = min(1.0, update / warmup) if warmup else 1.0
        inverse = min(1.0, end / update) if end else 1.0
        left = min(1.0, max(1, end + 1 - update) / max(1, end - warmup))
        falls = {"inverse": inverse, "inverse_sqrt": math.sqrt(inverse), "linear": left}
        return rise * (falls | {"cosine": (1 - math.cos(math.pi * left)) / 2})[self.schedule]
