"""Live: how many bytes of tensors an operation needs at once, beside those that were there before it."""

import weakref
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CONVOLUTIONS = (torch.ops.aten.convolution, torch.ops.aten.convolution_backward)


class Live(TorchDispatchMode):
    """Inside, every tensor's storage is counted from when it is made until nobody holds it: `now`, and its `peak`.

    Counts what torch's operators give back, on any device and on fake tensors; not what an allocator rounds up or
    keeps, nor what a kernel needs only while it runs. But a convolution has copies in a layout of its own, by the
    `kernels` named: oneDNN's ("cpu") one of the largest tensor that it sees, unless the channels come last in memory,
    which is its own layout; cuDNN's ("cuda") on the way forward one of what comes in and one of what comes out
    (docs/bench: a decoder that was seen to have these, or fewer).
    """

    def __init__(self, kernels: Literal["cpu", "cuda"] | None = None) -> None:
        super().__init__()
        self.kernels = kernels
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._see(tensor, 0)  # whatever comes in unseen was there before
        result = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor, tensor.untyped_storage().nbytes())
        if self.kernels == "cpu" and operator.overloadpacket in CONVOLUTIONS and not _channels_last(operator, args):
            seen = [tensor for tensor in tree_leaves((args, kwargs, result)) if isinstance(tensor, Tensor)]
            self.peak = max(self.peak, self.now + max(tensor.nbytes for tensor in seen))
        if self.kernels == "cuda" and operator.overloadpacket is torch.ops.aten.convolution:
            self.peak = max(self.peak, self.now + args[0].nbytes + result.nbytes)
        return result

    def _see(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known[key] = size
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._known.pop(key)


def _channels_last(operator: Any, args: Any) -> bool:
    """Return whether all images that a convolution is given have their channels last in memory."""
    images = args[:1] if operator.overloadpacket is torch.ops.aten.convolution else args[:2]
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    return all(
        image.ndim in layouts and not image.is_contiguous() and image.is_contiguous(memory_format=layouts[image.ndim])
        for image in images
    )
