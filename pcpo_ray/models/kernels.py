"""Kernels: how a network computes, by its attention's program (model.attention) and by compiling its blocks.

Both are checked before any weights are read: on a network of the same config without weights, and by looking for the
compiler. A backend whose package is missing, or a network that would ignore one, is an error and never a fall-back.
"""

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pcpo_ray.config import Model
from pcpo_ray.errors import ModelError
from pcpo_ray.models.described import read_json

MOST_VARIANTS = 128
"""The most variants of a block that are compiled: a variant for each shape, with and without adapter and gradients."""


def check(model: Model, folder: Path, part: str, *, compiled: str = "") -> None:
    """Check that the folder's network can use `model.attention`, and be compiled as the key `compiled` asks.

    No weights are read. Raises ModelError.
    """
    if model.attention is None and not compiled:
        return
    network = without_weights(folder, part)
    use_attention(network, model.attention)
    if compiled and not repeated_blocks(network):
        raise ModelError(
            f"{compiled} is true, and {type(network).__name__} names no repeated blocks that diffusers could compile; "
            "leave it out"
        )


def without_weights(folder: Path, part: str) -> Any:
    """Make the folder's network without weights. Raises ModelError for one that is not diffusers' own."""
    import diffusers
    from accelerate import init_empty_weights

    library, name = read_json(folder / "model_index.json")[part]
    network_class = getattr(diffusers, name, None)
    if network_class is None:
        raise ModelError(
            f"{folder / part} is a {name} of {library}; model.attention, sampling.compile and optimizer.compile are "
            "for networks of diffusers: leave them out"
        )
    with init_empty_weights():
        return network_class.from_config(network_class.load_config(folder / part, local_files_only=True))


def use_attention(network: Any, backend: str | None) -> None:
    """Have a network compute attention by one of diffusers' backends, and no other network in this process.

    None leaves it as it is. Raises ModelError where the backend's package is missing, or the network would not use it.
    """
    from diffusers.models.attention_dispatch import attention_backend

    if backend is None:
        return
    if not any(hasattr(getattr(layer, "processor", None), "_attention_backend") for layer in network.modules()):
        raise ModelError(
            f"model.attention is {backend!r}, and diffusers does not dispatch the attention of a "
            f"{type(network).__name__}, which would go on as before; leave it out"
        )
    try:
        with attention_backend("native"):  # diffusers would make it every other network's too
            network.set_attention_backend(backend)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"model.attention is {backend!r}: {error}; install it, or leave model.attention out"
        ) from error


def repeated_blocks(network: Any) -> list[nn.Module]:
    """List the blocks of a network that diffusers compiles."""
    names = set(getattr(network, "_repeated_blocks", None) or ())
    return [part for part in network.modules() if type(part).__name__ in names]


def check_compiler(key: str, device: torch.device) -> None:
    """Raise ModelError unless this machine can compile for the device, as `key` asks."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ModelError(
            f"{key} is true, and this machine has no {compiler}; install g++, name one in CXX, or unset it"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ModelError(f"{key} is true, and triton is not installed here; install it, or leave {key} out")


def compile_blocks(network: Any) -> None:
    """Compile the repeated blocks of a network, each variant of shapes on its own.

    A shape that has been compiled keeps its code when others come, so that equal passes give equal bits. Too many
    variants raise an error in the pass that asks for one more.
    """
    from torch._dynamo import config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, MOST_VARIANTS)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, 8 * MOST_VARIANTS)
    dynamo.fail_on_recompile_limit_hit = True
    for block in repeated_blocks(network):
        block.compile(dynamic=False)
