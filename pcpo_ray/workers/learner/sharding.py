"""Parameters in parts: fsdp2, and the parts that each rank saves."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pcpo_ray.errors import CheckpointError, ModelError
from pcpo_ray.workers.learner.distributed import Rank


def shard(module: nn.Module, rank: Rank, device: torch.device) -> None:
    """Shard every parameter over the ranks, in place: the blocks that diffusers does not split, then the rest.

    The module is on the CPU; each block comes to the `device` whole and is cut there. Parts of an `offloaded` rank go
    back to the CPU, where the optimizer steps them.

    Parameters are freed right after use, so that `named_parameters` are always the parts. Trained half-precision
    weights get float32 parts, which are gathered in half precision and whose gradients are reduced in float32. An
    adapter's weights are float32 already. Each block asks for the next one of its list before it computes, and nothing
    stays gathered between passes.

    Raises ModelError for trained weights of two dtypes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    mesh = init_device_mesh(device.type, (rank.count,))
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if rank.offloaded else OffloadPolicy()
    trained = sorted({parameter.dtype for parameter in module.parameters() if parameter.requires_grad}, key=str)
    if len(trained) > 1:
        raise ModelError(
            f"the network's own weights are of {trained}, and workers.learner.strategy=fsdp2 gathers all in one dtype; "
            "use model.dtype=float32, workers.learner.strategy=ddp, or model.train.kind=lora"
        )
    policy = MixedPrecisionPolicy()
    if trained != [torch.float32]:
        (dtype,) = trained
        # inputs are not cast: a timestep rounded to bfloat16 is another timestep
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)

    def cut(part: nn.Module) -> None:
        for parameter in part.parameters():
            if policy.param_dtype is not None and parameter.dtype is not torch.float32:
                parameter.data = parameter.data.float()  # a block at a time: all at once would take twice their memory
        fully_shard(part, mesh=mesh, reshard_after_forward=True, mp_policy=policy, offload_policy=offload)

    gather_whole = set(getattr(module, "_no_split_modules", None) or ())
    for part in [part for part in module.modules() if type(part).__name__ in gather_whole][::-1]:  # inner ones first
        cut(part)
    cut(module)
    for blocks in module.modules():
        if isinstance(blocks, nn.ModuleList):
            for block, following in pairwise(_sharded(blocks, inner=False)):
                block.set_modules_to_forward_prefetch([following])


def reduce_last(module: nn.Module, *, adapter: bool) -> Callable[[], None]:
    """Let each rank add up an adapter's gradients over its passes; call what is returned before the last of them.

    Ranks reduce what they added up once, in that pass. Gradients of all weights are reduced in every pass: whole, those
    of FLUX would take 24 to 48 GB of each rank.
    """
    parts = _sharded(module) if adapter else []

    def reduce(now: bool) -> None:
        for part in parts:
            part.set_requires_gradient_sync(now, recurse=False)

    reduce(False)
    return lambda: reduce(True)


def join_parts(module: nn.Module) -> None:
    """Hold every parameter whole from now on; all ranks together. Nothing changes in a network that is not sharded.

    Passes gather nothing until `split_again`, so that ranks may make different numbers of them.
    """
    for part in _sharded(module):
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()


def split_again(module: nn.Module) -> None:
    """Hold a part of every parameter again, as before `join_parts`; each rank for itself."""
    for part in _sharded(module):
        part.reshard()
        part.set_reshard_after_forward(True, recurse=False)


def _sharded(module: nn.Module, *, inner: bool = True) -> list[Any]:
    """List a network's sharded parts, or only a module's own ones."""
    from torch.distributed.fsdp import FSDPModule

    return [part for part in (module.modules() if inner else module.children()) if isinstance(part, FSDPModule)]


def gather_whole(tensor: Tensor) -> Tensor:
    """Gather a tensor whole; with `fsdp2` every rank must call this."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this rank's part of a whole tensor, on the device of `like` and sharded as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return tensor.to(like.device)
    # it is cut on the mesh's device, and offloaded parts are on the CPU
    return distribute_tensor(tensor, like.device_mesh, like.placements).to(like.device)


def owners(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Assign each named tensor to the rank that writes it, so that all write about as many bytes."""
    written = [0] * count
    found = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        found[name] = written.index(min(written))
        written[found[name]] += sizes[name]
    return found


def load_parameters(folder: Path, saved: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    """Overwrite `parameters` with the saved float32 values, rounded to any narrower dtype.

    Raises CheckpointError if names or shapes differ from the checkpoint's, or the saved values are not float32.
    """
    there = {name: (value.dtype, value.shape) for name, value in saved.items()}
    here = {name: (torch.float32, p.shape) for name, p in parameters.items()}
    if there != here:
        differing = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
        raise CheckpointError(
            f"checkpoint {folder} is of another model: {len(differing)} of {len(here)} parameters differ, "
            f"such as {differing[:3]}; use the config that it was trained with"
        )
    with torch.no_grad():
        for name, value in saved.items():
            parameters[name].copy_(shard_like(value, parameters[name]))
