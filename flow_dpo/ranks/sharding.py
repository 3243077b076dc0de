"""A frozen base sharded over ranks: each holds a part of every layer, and a whole layer only while it is computed.

torch's `fully_shard` is applied to the decoder's layers, without the adapters: those stay plain tensors, and so do
their gradients and Adam's moments. Embeddings, the last norm and the head stay whole on every rank, because they are
read outside their modules:

    shard_base(policy, 2)     Qwen2.5-7B in bfloat16: 8.7 GB per rank instead of 15.2, plus a layer of 0.5
    shard_base(policy, 8)     3.8 GB, of which 2.2 are embeddings and head

Invariants: the layers' weights are gathered to the bits that they had, so results are those of a whole base. From then
on every forward or backward pass is one of all ranks together.
"""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from flow_dpo.core.errors import ModelError
from flow_dpo.learner.policy import Policy
from flow_dpo.models import fused_decoder


def shard_base(policy: Policy, num_ranks: int) -> None:
    """Keep this rank's part of every layer of the base. All ranks call it, once, with the same weights.

    Raises `ModelError` for a model whose decoder has no list of layers.
    """
    fused_decoder.give_up(policy.model)  # it reads weights that will be sharded
    decoder = policy.model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if not isinstance(decoder, torch.nn.Module) or not isinstance(layers, torch.nn.ModuleList) or not layers:
        raise ModelError(
            f"expected a decoder with a list of layers for --learner.rows.shard_base, found none in "
            f"{type(policy.model).__name__}: leave it out"
        )
    mesh = init_device_mesh(policy.model.device.type, (num_ranks,))
    adapters = {parameter for name in policy.adapters for parameter in policy.parameters(name)}
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=adapters)
    in_layers = set(layers.parameters())
    whole = {parameter for parameter in decoder.parameters() if parameter not in in_layers}
    fully_shard(decoder, mesh=mesh, ignored_params=adapters | whole)


def local_parameters(model: torch.nn.Module) -> int:
    """How many numbers of the model's weights this process holds."""
    return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in model.parameters())


def refuse_parallel(model: torch.nn.Module) -> None:
    """Raise `ModelError` for a model whose weights are already distributed, as under tensor parallelism.

    PEFT would mix its plain tensors with them, and this package reads the head's weights itself.
    """
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            raise ModelError(
                f"expected a model with whole weights, found {name} distributed over processes: a learner cannot be "
                "tensor parallel. Load the model whole, and share it with --learner.rows.shard_base true; vLLM's "
                "workers can be tensor parallel"
            )
