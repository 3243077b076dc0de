"""An objective: examples and their log-probabilities in, loss and measures out.

An objective is a value: its fields are its hyper-parameters, and calling it turns examples and the log-probabilities of
their completions into a loss and some measures. It knows no model, no adapter and no batch. One pair with its tokens'
log-probabilities under policy and reference:

    policy      chosen -0.2 -0.1    rejected -0.3 -1.0
    reference   chosen -0.3 -0.2    rejected -0.3 -0.9
    log-ratios  chosen  0.2         rejected -0.1         margin beta * 0.3, loss -log sigmoid(beta * 0.3)

Invariant: loss and measures are *sums* over the examples, so that a batch may be split over any number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from flow_dpo.core.errors import ObjectiveError

if TYPE_CHECKING:
    import torch

Tensor: TypeAlias = "torch.Tensor"
"""For the modules of settings: the parser of settings runs their imports for type checkers, too, and torch takes a
second."""
TokenLogprobs: TypeAlias = "Sequence[torch.Tensor]"
"""Of an example's completions, in their order: one value a token, float32."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Of some examples."""

    total: torch.Tensor
    """Sum over the examples of weight times loss; carries the gradient."""
    measures: Mapping[str, torch.Tensor]
    """Sums over the examples, for the record."""
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    """Examples that a measure is of, where it is not of all."""


class Objective(Protocol):
    """A loss on the policy's log-probabilities. One that depends on all examples of an update beside a row's has a
    method `for_update(examples)`, which returns the objective for its rows."""

    accepts: ClassVar[tuple[type, ...]]
    """The kinds of examples."""

    @property
    def needs_reference(self) -> bool | tuple[type, ...]:
        """Whether it reads the reference's log-probabilities, or of which kinds of examples; where not, they are not
        computed: it gets none at all, or, among examples of other kinds, an empty sequence for each."""
        ...

    def __call__(
        self, examples: Sequence[Any], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> Loss:
        """`policy` and `reference` hold the log-probabilities of each example's `completions`."""
        ...


def accepted_names(objective: Objective) -> str:
    """The names of the kinds of examples that it accepts, as text."""
    return " or ".join(kind.__name__ for kind in objective.accepts)


def check_examples(objective: Objective, examples: Sequence[object]) -> None:
    """Refuse, before any work, examples that the objective does not accept."""
    for example in examples:
        if not isinstance(example, objective.accepts):
            raise ObjectiveError(
                f"{type(objective).__name__} accepts {accepted_names(objective)}, found {type(example).__name__}; "
                f"choose a credit that makes {accepted_names(objective)}"
            )
