"""Weights as they travel: one flat buffer, a manifest that says what lies where, and a checksum.

Both sides hold the same names and shapes, or nothing is loaded: a sync that binds nothing must not look like one.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pcpo_ray.errors import WeightsError


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One parameter in the buffer: its bytes start at `offset`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        size: int = getattr(torch, self.dtype).itemsize
        return math.prod(self.shape) * size


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Everything trainable at `version`, or its running mean: each parameter's bytes, exactly, whatever its dtype."""

    version: int
    averaged: bool
    manifest: tuple[Entry, ...]
    buffer: np.ndarray
    checksum: str

    @property
    def key(self) -> tuple[int, bool]:
        """What a task names them by."""
        return self.version, self.averaged


def pack(version: int, parameters: Mapping[str, nn.Parameter], *, averaged: bool = False) -> Weights:
    """A copy of the parameters' bytes. Raises WeightsError if there are none."""
    if not parameters:
        raise WeightsError("there is no trainable parameter to send: the adapter binds no module")
    entries, offset = [], 0
    for name, parameter in parameters.items():
        dtype = str(parameter.dtype).removeprefix("torch.")
        entry = Entry(name=name, dtype=dtype, shape=tuple(parameter.shape), offset=offset)
        entries.append(entry)
        offset += entry.bytes
    buffer = np.empty(offset, np.uint8)
    for entry in entries:
        buffer[entry.offset : entry.offset + entry.bytes] = _bytes(parameters[entry.name])
    return Weights(
        version=version,
        averaged=averaged,
        manifest=tuple(entries),
        buffer=buffer,
        checksum=checksum(parameters),
    )


def apply(weights: Weights, parameters: Mapping[str, nn.Parameter]) -> str:
    """Overwrite the parameters; returns the checksum counted over them afterwards.

    Raises WeightsError, before anything is changed, if names, shapes or dtypes differ between the two sides or bytes
    are missing, and afterwards if what arrived is not what was sent.
    """
    sent = {entry.name: (entry.dtype, entry.shape) for entry in weights.manifest}
    here = {name: (str(p.dtype).removeprefix("torch."), tuple(p.shape)) for name, p in parameters.items()}
    if sent != here:
        missing, foreign = sorted(here.keys() - sent.keys()), sorted(sent.keys() - here.keys())
        other = sorted(name for name in sent.keys() & here.keys() if sent[name] != here[name])
        detail = [f"{name}: sent {sent[name]}, here {here[name]}" for name in other[:3]]
        raise WeightsError(
            f"weights of version {weights.version} do not fit: {len(missing)} not sent {missing[:3]}, "
            f"{len(foreign)} unknown here {foreign[:3]}, {len(other)} of another shape or dtype {detail}"
        )
    expected = sum(entry.bytes for entry in weights.manifest)
    if weights.buffer.nbytes != expected:
        raise WeightsError(
            f"weights of version {weights.version} arrived with {weights.buffer.nbytes} bytes; "
            f"expected {expected}, by their manifest"
        )
    for entry in weights.manifest:
        raw = torch.from_numpy(weights.buffer[entry.offset : entry.offset + entry.bytes].copy())
        with torch.no_grad():
            parameters[entry.name].copy_(raw.view(getattr(torch, entry.dtype)).reshape(entry.shape))
    arrived = checksum(parameters)
    if arrived != weights.checksum:
        raise WeightsError(
            f"weights of version {weights.version} arrived with checksum {arrived}; sent was {weights.checksum}"
        )
    return arrived


def checksum(parameters: Mapping[str, Tensor]) -> str:
    """Of names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(parameters):
        parameter = parameters[name]
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(_bytes(parameter).data)
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
