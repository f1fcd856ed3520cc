"""The one training loop of the embedded world's models: AdamW, warm-up and cosine decay, progress bar, a running mean
of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

REPORT_EVERY = 50


def rate_factor(step: int, steps: int, warm_up: int) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a cosine down to a twentieth."""
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def optimise(
    name: str,
    module: nn.Module,
    loss_of: Callable[[], Tensor],
    *,
    steps: int,
    rate: float,
    weight_decay: float = 1e-2,
    after_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Take `steps` AdamW steps on `loss_of`, with gradients clipped to norm 1.

    `after_step(step)` runs after each, counted from 1: running means, checkpoints and measurements hang there.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=weight_decay)
    warm_up = min(200, max(1, steps // 10))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_factor(step, steps, warm_up))
    columns = (SpinnerColumn(), *Progress.get_default_columns()[:2], TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=steps)
        recent = 0.0
        for step in range(1, steps + 1):
            loss = loss_of()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            scheduler.step()
            recent += loss.item()
            if step % REPORT_EVERY == 0:
                progress.console.print(f"{name} step {step} of {steps}: loss {recent / REPORT_EVERY:.4f}")
                recent = 0.0
            after_step(step)
            progress.advance(task)


class RunningMean:
    """An exponential mean of a module's weights, which samples better than the last weights do.

    The decay grows with the number of updates, min(limit, (1 + n) / (10 + n)), so that early means forget the start.
    """

    def __init__(self, module: nn.Module, limit: float = 0.999) -> None:
        self._module, self._limit, self._updates = module, limit, 0
        self._mean = [parameter.detach().clone() for parameter in module.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        """Take the module's present weights into the mean."""
        self._updates += 1
        decay = min(self._limit, (1 + self._updates) / (10 + self._updates))
        torch._foreach_lerp_(self._mean, list(self._module.parameters()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the module holds the mean; afterwards its own weights again."""
        own = [parameter.detach().clone() for parameter in self._module.parameters()]
        self._copy(self._mean)
        try:
            yield
        finally:
            self._copy(own)

    @torch.no_grad()
    def _copy(self, weights: Iterable[Tensor]) -> None:
        for parameter, weight in zip(self._module.parameters(), weights, strict=True):
            parameter.copy_(weight)
