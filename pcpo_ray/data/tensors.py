"""Tensors on their way: conditioning a row an image, copies between devices, arrays for other processes."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

Conditioning = Mapping[str, Tensor]
"""What a model makes of texts: named tensors with one row a text."""


def of_rows(conditioning: Conditioning, rows: slice, count: int) -> Conditioning:
    """A row for each image at `rows` of `count`, all texts having as many images one after the other; may be views."""
    texts = len(next(iter(conditioning.values())))
    if texts == 1:
        return {name: row.expand(rows.stop - rows.start, *row.shape[1:]) for name, row in conditioning.items()}
    device = next(iter(conditioning.values())).device
    whose = torch.arange(rows.start, rows.stop, device=device) // (count // texts)
    return {name: row[whose] for name, row in conditioning.items()}


def in_one_piece(conditioning: Conditioning) -> Conditioning:
    """With a row of memory for each row: with one that stands for all, kernels may add up in another order."""
    return {name: rows.contiguous() for name, rows in conditioning.items()}


def sent_to(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. From the CPU to a GPU nobody waits: what the GPU has still to do goes on meanwhile."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_numpy(tensor: Tensor) -> tuple[str, np.ndarray]:
    """A tensor's dtype and an array of its bits; bfloat16, which numpy lacks, travels as uint16."""
    tensor = tensor.detach().cpu().contiguous()
    name = str(tensor.dtype).removeprefix("torch.")
    return name, (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


def from_numpy(value: tuple[str, np.ndarray]) -> Tensor:
    """The tensor that `to_numpy` saw, on memory of its own: arrays from an object store are read-only."""
    name, array = value
    return torch.from_numpy(array.copy()).view(getattr(torch, name))


def device_here() -> torch.device:
    """The accelerator, if this process can use one: logical GPUs on a CPU machine are normal in tests."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
