"""The one training loop of the embedded worlds' models: AdamW (and Muon), warm-up and cosine decay, progress bar, a
running mean of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

REPORT_EVERY = 50


def rate_factor(step: int, steps: int, warm_up: int) -> float:
    """Fraction of the peak learning rate at a step: linear warm-up, then a cosine down to a twentieth."""
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
    muon: Iterable[nn.Module] = (),
    after_step: Callable[[int], bool] = lambda step: False,
) -> None:
    """Take `steps` AdamW steps on `loss_of`, with gradients clipped to norm 1.

    The weights of the linear layers in `muon` take Muon's steps instead, at AdamW's size (arXiv 2502.16982).
    `after_step(step)` runs after each, counted from 1: running means, checkpoints and measurements hang there. The
    training ends early where it returns True.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [layer.weight for part in muon for layer in part.modules() if isinstance(layer, nn.Linear)]
    taken = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in parameters if id(parameter) not in taken]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=weight_decay)
    ]
    if matrices:
        optimisers.append(Muon(matrices, lr=rate, weight_decay=weight_decay))
    warm_up = min(200, max(1, steps // 10))
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_factor(step, steps, warm_up))
        for optimiser in optimisers
    ]
    columns = (SpinnerColumn(), *Progress.get_default_columns()[:2], TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=steps)
        recent = 0.0
        for step in range(1, steps + 1):
            loss = loss_of()
            for parameter in parameters:
                parameter.grad = None
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimiser, scheduler in zip(optimisers, schedulers, strict=True):
                optimiser.step()
                scheduler.step()
            recent += loss.item()
            if step % REPORT_EVERY == 0:
                progress.console.print(f"{name} step {step} of {steps}: loss {recent / REPORT_EVERY:.4f}")
                recent = 0.0
            progress.advance(task)
            if after_step(step):
                return


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024) with Nesterov momentum, at AdamW's size of step (arXiv 2502.16982).

    torch.optim.Muon orthogonalises in bfloat16, a matrix at a time, which took 130 ms each on the CPU this is for; here
    it is float32, and matrices of one shape go together.
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes.setdefault(matrix.shape, []).append(matrix)
            for (rows, columns), matrices in shapes.items():
                gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
                buffers = [self.state[matrix].setdefault("momentum", torch.zeros_like(matrix)) for matrix in matrices]
                torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
                torch._foreach_lerp_(gradients, buffers, group["momentum"])
                directions = orthogonalised(torch.stack(gradients))
                size = 0.2 * max(rows, columns) ** 0.5
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, list(directions), alpha=-group["lr"] * size)


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """(N, R, C) with singular values of about 1, by Newton and Schulz's quintic iteration."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    found: Tensor = x.transpose(1, 2) if tall else x
    return found


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

    def copy(self) -> list[Tensor]:
        """Return the mean as it is now."""
        return [weight.clone() for weight in self._mean]

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
