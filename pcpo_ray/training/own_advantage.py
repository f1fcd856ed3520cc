"""Advantages of the user's own, checked before a run and at each batch."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray import config
from pcpo_ray.errors import TrainingError
from pcpo_ray.process.own import PlugPoint
from pcpo_ray.process.plugins import isolated

POINT = PlugPoint(
    noun="advantage",
    method="advantages",
    arguments=("scores", "prompts"),
    returns="finite advantages of the scores' shape",
    error=TrainingError,
)
"""Advantages of the user's own: scores (P, G) in float64 and P prompt texts in, (P, G) numbers out."""


class OwnAdvantage:
    """A rule of the user's own, for one column of scores.

    What it remembers is kept in checkpoints if its class has `state()`, which returns plain data, and `restore(state)`.
    """

    def __init__(self, settings: config.CustomAdvantage) -> None:
        self.kind = settings.kind
        self.made = POINT.make(settings.kind, settings.options)
        self.remembers = hasattr(self.made, "state") and hasattr(self.made, "restore")

    def normalise(self, prompts: Sequence[str], scores: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Compute the advantages. Raises TrainingError for anything but finite numbers of the scores' shape."""
        given: np.ndarray = scores.double().numpy().copy()
        found = POINT.call(self.made, self.kind, given, list(prompts))
        return torch.from_numpy(POINT.numbers(self.kind, found, scores.shape)).to(scores.dtype)

    def state(self) -> Any:
        """Give what the rule remembers, as plain data for a checkpoint. Raises TrainingError for other data."""
        if not self.remembers:
            return {}
        try:
            with isolated(self.kind):
                remembered = self.made.state()
            return json.loads(json.dumps(remembered, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise TrainingError(
                f"advantage {self.kind!r} gave a state that is no plain data ({error}); return numbers, texts, lists "
                "and mappings"
            ) from error

    def restore(self, state: Any) -> None:
        """Take up what `state` gave."""
        if self.remembers:
            with isolated(self.kind):
                self.made.restore(state)


def check(run: config.Run) -> None:
    """Check an advantage of the user's own on made-up scores of the run's shape. Raises TrainingError."""
    if not isinstance(run.advantage, config.CustomAdvantage):
        return
    groups, images = run.rollout.prompts, run.rollout.images
    made = OwnAdvantage(run.advantage)
    scores = torch.linspace(0, 1, groups * images, dtype=torch.float64).reshape(groups, images)
    made.normalise([f"prompt {place}" for place in range(groups)], scores)
    made.normalise(["one prompt"], torch.ones(1, images, dtype=torch.float64))  # a batch may lose groups
    made.restore(made.state())
