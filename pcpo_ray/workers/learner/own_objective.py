"""An objective of the user's own: the loss of each (image, step) pair.

It is called in every pass, as a network is, and therefore not kept apart from the process as rewards are. Shapes: B
pairs of a pass.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray import config
from pcpo_ray.algorithm import objective
from pcpo_ray.errors import TrainingError
from pcpo_ray.process.own import PlugPoint

POINT = PlugPoint(
    noun="objective",
    method="loss",
    arguments=("log_ratio", "advantage", "weight", "clip_range"),
    returns="one loss for each pair, a tensor that follows from log_ratio by torch",
    error=TrainingError,
)
"""An objective of the user's own: (B,) log-ratios, advantages, credit weights and clip ranges in, (B,) losses out."""


class OwnObjective:
    """An objective of the user's own, built and ready."""

    def __init__(self, settings: config.CustomObjective) -> None:
        self.kind = settings.kind
        self.made = POINT.make(settings.kind, settings.options)

    def loss(self, weight: Float[Tensor, " B"], clip_range: Float[Tensor, " B"]) -> objective.Loss:
        """Return the loss as a function of log-ratio and advantage, at the credit weights and clip ranges of a pass.

        The function raises TrainingError if the user's code raises, or returns anything but (B,) losses.
        """

        def each(log_ratio: Float[Tensor, " B"], advantage: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
            try:
                found = self.made.loss(log_ratio, advantage, weight, clip_range)
            except Exception as error:
                raise POINT.failed(self.kind, error) from error
            if not isinstance(found, Tensor) or found.shape != log_ratio.shape:
                got = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"{found!r:.100}"
                raise TrainingError(
                    f"objective {self.kind!r} returned {got} for log-ratios of shape {tuple(log_ratio.shape)}; "
                    f"{POINT.expected}"
                )
            return found

        return each


def check(run: config.Run) -> None:
    """Check an objective of the user's own on made-up pairs, around a log-ratio of 0. Raises TrainingError."""
    settings = run.objective
    if not isinstance(settings, config.CustomObjective):
        return
    log_ratio = torch.tensor([-1.0, 0.0, 0.0, 1.0]) * settings.clip_range
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss = OwnObjective(settings).loss(torch.ones(4), torch.full((4,), settings.clip_range))
    losses = loss(log_ratio.requires_grad_(), advantage)
    slope = objective.slope(loss, log_ratio, advantage)
    if not losses.isfinite().all() or not slope.isfinite().all():
        raise TrainingError(
            f"objective {settings.kind!r} returned losses {losses.tolist()} with slopes {slope.tolist()} at log-ratios "
            f"{log_ratio.tolist()} and advantages {advantage.tolist()}; expected finite numbers"
        )
    if not slope[1:3].any():
        raise TrainingError(
            f"objective {settings.kind!r} has no slope at log-ratio 0, where every update begins, so nothing would be "
            f"trained; {POINT.expected}"
        )
