"""An exponential moving average (EMA) of the weights, which samples better than the last weights do."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """An EMA, in float32 at least, of parameters that an optimizer changes.

    Its decay is min(`decay`, (1 + n) / (10 + n)) at the n-th update, so that it soon forgets the initial weights.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.updates = 0
        self.values = [p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Average in the present parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter.to(value.dtype), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the parameters the averaged values while inside, and their own afterwards."""
        own = [parameter.detach().clone() for parameter in self.parameters]
        self._copy(self.values)
        try:
            yield
        finally:
            self._copy(own)

    def restore(self, values: Sequence[Tensor], *, updates: int) -> None:
        """Continue from an average of so many updates."""
        self.updates = updates
        for mine, value in zip(self.values, values, strict=True):
            mine.copy_(value)

    @torch.no_grad()
    def _copy(self, values: Iterable[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
