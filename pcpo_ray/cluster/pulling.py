"""Pulling from the object store, by its workers, in a time that fits the bytes."""

from collections.abc import Sequence

import ray
from ray import exceptions

from pcpo_ray.cluster.failures import WeightsGoneError
from pcpo_ray.data import weights
from pcpo_ray.data.weights import Manifest

PULL_TIMEOUT, SLOWEST = 600.0, 50e6
"""Seconds, and bytes a second, in which the slowest network that is waited for brings what a worker asks for."""


def seconds_to_pull(size: int) -> float:
    """Return the seconds within which `size` bytes must reach a worker."""
    return PULL_TIMEOUT + size / SLOWEST


def pulled_weights(version: int, references: Sequence[ray.ObjectRef]) -> weights.WeightSnapshot:
    """Fetch a version's manifest and buckets from the object store. Raises WeightsGoneError, TimeoutError."""
    try:
        manifest: Manifest = ray.get(references[0], timeout=PULL_TIMEOUT)
        buckets = ray.get(list(references[1:]), timeout=seconds_to_pull(sum(manifest.sizes)))
    except exceptions.GetTimeoutError as error:  # they may well be there, and this worker is who cannot reach them
        raise TimeoutError(f"weights of version {version} did not arrive: {error}") from None
    except exceptions.ObjectLostError as error:
        raise WeightsGoneError(f"weights of version {version}: {error}", references[0].hex()) from None
    return weights.WeightSnapshot(manifest=manifest, buckets=tuple(buckets))
