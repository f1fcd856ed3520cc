"""Weights as they travel: flat buckets of bytes, a manifest of what lies where, and a checksum.

Nothing is loaded unless both sides have the same names and shapes: a sync that changes nothing must not pass for one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from pcpo_ray.errors import WeightsError

BUCKET = 256 * 2**20
"""Largest size of a bucket in bytes, unless one parameter alone is larger."""

PIECE = 2**18
"""Bytes that are copied and then hashed at a time, so that a core hashes what its cache still holds."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One parameter: the number of its bucket, and the `offset` at which its bytes start there."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bucket: int
    offset: int

    @property
    def bytes(self) -> int:
        """The size of the parameter in bytes."""
        size: int = getattr(torch, self.dtype).itemsize
        return math.prod(self.shape) * size


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The layout of everything trainable at `version`, or of its EMA, in buckets of `sizes` bytes."""

    version: int
    averaged: bool
    entries: tuple[Entry, ...]
    sizes: tuple[int, ...]
    checksum: str
    canary: tuple[float, ...] = ()
    """The sender's prediction with these weights on the canary input (canary.py)."""

    @property
    def key(self) -> tuple[int, bool]:
        """The key by which a task names these weights."""
        return self.version, self.averaged


@dataclass(frozen=True, kw_only=True)
class WeightSnapshot:
    """A manifest and its buckets, with the exact bytes of each parameter, whatever its dtype."""

    manifest: Manifest
    buckets: tuple[np.ndarray, ...]


def layout(parameters: Mapping[str, Tensor], bucket: int = BUCKET) -> tuple[tuple[Entry, ...], tuple[int, ...]]:
    """Lay the parameters out: where each goes, and the sizes of the buckets. Raises WeightsError if there is none."""
    if not parameters:
        raise WeightsError("there is no trainable parameter to send: the adapter binds no module")
    entries: list[Entry] = []
    sizes = [0]
    for name, parameter in parameters.items():
        size = parameter.numel() * parameter.element_size()
        if sizes[-1] and sizes[-1] + size > bucket:
            sizes.append(0)
        entries.append(
            Entry(
                name=name,
                dtype=str(parameter.dtype).removeprefix("torch."),
                shape=tuple(parameter.shape),
                bucket=len(sizes) - 1,
                offset=sizes[-1],
            )
        )
        sizes[-1] += size
    return tuple(entries), tuple(sizes)


def pack(
    version: int,
    parameters: Mapping[str, Tensor],
    *,
    averaged: bool = False,
    canary: tuple[float, ...] = (),
    bucket: int = BUCKET,
    over: WeightSnapshot | None = None,
) -> WeightSnapshot:
    """Copy the parameters' bytes, reusing the buffers of `over` if the sizes match; `over` is invalid afterwards.

    New memory costs a process several times the copy. Raises WeightsError if there are no parameters.
    """
    entries, sizes = layout(parameters, bucket)
    if over is not None and over.manifest.sizes == sizes:
        buckets = over.buckets
    else:
        buckets = tuple(np.empty(size, np.uint8) for size in sizes)
    # XXH3 detects any accidental change, about as fast as memory is read; SHA-256 takes six times as long
    digest = xxhash.xxh3_128()
    for entry in sorted(entries, key=attrgetter("name")):
        parameter = parameters[entry.name]
        digest.update(_header(entry.name, parameter))
        _copy(_part(buckets, entry), _bytes(parameter), digest)
    manifest = Manifest(
        version=version, averaged=averaged, entries=entries, sizes=sizes, checksum=digest.hexdigest(), canary=canary
    )
    return WeightSnapshot(manifest=manifest, buckets=buckets)


def describe(
    version: int, parameters: Mapping[str, Tensor], *, canary: tuple[float, ...] = (), bucket: int = BUCKET
) -> Manifest:
    """Make the manifest that `pack` gives these parameters, without a copy of them."""
    entries, sizes = layout(parameters, bucket)
    return Manifest(
        version=version, averaged=False, entries=entries, sizes=sizes, checksum=checksum(parameters), canary=canary
    )


