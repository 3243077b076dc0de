"""Settings of updates: of all roles, of single ones, of the reference policy, and of the rows that are computed.

    LearnerSettings(learning_rate=3e-3, warmup_updates=8).rate_share(4)     # 0.5: half of the warm-up

Invariants: a value that no run could use is refused where it is given; nothing heavy is imported, so that a command
line is read before torch is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from flow_dpo.core.errors import expect
from flow_dpo.core.types import Role
from flow_dpo.models.settings import LoraSettings as LoraSettings  # at hand beside the learner's own

ShortBatch = Literal["wait", "learn", "fill"]
Schedule = Literal["inverse", "inverse_sqrt", "linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class ReferenceSettings:
    """The reference policy of DPO and its relatives. Not stated in the paper."""

    kind: Literal["base", "snapshot"] = "base"
    """The base with all adapters off, or a frozen copy of each role's adapter as it was when the learner was made."""
    every: int = 0
    """Updates with the role's pool after which its snapshot is moved; 0 never moves it."""
    each_batch: bool = False
    """Move every snapshot before a batch of problems is learned from: iterated DPO's reference."""
    lerp: float = 1.0
    """Fraction of the way to the present weights by which it is moved: 1 is all the way."""

    def __post_init__(self) -> None:
        expect(self, "above 0 and at most 1", lambda value: 0 < value <= 1, "lerp")
        rule = "of 0 or more" if self.kind == "snapshot" else "of 0, since only a snapshot moves"
        expect(self, rule, lambda value: value == 0 or (value > 0 and self.kind == "snapshot"), "every", "each_batch")


@dataclass(frozen=True, kw_only=True)
class RowSettings:
    """How a batch is laid out for the model. Affects time and memory, and results only by rounding."""

    packed: bool = True
    """Compute shared prefixes once. A model that cannot be packed is detected when first used."""
    max_tokens: int | Literal["auto"] = "auto"
    """Tokens of one forward at most. A larger tree is cut; a pair never is. "auto" is 4,096, for a small
    model on a CPU 1,024 in a run, or as few as its device has memory for."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute each layer in the backward pass instead of keeping its activations. "auto" does it in a run whose
    device has no memory for them."""
    shard_base: bool = False
    """Let each of several ranks hold a part of every frozen layer, for a base that does not fit beside its activations;
    results are the same to the bit. Each rank must hold the whole base while it loads, and the engine must not be in
    this process."""

    def __post_init__(self) -> None:
        expect(self, 'above 0, or "auto"', lambda value: value == "auto" or value > 0, "max_tokens")

    @property
    def most(self) -> int:
        """`max_tokens` as a number."""
        return 4096 if self.max_tokens == "auto" else self.max_tokens


@dataclass(frozen=True, kw_only=True)
class RoleSettings:
    """What one role has of its own; what is not given is as for all. Not stated in the paper."""

    learning_rate: float | None = None
    """In place of the learner's."""
    constant_rate: bool = False
    """After the warm-up the rate does not fall."""
    examples_per_update: int | None = None
    """Examples of an update, which wait in a pool of its own; 0: all there are. None: in the pool that roles share."""
    window: int = 0
    """Last examples that are kept: each update draws `examples_per_update` of them, as many of each choice where they
    are choices. 0: each example is learned once."""
    updates_per_batch: int = 1
    """Updates from a window in each call that brings examples of the role; `epochs_per_batch` is for other pools."""
    by_problem: bool = False
    """Draw from the window problem by problem, whose examples share their prefixes: on the seed an update has 0.64 of
    the tokens, and six runs of 512 problems learned as well."""

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
    """Updates of a pass over a batch, for which so many times `examples_per_update` are gathered; of all there are (0,
    or "learn", which makes about so many or more), equal parts. From the second on a clip has something to do."""
    epochs_per_batch: int = 1
    """Passes over each batch (PPO's epochs)."""
    short_batch: ShortBatch = "wait"
    """What fills no update: "wait" leaves it to the next batch, of another version; "learn" has all learned at once in
    updates of about `examples_per_update`; "fill" samples on under one version, and drops what is left over (DAPO)."""
    problems_per_update: int = 0
    """In place of a recipe's `examples_per_update`: problems that have examples, with all of theirs; 0 counts these."""
    skip_nonfinite: bool = False
    """Drop and count a batch with a loss or gradient that is no number, instead of stopping."""

    def __post_init__(self) -> None:
        expect(self, "of 1 or more", lambda value: value >= 1, "epochs_per_batch", "minibatches")
        expect(self, "of 0 or more", lambda value: value >= 0, "problems_per_update")


