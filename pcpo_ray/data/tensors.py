"""Helpers for tensors: rows of conditioning for images, copies between devices, arrays for other processes."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

Conditioning = Mapping[str, Tensor]
"""A model's encoding of texts: named tensors with one row for each text."""


def of_rows(conditioning: Conditioning, rows: slice, count: int) -> Conditioning:
    """Give a row to each image at `rows` of `count`; each text has equally many images in a row. May return views."""
    texts = len(next(iter(conditioning.values())))
    if texts == 1:
        return {name: row.expand(rows.stop - rows.start, *row.shape[1:]) for name, row in conditioning.items()}
    device = next(iter(conditioning.values())).device
    whose = torch.arange(rows.start, rows.stop, device=device) // (count // texts)
    return {name: row[whose] for name, row in conditioning.items()}


def in_one_piece(conditioning: Conditioning) -> Conditioning:
    """Give every row its own memory: kernels may sum expanded rows in another order."""
    return {name: rows.contiguous() for name, rows in conditioning.items()}


def sent_to(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy the tensor to the device; from the CPU to a GPU without waiting, while the GPU goes on with queued work."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def part_here(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds; without gradients it is the part itself, and no view."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def to_numpy(tensor: Tensor) -> tuple[str, np.ndarray]:
    """Convert a tensor to its dtype's name and an array of its bits; bfloat16, which numpy lacks, becomes uint16."""
    tensor = tensor.detach().cpu().contiguous()
    name = str(tensor.dtype).removeprefix("torch.")
    return name, (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


def from_numpy(value: tuple[str, np.ndarray]) -> Tensor:
    """Convert the result of `to_numpy` back, in memory of its own: arrays from an object store are read-only."""
    name, array = value
    return torch.from_numpy(array.copy()).view(getattr(torch, name))


def device_here() -> torch.device:
    """Find the accelerator, if this process can use one: tests have logical GPUs on machines without any."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
