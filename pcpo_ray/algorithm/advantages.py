"""From scores to advantages: how much better an image is than what it is compared with.

Notation: P prompts (groups), G images a prompt. Scores are higher-is-better, in any unit; advantages have none. The
arithmetic is float64, the result has the scores' dtype. Everything here raises TrainingError for a score that is not
finite: a missing score is the caller's to drop, with its group, and is never counted.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pcpo_ray.errors import ConfigError, TrainingError

ULPS = 4
"""Units in the last place of float32 by which a network's sums differ with the order of their terms."""


def group_relative(
    scores: Float[Tensor, "P G"], *, scale: Literal["group", "batch"], correction: Literal[0, 1], epsilon: float
) -> Float[Tensor, "P G"]:
    """(score - its group's mean) / (deviation + epsilon), the deviation of the group or of the whole batch.

    `correction` 1 divides by n - 1 in the deviation, 0 by n. DanceGRPO (arXiv 2505.07818): group, 1, 1e-8; Flow-GRPO
    (arXiv 2505.05470): batch, 0, 1e-4. A group of equal scores gives exactly 0. Raises TrainingError for groups of one.
    """
    values = _checked(scores)
    if values.shape[1] < 2:
        raise TrainingError(
            f"got scores {tuple(values.shape)}: a group of one has no relative advantage; "
            "use at least 2 images a prompt, or another advantage"
        )
    by_group = [_center_and_deviation(group, correction) for group in values]
    center = torch.stack([center for center, _ in by_group])[:, None]
    if scale == "group":
        deviation = torch.stack([deviation for _, deviation in by_group])[:, None]
    else:
        _, deviation = _center_and_deviation(values.flatten(), correction)
    return _divide(values - center, deviation + epsilon).to(scores.dtype)


def degenerate_groups(scores: Float[Tensor, "P G"]) -> int:
    """How many groups have equal scores throughout, and so nothing to learn from."""
    values = _checked(scores)
    return int((values.amax(1) == values.amin(1)).sum())


def rounding(scores: Float[Tensor, "P G"]) -> Float[Tensor, " P"]:
    """How far apart a group's scores may be by rounding alone, in the scores' unit.

    `ULPS` units in the last place of the group's largest, in float32, or one in bfloat16 or float16 where all scores
    that are not whole numbers are numbers of that type: then a reward has computed in it.
    """
    values = _checked(scores)
    _, exponent = torch.frexp(values.abs().amax(1))
    whole = bool((values == values.round()).all())
    for dtype in (torch.bfloat16, torch.float16):
        if not whole and bool((values.to(dtype).double() == values).all()):
            return torch.ldexp(torch.full_like(values[:, 0], torch.finfo(dtype).eps), exponent - 1)
    return torch.ldexp(torch.full_like(values[:, 0], ULPS * torch.finfo(torch.float32).eps), exponent - 1)


def apart_by_rounding(scores: Float[Tensor, "P G"], tolerance: Float[Tensor, " P"]) -> Bool[Tensor, " P"]:
    """The groups whose scores differ, and by no more than their `tolerance`: their relative advantages mean nothing."""
    values = _checked(scores)
    spread = values.amax(1) - values.amin(1)
    return (spread > 0) & (spread <= tolerance)


def batch_relative(scores: Float[Tensor, "P G"], *, epsilon: float) -> Float[Tensor, "P G"]:
    """(score - the batch's mean) / (the batch's deviation, dividing by n, + epsilon); equal scores give exactly 0."""
    values = _checked(scores)
    center, deviation = _center_and_deviation(values.flatten(), correction=0)
    return _divide(values - center, deviation + epsilon).to(scores.dtype)


class PromptHistory:
    """DDPO's per-prompt statistics (arXiv 2305.13301): each prompt's last `buffer` scores.

    A prompt with fewer than `minimum` of them is compared with the batch. Deviations divide by n. Raises ConfigError
    unless 1 <= minimum <= buffer.
    """

    def __init__(self, *, buffer: int = 32, minimum: int = 16, epsilon: float = 1e-6) -> None:
        if not 1 <= minimum <= buffer:
            raise ConfigError(
                f"got minimum {minimum} and buffer {buffer}; expected 1 <= minimum <= buffer, "
                "or no prompt's own statistics are ever used"
            )
        self.buffer, self.minimum, self.epsilon = buffer, minimum, epsilon
        self._scores: dict[str, deque[float]] = {}

    def normalise(self, prompts: Sequence[str], scores: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Remember `scores`, then give (score - mean) / (deviation + epsilon) of each prompt's history, or the batch.

        A prompt may stand in several rows: all of them are remembered first. Raises TrainingError unless there is one
        prompt a row.
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
            center, deviation = _center_and_deviation(pool, correction=0)
            advantages.append(_divide(row - center, deviation + self.epsilon))
        return torch.stack(advantages).to(scores.dtype)

    def state(self) -> dict[str, list[float]]:
        """Each prompt's remembered scores, oldest first: plain values for a checkpoint."""
        return {prompt: list(scores) for prompt, scores in self._scores.items()}

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on from what `state` gave, in place of what is remembered here."""
        self._scores = {prompt: deque(scores, maxlen=self.buffer) for prompt, scores in state.items()}


def clip_advantage(advantage: Float[Tensor, "..."], limit: float) -> Float[Tensor, "..."]:
    """The advantage, within -limit to limit."""
    return advantage.clamp(-limit, limit)


def _checked(scores: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """The scores in float64. Raises TrainingError unless they are (P, G), not empty, and finite."""
    if scores.ndim != 2 or scores.numel() == 0:
        raise TrainingError(f"got scores of shape {tuple(scores.shape)}; expected (prompts, images), neither of them 0")
    if not scores.isfinite().all():
        rows = (~scores.isfinite()).any(1).nonzero().flatten().tolist()
        raise TrainingError(f"the scores of groups {rows} are missing or infinite; drop or refill those groups first")
    return scores.double()


def _center_and_deviation(values: Float[Tensor, " n"], correction: int) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean and deviation; of equal values exactly that value and 0, which a rounded mean would miss.

    Raises TrainingError for values so large that their squares are infinite.
    """
    if values.amax() == values.amin():
        return values[0], torch.zeros_like(values[0])
    center, deviation = values.mean(), values.std(correction=correction)
    if not deviation.isfinite():
        raise TrainingError(f"got scores up to {float(values.abs().amax()):g}, too large to compare; scale the reward")
    return center, deviation


def _divide(change: Float[Tensor, "..."], scale: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """change / scale, and 0 where change is 0, even by a scale of 0 (equal scores, no epsilon)."""
    return torch.where(change == 0, torch.zeros_like(change), change / scale)
