"""CUDA's autocast on the CPU's tensors: which operators compute in float32 differs between the two devices.

The lists are those of "CUDA Ops that can autocast to float32" and "CPU Op-Specific Behavior" in torch's documentation
(torch.amp), as far as denoising networks use them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

FLOAT32 = {
    functional.layer_norm,
    functional.group_norm,
    functional.softmax,
    torch.softmax,
    Tensor.softmax,
    torch.exp,
    Tensor.exp,
    torch.pow,
    Tensor.pow,
    Tensor.__pow__,
    torch.rsqrt,
    Tensor.rsqrt,
    torch.sum,
    Tensor.sum,
}
"""CUDA's autocast computes these in float32; the CPU's leaves them in the dtype that comes in."""

AS_THEY_ARE = {torch.cat, torch.stack}
"""CUDA's autocast leaves these alone; the CPU's refuses float16 beside bfloat16 in them."""


OTHERWISE = FLOAT32 | AS_THEY_ARE


class CudaRules(TorchFunctionMode):
    """Inside, what is under the CPU's autocast follows CUDA's rules."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_autocast_enabled("cpu") and function in OTHERWISE:
            if function in FLOAT32:
                args, kwargs = tree_map(_precise, (args, kwargs))
            with torch.autocast("cpu", enabled=False):
                return function(*args, **kwargs)
        return function(*args, **kwargs)


def _precise(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value
