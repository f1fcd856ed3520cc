"""Measuring: the weights of credit that is measured on a group's trajectories while they are sampled.

Shapes: N images of a group, T steps, K trained steps of the group.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray import config
from pcpo_ray.algorithm import measured
from pcpo_ray.algorithm.credit import Credit
from pcpo_ray.models.attention import AttentionMaps
from pcpo_ray.models.policy import Policy


class Measuring:
    """Measures the steps of one group as they are taken (algorithm/measured.py)."""

    def __init__(self, policy: Policy, kind: config.Entropy | config.Attention) -> None:
        self.policy = policy
        self.kind = kind
        attention = policy.run.model.backbone.attention
        self.maps: AttentionMaps | None = None
        if isinstance(kind, config.Attention):
            assert attention is not None  # config.Run has checked it
            self.maps = AttentionMaps(policy.denoiser.module, attention)
        self.parts: list[list[Tensor]] = []
        self.last: list[Tensor] = []
        self.steps: list[Float[Tensor, " N"]] = []

    def reading(self) -> AbstractContextManager[object]:
        """Read what the measure needs of the network while inside."""
        return nullcontext() if self.maps is None else self.maps

    def called(self, rows: int) -> None:
        """Take over what was read of the network for the next `rows` images."""
        if self.maps is not None:
            self.parts.append(self.maps.take(rows))

    def begun(self, index: int, latents: Float[Tensor, "N ..."], prediction: Float[Tensor, "N ..."]) -> None:
        """Measure the step before `index`, which begins with these latents and this prediction of them."""
        match self.kind:
            case config.Entropy():
                self._measured([measured.predicted_image(self.policy.schedule, index, latents, prediction)])
            case config.Attention():
                self._measured([torch.cat(layer) for layer in zip(*self.parts, strict=True)])
                self.parts = []
            case _:
                assert_never(self.kind)

    def _measured(self, now: list[Tensor]) -> None:
        measure = measured.undecided if isinstance(self.kind, config.Entropy) else measured.moved
        if self.last:
            layers = [measure(before, after) for before, after in zip(self.last, now, strict=True)]
            self.steps.append(torch.stack(layers).mean(0))
        self.last = now

    def weights(self, credit: Credit, final: Float[Tensor, "N ..."]) -> Float[Tensor, "N K"]:
        """Return the weights of the group's trained steps, on the CPU; `final` are the latents after the last step."""
        if isinstance(self.kind, config.Entropy):
            self._measured([final.to(self.last[0].dtype)])
        else:
            self.steps.append(self.steps[-1])
        whole = self.policy.credit
        steps = torch.stack(self.steps, dim=1).float().cpu()
        scaled = measured.at_the_mean(steps[:, list(whole.trained)], whole.weights[whole.trained[0]])
        return scaled[:, [whole.trained.index(index) for index in credit.trained]]


def measuring(policy: Policy) -> Measuring | None:
    """Return what measures a group's credit; None where credit is known before the run."""
    kind = policy.run.credit
    return Measuring(policy, kind) if isinstance(kind, config.MEASURED) else None
