"""From scores to advantages: how much better an image is than those it is compared with.

Notation: P prompts (groups), G images a prompt. Scores may have any unit, and higher is better; advantages have no
unit. The arithmetic is float64, the result has the dtype of the scores. Every function raises TrainingError for a score
that is not finite: the caller drops a missing score, with its whole group, before it calls.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pcpo_ray.errors import ConfigError, TrainingError

ULPS = 4
"""Units in the last place of float32 by which the sums of a network vary with the order of their terms."""


def group_relative(
    scores: Float[Tensor, "P G"], *, scale: Literal["group", "batch"], correction: Literal[0, 1], epsilon: float
) -> Float[Tensor, "P G"]:
    """Compute (score - mean of its group) / (std + epsilon), with the std of the group or of the whole batch.

    `correction` 1 divides by n - 1 in the std, 0 by n. DanceGRPO (arXiv 2505.07818): group, 1, 1e-8; Flow-GRPO
    (arXiv 2505.05470): batch, 0, 1e-4. A group of equal scores gives exactly 0. Raises TrainingError for groups of one.
    """
    values = _checked(scores)
    if values.shape[1] < 2:
        raise TrainingError(
            f"got scores {tuple(values.shape)}: a group of one has no relative advantage; "
            "use at least 2 images a prompt, or another advantage"
        )
    by_group = [_center_and_std(group, correction) for group in values]
    center = torch.stack([center for center, _ in by_group])[:, None]
    if scale == "group":
        std = torch.stack([std for _, std in by_group])[:, None]
    else:
        _, std = _center_and_std(values.flatten(), correction)
    return _divide(values - center, std + epsilon).to(scores.dtype)


def degenerate_groups(scores: Float[Tensor, "P G"]) -> int:
    """Count the groups whose scores are all equal, from which nothing is learned."""
    values = _checked(scores)
    return int((values.amax(1) == values.amin(1)).sum())


def rounding(scores: Float[Tensor, "P G"]) -> Float[Tensor, " P"]:
    """Estimate how far apart a group's scores may be by rounding alone, in the unit of the scores.

    In float32 this is `ULPS` units in the last place of the group's largest score. If the scores are not all whole
    numbers, and all are numbers of bfloat16 or float16, a reward has computed in that type: then it is one unit of it.
    """
    values = _checked(scores)
    _, exponent = torch.frexp(values.abs().amax(1))
    whole = bool((values == values.round()).all())
    for dtype in (torch.bfloat16, torch.float16):
        if not whole and bool((values.to(dtype).double() == values).all()):
            return torch.ldexp(torch.full_like(values[:, 0], torch.finfo(dtype).eps), exponent - 1)
    return torch.ldexp(torch.full_like(values[:, 0], ULPS * torch.finfo(torch.float32).eps), exponent - 1)


def apart_by_rounding(scores: Float[Tensor, "P G"], tolerance: Float[Tensor, " P"]) -> Bool[Tensor, " P"]:
    """Find the groups whose scores differ by at most `tolerance`: their relative advantages mean nothing."""
    values = _checked(scores)
    spread = values.amax(1) - values.amin(1)
    return (spread > 0) & (spread <= tolerance)


def batch_relative(scores: Float[Tensor, "P G"], *, epsilon: float) -> Float[Tensor, "P G"]:
    """Compute (score - mean) / (std + epsilon) over the batch. The std divides by n; equal scores give exactly 0."""
    values = _checked(scores)
    center, std = _center_and_std(values.flatten(), correction=0)
    return _divide(values - center, std + epsilon).to(scores.dtype)


class PromptHistory:
    """DDPO's per-prompt statistics (arXiv 2305.13301): each prompt's last `buffer` scores.

    A prompt with fewer than `minimum` remembered scores is compared with the batch. The std divides by n. Raises
    ConfigError unless 1 <= minimum <= buffer.
    """

    def __init__(self, *, buffer: int = 32, minimum: int = 16, epsilon: float = 1e-6) -> None:
        if not 1 <= minimum <= buffer:
            raise ConfigError(
                f"got minimum {minimum} and buffer {buffer}; expected 1 <= minimum <= buffer, "
                "or no prompt's own statistics would ever be used"
            )
        self.buffer, self.minimum, self.epsilon = buffer, minimum, epsilon
        self._scores: dict[str, deque[float]] = {}

    def normalise(self, prompts: Sequence[str], scores: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Remember `scores`, then compute (score - mean) / (std + epsilon) over each prompt's history, or the batch.

        A prompt may have several rows; all of them are remembered first. Raises TrainingError unless each row has one
        prompt.
        """
        values = _checked(scores)
        if len(prompts) != len(values):
            raise TrainingError(f"got {len(prompts)} prompts for scores {tuple(values.shape)}; give one prompt a row")
        for prompt, row in zip(prompts, values.tolist(), strict=True):
            self._scores.setdefault(prompt, deque(maxlen=self.buffer)).extend(row)
        advantages = []
        for prompt, row in zip(prompts, values, strict=True):
            history = self._scores[prompt]
            enough = len(history) >= self.minimum
            pool = torch.tensor(list(history), dtype=values.dtype, device=values.device) if enough else values.flatten()
            center, std = _center_and_std(pool, correction=0)
            advantages.append(_divide(row - center, std + self.epsilon))
        return torch.stack(advantages).to(scores.dtype)

    def state(self) -> dict[str, list[float]]:
        """Give each prompt's remembered scores, oldest first, as plain values for a checkpoint."""
        return {prompt: list(scores) for prompt, scores in self._scores.items()}

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Replace the remembered scores by those that `state` gave."""
        self._scores = {prompt: deque(scores, maxlen=self.buffer) for prompt, scores in state.items()}


def clip_advantage(advantage: Float[Tensor, "..."], limit: float) -> Float[Tensor, "..."]:
    """Clip the advantage to the range from -limit to limit."""
    return advantage.clamp(-limit, limit)


def _checked(scores: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """Convert the scores to float64. Raises TrainingError unless they are (P, G), not empty, and finite."""
    if scores.ndim != 2 or scores.numel() == 0:
        raise TrainingError(f"got scores of shape {tuple(scores.shape)}; expected (prompts, images), neither of them 0")
    if not scores.isfinite().all():
        rows = (~scores.isfinite()).any(1).nonzero().flatten().tolist()
        raise TrainingError(f"the scores of groups {rows} are missing or infinite; drop or refill those groups first")
    return scores.double()


def _center_and_std(values: Float[Tensor, " n"], correction: int) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Compute mean and std. Equal values give exactly that value and 0, which a rounded mean would miss.

    Raises TrainingError for values so large that their squares are infinite.
    """
    if values.amax() == values.amin():
        return values[0], torch.zeros_like(values[0])
    center, std = values.mean(), values.std(correction=correction)
    if not std.isfinite():
        raise TrainingError(f"got scores up to {float(values.abs().amax()):g}, too large to compare; scale the reward")
    return center, std


def _divide(change: Float[Tensor, "..."], scale: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Divide; where `change` is 0 the result is 0, even if `scale` is 0 (equal scores, no epsilon)."""
    return torch.where(change == 0, torch.zeros_like(change), change / scale)
