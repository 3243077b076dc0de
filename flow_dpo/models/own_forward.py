"""A model's own forward: what every other way of computing its log-probabilities is compared with.

`model(input_ids=...)`, one whole sequence at a time, without a cache, with the family's own eager attention. In half
precision a fault can be as small as rounding, so there the yardstick is the same weights in float32: a way is allowed
to be off from it by about as much as the model's own half-precision forward is.

    own = OwnForward(model, [Case((5, 6, 7), (8, 9))])
    own.complaint([[-1.25, -0.5]])          # "" or "0.82 nats off the model's own forward, 0.001 allowed"

Invariant: afterwards the model is as it was, including its attention and the bits of its weights.

Shapes: T tokens, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from flow_dpo.core.types import TokenIds

FAULTS = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError, ArithmeticError)
"""What a model can raise, anywhere inside, if it does not support a way of calling it."""
FULL_TOLERANCE = 1e-3
"""Largest difference allowed in float32, in nats."""
HALF_TOLERANCE = 0.5
"""Mean difference allowed in half precision if there is no yardstick, in nats: logits above 16 are 1/8 apart there. It
is usually 0.01 to 0.03 on text that the model would generate, and 0.3 on very improbable tokens."""
HALF_FACTOR, HALF_SLACK = 3.0, 0.1
"""In half precision a way can be this many times as far from float32 as the model's own forward, plus this many nats.
The worst quarter of the tokens is left out of both: rounding can flip a router of experts, which costs whole nats."""
REDUCED_TOLERANCE = 1e-2
"""Largest difference allowed in a reduced copy, in nats: there a fault shows as tenths, and some families' float32
rounding as thousandths."""
_STIRRED, _STIRRED_GENTLY = 0.1, 0.02
"""Standard deviation of an adapter's weights in a probe. At 0.1 a pretrained model is so far off that rounding alone
makes differences of whole nats in half precision and of 1e-3 in float32 (0.5B; 4e-5 at 0.02). Its reduced copy, in
float32, gets the larger one."""
_SMALL = 1 << 24
"""Number of weights up to which a float32 model itself gets the larger one."""
MOST_IN_FLOAT32 = 1 << 30
"""Number of weights above which a half-precision model is not tried in float32: 4 GiB."""


@dataclass(frozen=True, slots=True)
class Case:
    """A completion whose log-probabilities are compared."""

    prompt_ids: TokenIds
    token_ids: TokenIds
    choices: TokenIds = ()
    """If there are any, log-probabilities are renormalised over them."""


class OwnForward:
    """The log-probabilities of some completions by the model's own forward, under the adapter that is on.

    Raises one of `FAULTS` if that forward itself fails.
    """

    def __init__(self, model: PreTrainedModel, cases: Sequence[Case], *, tolerance: float = FULL_TOLERANCE) -> None:
        self._tolerance = tolerance
        quantised = bool(getattr(model, "is_quantized", False))
        # Products of 8-bit numbers round as half precision does, or more.
        self._half = model.dtype != torch.float32 or bool(getattr(model, "is_loaded_in_8bit", False))
        self._exact: torch.Tensor | None = None
        with torch.no_grad(), _own_attention(model):
            self._own = torch.cat([_logprobs(model, case) for case in cases])
            if self._half and not quantised and model.num_parameters() <= MOST_IN_FLOAT32:
                # Some families fix a dtype in their code and cannot be computed in another.
                with suppress(*FAULTS), _in_float32(model):
                    self._exact = torch.cat([_logprobs(model, case) for case in cases])
        if not torch.isfinite(self._own).all():
            raise ValueError("its own forward gives log-probabilities that are not finite")
        self._check_causal(cases)

    def _check_causal(self, cases: Sequence[Case]) -> None:
        """Raise `ValueError` if the log-probability of the first token after a prompt depends on what follows it."""
        values = self._own if self._exact is None else self._exact
        firsts: dict[tuple[TokenIds, TokenIds], float] = {}
        for case, found in zip(cases, values.split([len(case.token_ids) for case in cases]), strict=True):
            first = float(found[0])
            known = firsts.setdefault((case.prompt_ids, case.choices or case.token_ids[:1]), first)
            if not case.choices and abs(known - first) > (HALF_TOLERANCE if self._half else self._tolerance):
                raise ValueError(
                    f"its own forward is not causal: what follows a token changes its log-probability from {known:.3f} "
                    f"to {first:.3f}"
                )

    def complaint(self, found: Sequence[Sequence[float] | torch.Tensor]) -> str:
        """How far the log-probabilities `found` are off, if that is more than rounding; "" otherwise."""
        values = torch.cat([torch.as_tensor(each, dtype=torch.float32).cpu() for each in found])
        if not self._half:
            return _beyond(_difference(values, self._own).max().item(), self._tolerance)
        if self._exact is not None:
            allowed = HALF_FACTOR * _trimmed_mean(_difference(self._own, self._exact)) + HALF_SLACK
            if found_beyond := _beyond(_trimmed_mean(_difference(values, self._exact)), allowed):
                return found_beyond
        return _beyond(_difference(values, self._own).mean().item(), HALF_TOLERANCE)


def _beyond(error: float, allowed: float) -> str:
    return f"{error:.2g} nats off the model's own forward, {allowed:.2g} allowed" if not error <= allowed else ""


def _trimmed_mean(differences: torch.Tensor) -> float:
    """The mean without the worst quarter."""
    return differences.sort().values[: max(1, len(differences) * 3 // 4)].mean().item()


_T = TypeVar("_T")


def complaint_of(compute: Callable[[_T], str], of: _T) -> str:
    """The complaint that `compute(of)` returns, or the error that the model raised inside."""
    try:
        return compute(of)
    except torch.OutOfMemoryError:
        raise
    except FAULTS as error:
        return f"{type(error).__name__}: {str(error) or 'no message'}"[:300]


def _difference(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left - right).abs().nan_to_num(nan=torch.inf)  # NaN is as wrong as possible


def _logprobs(model: PreTrainedModel, case: Case) -> torch.Tensor:
    """One value per token of the completion, from one forward over all of it."""
    ids_1T = torch.tensor([case.prompt_ids + case.token_ids[:-1]], device=model.device)
    logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0, len(case.prompt_ids) - 1 :].float()
    labels = list(case.token_ids)
    if case.choices:
        logits_TV, labels = logits_TV[:, list(case.choices)], [case.choices.index(case.token_ids[0])]
    return logits_TV.log_softmax(-1)[range(len(labels)), labels].cpu()


@contextmanager
def _own_attention(model: PreTrainedModel) -> Iterator[None]:
    """A context in which the model uses its family's own attention code, which handles caps, sinks and biases."""
    name = str(model.config._attn_implementation)
    if name == "eager" or not model._can_set_attn_implementation():
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(name)


@contextmanager
def _in_float32(model: PreTrainedModel) -> Iterator[None]:
    """A context in which the weights have the same values in float32."""
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point() and t.dtype != torch.float32]
    halves = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, half in zip(tensors, halves, strict=True):
            tensor.data = half


@contextmanager
def stirred(parameters: Sequence[torch.Tensor], seed: int, model: PreTrainedModel) -> Iterator[None]:
    """A context in which an adapter's tensors that are all zero, as before the first update, have random values.

    A new adapter changes nothing, so it would prove nothing. Afterwards the tensors are zero again.
    """
    zero = [(index, tensor) for index, tensor in enumerate(parameters) if not tensor.any()]
    scale = _STIRRED if model.dtype == torch.float32 and model.num_parameters() <= _SMALL else _STIRRED_GENTLY
    with torch.no_grad():
        for index, tensor in zero:
            generator = torch.Generator().manual_seed(1000 * seed + index)
            tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
    try:
        yield
    finally:
        with torch.no_grad():
            for _, tensor in zero:
                tensor.zero_()