def checksum(parameters: Mapping[str, Tensor]) -> str:
    """Compute the checksum that `pack` gives these parameters, without a copy of them."""
    digest = xxhash.xxh3_128()
    for name in sorted(parameters):
        digest.update(_header(name, parameters[name]))
        digest.update(_bytes(parameters[name]).data)
    return digest.hexdigest()


def unpack(weights: WeightSnapshot) -> dict[str, Tensor]:
    """Copy the parameters out of the buckets, by name."""
    return {
        entry.name: torch.from_numpy(_part(weights.buckets, entry).copy())
        .view(getattr(torch, entry.dtype))
        .reshape(entry.shape)
        for entry in weights.manifest.entries
    }


def apply(weights: WeightSnapshot, parameters: Mapping[str, nn.Parameter]) -> str:
    """Overwrite the parameters, and return the checksum of what they then hold.

    Raises WeightsError before anything changes if names, shapes or dtypes differ between the two sides, or if bytes are
    missing. Raises it afterwards if the checksum is not the sender's.
    """
    manifest = weights.manifest
    sent = {entry.name: (entry.dtype, entry.shape) for entry in manifest.entries}
    here = {name: (str(p.dtype).removeprefix("torch."), tuple(p.shape)) for name, p in parameters.items()}
    if sent != here:
        missing, foreign = sorted(here.keys() - sent.keys()), sorted(sent.keys() - here.keys())
        other = sorted(name for name in sent.keys() & here.keys() if sent[name] != here[name])
        detail = [f"{name}: sent {sent[name]}, here {here[name]}" for name in other[:3]]
        raise WeightsError(
            f"weights of version {manifest.version} do not fit: {len(missing)} not sent {missing[:3]}, "
            f"{len(foreign)} unknown here {foreign[:3]}, {len(other)} of another shape or dtype {detail}"
        )
    arrived_sizes = tuple(bucket.nbytes for bucket in weights.buckets)
    if arrived_sizes != manifest.sizes:
        raise WeightsError(
            f"weights of version {manifest.version} arrived in buckets of {list(arrived_sizes)} bytes; "
            f"expected {list(manifest.sizes)}, by their manifest"
        )
    digest = xxhash.xxh3_128()
    for entry in sorted(manifest.entries, key=attrgetter("name")):
        value, sent_bytes = parameters[entry.name].data, _part(weights.buckets, entry)
        digest.update(_header(entry.name, value))
        if value.device.type == "cpu" and value.is_contiguous():
            _copy(_bytes(value), sent_bytes, digest)  # to its own memory
        else:
            value.copy_(torch.from_numpy(sent_bytes.copy()).view(value.dtype).reshape(value.shape))
            digest.update(_bytes(value).data)
    arrived = digest.hexdigest()
    if arrived != manifest.checksum:
        raise WeightsError(
            f"weights of version {manifest.version} arrived with checksum {arrived}; sent was {manifest.checksum}"
        )
    return arrived


def _header(name: str, parameter: Tensor) -> bytes:
    return f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode()


def _copy(target: np.ndarray, source: np.ndarray, digest: xxhash.xxh3_128) -> None:
    """Copy bytes, and hash them where they arrived."""
    for start in range(0, len(source), PIECE):
        piece = slice(start, start + PIECE)
        target[piece] = source[piece]
        digest.update(target[piece].data)


def _part(buckets: tuple[np.ndarray, ...], entry: Entry) -> np.ndarray:
    return buckets[entry.bucket][entry.offset : entry.offset + entry.bytes]


class _Memory:
    """The memory of a tensor of bytes, for numpy. `Tensor.numpy` would keep fsdp2 from ever freeing it again."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.__array_interface__ = {
            "data": (tensor.data_ptr(), False),
            "shape": tuple(tensor.shape),
            "typestr": "|u1",
            "version": 3,
        }


def _bytes(tensor: Tensor) -> np.ndarray:
    return np.asarray(_Memory(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)))