@dataclass(frozen=True, kw_only=True)
class LearnerSettings:
    """How the adapters are updated. The paper: Adam, 5e-6, batches of 32 pairs, gradients clipped at 1."""

    learning_rate: float = 2e-4
    """The paper's 5e-6 changes next to nothing within a few dozen updates."""
    roles: Mapping[Role, RoleSettings] = field(default_factory=dict[Role, RoleSettings])
    """What single roles have of their own: `--learner.roles.stop.learning_rate 1e-3`."""
    warmup_updates: int = 0
    """First updates, over which the rate rises in equal steps; 0 begins with all of it."""
    decay_after: int = 0
    """Updates at the full rate, after which it falls; of "linear" and "cosine" all that there will be, and more have
    the last one's rate. 0 never lets it fall."""
    schedule: Schedule = "inverse"
    """How it falls: as 1 / t (Robbins and Monro 1951), its root, a straight line or half a cosine towards 0."""
    max_grad_norm: float = 1.0
    """Norm to which a role's gradient is clipped; 0 clips nothing."""
    examples_per_update: int = 32
    """Examples of all roles together; 0: all of a call. How problems pool to 32 pairs is not stated in the paper."""
    passes: PassSettings = field(default_factory=PassSettings)
    reference: ReferenceSettings = field(default_factory=ReferenceSettings)
    rows: RowSettings = field(default_factory=RowSettings)
    logit_temperature: float = 1.0
    """What logits of texts are divided by before they become log-probabilities: the policy's, the reference's and those
    recorded at sampling, which takes one forward more. PPO and GRPO of most libraries take that of sampling."""
    max_logprob_drift: float = 0.2
    """Mean difference, in nats a token, of log-probabilities at sampling and at learning under one version, above which
    a run is stopped with the likeliest cause. Half precision drifts by 0.01 to 0.03. 0 never stops."""

    def __post_init__(self) -> None:
        finite = "to be a finite number above 0"
        expect(self, finite, lambda value: 0 < value < math.inf, "learning_rate", "logit_temperature")
        numbers = ("warmup_updates", "decay_after", "max_grad_norm", "examples_per_update", "max_logprob_drift")
        expect(self, "to be a finite number of 0 or more", lambda value: 0 <= value < math.inf, *numbers)
        if not self.decay_after:
            expect(self, '"inverse" where decay_after is 0', lambda value: value == "inverse", "schedule")

    def rate(self, role: Role, update: int) -> float:
        """The role's learning rate at its update, counted from 1."""
        own = self.roles.get(role, RoleSettings())
        schedule = replace(self, schedule="inverse", decay_after=0) if own.constant_rate else self
        return (own.learning_rate or self.learning_rate) * schedule.rate_share(update)

    def rate_share(self, update: int) -> float:
        """What the rate is multiplied by at a role's update, counted from 1. It is never 0."""
        warmup, end = self.warmup_updates, self.decay_after
        rise = min(1.0, update / warmup) if warmup else 1.0
        inverse = min(1.0, end / update) if end else 1.0
        left = min(1.0, max(1, end + 1 - update) / max(1, end - warmup))
        falls = {"inverse": inverse, "inverse_sqrt": math.sqrt(inverse), "linear": left}
        return rise * (falls | {"cosine": (1 - math.cos(math.pi * left)) / 2})[self.schedule]
