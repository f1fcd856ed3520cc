"""Two memories in one: copies that parking makes on a CPU, so that what it moves there is told from what it leaves."""

import weakref

import torch
from torch import Tensor

from pcpo_ray.data import parked


class Copies:
    """The copies that stand for those on a device."""

    def __init__(self) -> None:
        self.storages: list[weakref.ref[torch.UntypedStorage]] = []
        self.places = parked.Places(host=Tensor.clone, device=self._woken)

    def _woken(self, home: Tensor) -> Tensor:
        copy = home.clone()
        self.storages.append(weakref.ref(copy.untyped_storage()))
        return copy

    @property
    def alive(self) -> int:
        """How many there are at present."""
        return sum(storage() is not None for storage in self.storages)


def two_places(monkeypatch) -> Copies:
    """Have whatever is parked from now on move between two copies."""
    copies = Copies()
    monkeypatch.setattr(parked, "places_of", lambda device: copies.places)
    return copies
