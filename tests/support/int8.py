"""Runs on 8-bit weights, and what these take."""

import importlib.util

import pytest
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

INT8 = {"model__quantization": "int8", "model__gradient_checkpointing": "true"}

with_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="NOT TESTED HERE: torchao is not installed"
)


def plain(tensor):
    """A tensor in floating point, whether it is quantised or not."""
    return tensor.dequantize() if is_traceable_wrapper_subclass(tensor) else tensor  # type: ignore[attr-defined]


def bytes_of(tensor):
    """A tensor's bytes; of a quantised one those of its parts."""
    if is_traceable_wrapper_subclass(tensor):
        return sum(getattr(tensor, name).nbytes for name in tensor.__tensor_flatten__()[0])
    return tensor.nbytes
