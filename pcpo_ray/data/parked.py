"""Parked tensors: they lie in host memory, and come to their device while the work needs them (workers.park)."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pcpo_ray.data.tensors import part_here


@dataclass(frozen=True, kw_only=True)
class Places:
    """The two memories, each as the copy that it makes; `host` makes none (None) of a tensor that lies there anyway."""

    host: Callable[[Tensor], Tensor | None]
    device: Callable[[Tensor], Tensor]


def places_of(device: torch.device) -> Places:
    """Return pinned host memory and the memory of a device. A device that is the CPU has nothing to park."""
    return Places(host=_pinned, device=lambda home: home.to(device, non_blocking=True))


def _pinned(tensor: Tensor) -> Tensor | None:
    if tensor.device.type == "cpu":
        return None
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor)


class Parked:
    """Tensors that lie in host memory but while they are `awake`.

    `tensors` lists those that there are now, as an optimizer's state appears with its first step. They stay the same
    objects, and only their memory changes. `frozen` ones never do, so that going to sleep copies nothing.
    """

    def __init__(self, tensors: Callable[[], Iterable[Tensor]], places: Places, *, frozen: bool = False) -> None:
        self.tensors, self.places, self.frozen = tensors, places, frozen
        self.homes: dict[Tensor, Tensor] = {}
        """The host memory of each tensor that is parked."""
        self.sleep()

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Keep the tensors on the device while inside. After an error they go to sleep with what they hold then."""
        try:
            for tensor, home in self.homes.items():
                tensor.data = self.places.device(home)
            yield
        finally:
            self.sleep()

    @torch.no_grad()
    def sleep(self) -> None:
        """Put all tensors that there are to sleep, those that are new too."""
        there = dict.fromkeys(map(part_here, self.tensors()))
        self.homes = {tensor: home for tensor, home in self.homes.items() if tensor in there}
        for tensor in there:
            if tensor not in self.homes:
                home = self.places.host(tensor)
                if home is None:
                    continue
                self.homes[tensor] = home
            elif not self.frozen:
                self.homes[tensor].copy_(tensor)
            tensor.data = self.homes[tensor]


def parked(asked: bool, tensors: Callable[[], Iterable[Tensor]], device: torch.device) -> Parked:
    """Park tensors that change, if that is asked for (workers.park)."""
    return Parked(tensors if asked else tuple, places_of(device))


def parked_network(asked: bool, network: nn.Module, device: torch.device) -> Parked:
    """Bring a network that never changes to the device, and park it if that is asked for (workers.park)."""
    network.to(device)

    def tensors() -> Iterable[Tensor]:
        return (*network.parameters(), *network.buffers())

    return Parked(tensors if asked else tuple, places_of(device), frozen=True)
