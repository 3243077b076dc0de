"""Probes: the tokens and the models with which ways of computing log-probabilities are compared.

The model itself gets short prompts. Long lengths that its config names (a window of 4,096 tokens) are exceeded on its
reduced copy, which is random, tiny, and in float32, where a fault cannot hide behind rounding:

    name, seen = first_right({"local": way, "plain": other}, subject, subject.reduced, model, key=(settings, roles))

Invariant: a way is right only if it is right on the model and beyond every length that its config names. A small model
whose first way was right is not probed again in this process as long as its config, its modules, the base's weights and
`key` (what else the ways depend on) are the same: a comparison opens one model dozens of times.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from transformers import PreTrainedModel

from flow_dpo.core.types import TokenIds
from flow_dpo.models import attention
from flow_dpo.models.dense_decoder import is_plain
from flow_dpo.models.facts import context_tokens, named_lengths, steady_tokens, vocabulary_size
from flow_dpo.models.own_forward import FAULTS, complaint_of
from flow_dpo.models.reduced import WINDOW, reduced

Subject = TypeVar("Subject")

_IN_FLOAT32 = "in float32"
REACH = 6 * WINDOW
"""A probe of a small model, such as a reduced copy, is over twice as long: several windows, chunks and blocks."""
_SMALL = 1 << 24
"""Number of weights up to which a model itself is probed beyond `REACH`; of a larger one its reduced copy is."""
_SHORT = 4
_TAME = 8.0
"""Largest number in an adapter with which an earlier result can be reused; a diverged adapter is probed again."""
_found_right: set[str] = set()
"""Digests of what this process has probed and found right."""


@dataclass(frozen=True, kw_only=True)
class Way(Generic[Subject]):
    """A way of computing log-probabilities."""

    complaint: Callable[[Subject], str]
    """How far it is off from the subject's own forward; "" if it is right. Can raise `FAULTS`."""
    whole: bool = False
    """Whether each completion gets its own forwards over all its tokens; then trusted beyond lengths not tried."""
    layout: bool = False
    """Whether it needs the attention that this package registers."""


def first_right(
    ways: Mapping[str, Way[Subject]],
    subject: Subject,
    reduce: Callable[[], Subject],
    model: PreTrainedModel,
    *,
    key: object,
) -> tuple[str, dict[str, str]]:
    """The name of the first way that is right ("" if none is), and the complaint about each way that was tried.

    `reduce` makes the same subject over the model's reduced copy. `key` is what the ways depend on besides the model,
    compared by its `repr`; with None nothing is remembered. If no way is right under the registered attention, the
    model gets its family's own back for good, and ways without layouts are tried again.
    """
    first, digest = next(iter(ways)), "" if key is None else _digest(model, [*ways], key)
    if digest in _found_right:
        return first, {first: ""}
    name, seen = _first_right(ways, subject, reduce, model)
    if digest and name == first:
        _found_right.add(digest)
    if not name and attention.give_up(model):
        name, again = _first_right({n: way for n, way in ways.items() if not way.layout}, subject, reduce, model)
        seen |= again
    return name, seen


def _digest(model: PreTrainedModel, ways: list[str], key: object) -> str:
    """A digest of all that a probe depends on except the numbers in an adapter; "" if nothing is to be remembered: for
    a model that is large, on a GPU, on several ranks, quantised, hooked or patched, or that has a diverged adapter."""
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if several or model.device.type != "cpu" or model.num_parameters() > _SMALL:
        return ""
    if hasattr(model, "hf_quantizer") or not is_plain(model):
        return ""
    facts = [model.config._attn_implementation, torch.get_num_threads(), model.dtype, ways, key, model.config.to_dict()]
    digest = hashlib.blake2b(repr(facts).encode())
    for name, module in model.named_modules():
        digest.update(f"{name} {type(module).__module__} {type(module).__qualname__}".encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.layout is not torch.strided:
            return ""
        if ".lora_" not in name:
            digest.update(tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().data)
        elif not tensor.abs().max() <= _TAME:
            return ""
    return digest.hexdigest()


def _first_right(
    ways: Mapping[str, Way[Subject]],
    subject: Subject,
    reduce: Callable[[], Subject],
    model: PreTrainedModel,
) -> tuple[str, dict[str, str]]:
    subjects, unseen = [subject], ""
    reason = _needs_reduced(model)
    if reason:
        try:
            subjects.append(reduce())
        except FAULTS as error:
            unseen = f"it could not be tried {reason}: {type(error).__name__}: {error}"[:300]
    seen: dict[str, str] = {}
    for name, way in ways.items():
        seen[name] = "" if way.whole or reason == _IN_FLOAT32 else unseen
        for each in subjects:
            seen[name] = seen[name] or complaint_of(way.complaint, each)
        if not seen[name]:
            return name, seen
    return "", seen


def _needs_reduced(model: PreTrainedModel) -> str:
    """Why probing the model itself is not enough: a length that it does not exceed, or half precision; "" if it is."""
    beyond = {name: n for name, n in named_lengths(model.config).items() if n > probe_reach(model)}
    if beyond:
        return "past " + ", ".join(f"{name} {n}" for name, n in beyond.items())
    return _IN_FLOAT32 if model.dtype != torch.float32 else ""


def probe_reach(model: PreTrainedModel) -> int:
    """The length in tokens of which a probe of this model has over twice as many."""
    return REACH if model.num_parameters() <= _SMALL else _SHORT


def probe_tokens(model: PreTrainedModel, count: int, seed: int) -> TokenIds:
    """Random tokens of the vocabulary, among them padding, end and begin tokens: real text has them too, and some
    families count positions by them."""
    config = model.config.get_text_config().to_dict()
    tokens = {name: value for name, value in config.items() if name.endswith(("token_id", "token_index"))}
    special = {value for value in tokens.values() if isinstance(value, int)}
    size = min(vocabulary_size(model), config.get("vocab_size") or 1 << 40)
    usual = [token for token in range(min(size, 4096)) if token not in special]
    picked = torch.randint(len(usual), (count,), generator=torch.Generator().manual_seed(seed))
    ids = [usual[index] for index in picked.tolist()]
    for place, name in ((count // 3, "pad_token_id"), (count // 3 + 2, "eos_token_id"), (count // 2, "bos_token_id")):
        token = tokens.get(name)
        if count > 10 and isinstance(token, int) and 0 <= token < size:
            ids[place] = token
    return tuple(ids)


def probe_room(model: PreTrainedModel) -> int:
    """Maximum length of a probe in tokens: the context window, as far as rotary embeddings are steady."""
    return min(context_tokens(model.config) or 1 << 20, steady_tokens(model) or 1 << 20)


def reduced_model(model: PreTrainedModel) -> PreTrainedModel:
    """A tiny random model of the same class with the reduced config, in float32 on the CPU, in eval mode.

    Raises one of `FAULTS` if the class cannot be built that way, or does not run.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        small = type(model)(reduced(model.config)).float().eval()
        with torch.no_grad():
            for name, parameter in small.named_parameters():
                if name.endswith("bias") and not parameter.any():
                    parameter.normal_(std=0.1)  # with zeros nobody would notice that it is left out
            if not small(input_ids=torch.arange(3, 3 + 2 * WINDOW)[None], use_cache=False).logits.isfinite().all():
                raise ValueError("its reduced copy gives logits that are not finite")
    return small
