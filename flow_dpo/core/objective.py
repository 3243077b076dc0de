"""An objective: examples and their log-probabilities in, loss and measures out.

An objective is a value: its fields are its hyper-parameters, and calling it turns examples and the log-probabilities of
their completions into a loss and some measures. It knows no model, no adapter and no batch. One pair with its tokens'
log-probabilities under policy and reference:

    policy      chosen -0.2 -0.1    rejected -0.3 -1.0
    reference   chosen -0.3 -0.2    rejected -0.3 -0.9
    log-ratios  chosen  0.2         rejected -0.1         margin beta * 0.3, loss -log sigmoid(beta * 0.3)

Invariant: loss and measures are *sums* over the examples, so a batch can be split over any number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from flow_dpo.core.errors import ObjectiveError

if TYPE_CHECKING:
    import torch

Tensor: TypeAlias = "torch.Tensor"
"""For modules that define settings: the settings parser also runs their imports for type checkers, and importing torch
takes a second."""
TokenLogprobs: TypeAlias = "Sequence[torch.Tensor]"
"""One float32 tensor for each of an example's completions, in order, with one log-probability per token."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of some examples, with measures."""

    total: torch.Tensor
    """Sum over the examples of weight times loss; carries the gradient."""
    measures: Mapping[str, torch.Tensor]
    """Sums over the examples, for the record."""
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    """Number of examples that a measure covers, if it does not cover all."""


class Objective(Protocol):
    """A loss on the policy's log-probabilities. If it depends on all examples of an update and not only on a row's, it
    has a method `for_update(examples)`, which returns the objective for the rows of that update."""

    accepts: ClassVar[tuple[type, ...]]
    """The kinds of examples that it can learn from."""

    @property
    def needs_reference(self) -> bool | tuple[type, ...]:
        """Whether it reads the reference's log-probabilities, or the kinds of examples for which it does. They are not
        computed for rows that need none: `reference` is then empty, or holds an empty sequence per example."""
        ...

    def __call__(
        self, examples: Sequence[Any], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> Loss:
        """`policy` and `reference` hold the log-probabilities of each example's `completions`."""
        ...


def accepted_names(objective: Objective) -> str:
    """The names of the kinds of examples that an objective accepts, as text."""
    return " or ".join(kind.__name__ for kind in objective.accepts)


def check_examples(objective: Objective, examples: Sequence[object]) -> None:
    """Raise `ObjectiveError`, before any work, for an example that the objective does not accept."""
    for example in examples:
        if not isinstance(example, objective.accepts):
            raise ObjectiveError(
                f"{type(objective).__name__} accepts {accepted_names(objective)}, found {type(example).__name__}; "
                f"choose a credit that makes {accepted_names(objective)}"
            )
