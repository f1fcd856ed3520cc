"""Timing: the wall-clock seconds of a call, from which a batch or micro-batch is chosen."""

import time
from collections.abc import Callable

import torch


def seconds_of(call: Callable[[int], object], size: int, device: torch.device) -> float:
    """Return the seconds that `call(size)` takes until the device has done its work."""
    started = time.perf_counter()
    call(size)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
