"""The two surrogates on the decomposed log-ratio of an affine step, and what is watched while they are trained.

Notation: B samples (at one step, or each at a step of its own); D latent dimensions; d = theta's prediction - the old
one; z the noise drawn; w and s the step's weight and sign; A advantage; rho the ratio of densities; xi the clip range.
Every log-ratio is the mean over D, not the sum: that is the quantity which published clip ranges are set for.
"""

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pcpo_ray.errors import ConfigError, TrainingError

Objective: TypeAlias = Literal["clipped_ratio", "log_hinge"]


def log_ratio(
    prediction: Float[Tensor, "B ..."],
    old_prediction: Float[Tensor, "B ..."],
    noise: Float[Tensor, "B ..."],
    *,
    weight: float | Float[Tensor, " B"],
    sign: float | Float[Tensor, " B"],
) -> Float[Tensor, " B"]:
    """log rho = -[ s w mean(d z) + w^2 mean(d^2) / 2 ], differentiable in `prediction` (PCPO, arXiv 2509.25774).

    With the step's own weight this is the exact log-ratio of its two Gaussians at the x_next that was drawn; with
    another, that of a step which had this weight. Exactly 0 at d = 0 in every dtype, as no density is recovered
    from a rounded x_next. Half types are taken to float32 before anything is subtracted.
    """
    d, z = _change_and_noise(prediction, old_prediction, noise)
    w, s = _per_sample(weight, d), _per_sample(sign, d)
    return -(w * d * (s * z + 0.5 * w * d)).flatten(1).mean(1)


def rounded(prediction: Float[Tensor, "B ..."], dtype: torch.dtype) -> Float[Tensor, "B ..."]:
    """The values that `dtype` has for these, in the dtype that they came in and with the gradient of no rounding.

    Rounded as what is stored was, equal predictions stay equal. A cast back and forth would round the gradient too,
    which is 0 in float16.
    """
    if dtype == prediction.dtype:
        return prediction
    detached = prediction.detach()
    return prediction + (detached.to(dtype).to(prediction.dtype) - detached)  # the sum is exact


def clipped_ratio(
    log_ratio: Float[Tensor, " B"], advantage: Float[Tensor, " B"], *, clip_range: float | Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """PPO's loss plus A: max(-A (rho - 1), -A clip(rho - 1, -xi, xi)) (arXiv 1707.06347, equation 7).

    Written in rho - 1, by expm1: a float32 rho near 1 has three digits left for a clip range of 1e-4. The constant A
    that this leaves out has no gradient. It equals the hinge max(0, xi |A| - A (rho - 1)) less the constant xi |A|.
    """
    change = torch.expm1(log_ratio)
    return torch.maximum(-advantage * change, -advantage * change.clamp(-clip_range, clip_range))  # type: ignore[arg-type]  # torch knows no union


def log_hinge(
    log_ratio: Float[Tensor, " B"], advantage: Float[Tensor, " B"], *, clip_range: float | Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """PCPO's loss: max(0, xi |A| - A log rho) (arXiv 2509.25774)."""
    return torch.relu(clip_range * advantage.abs() - advantage * log_ratio)


def kl_divergence(
    prediction: Float[Tensor, "B ..."], reference: Float[Tensor, "B ..."], *, weight: float | Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """KL(theta || reference) of a step's Gaussians, per dimension: w^2 mean(d^2) / 2, d the predictions' difference.

    `weight` is the step's own, |gain| / std, whatever credit it carries (Flow-GRPO, arXiv 2505.05470).
    """
    d = prediction.to(torch.promote_types(prediction.dtype, torch.float32)) - reference
    squares = d.square().flatten(1).mean(1)
    return _per_sample(0.5 * weight**2, squares) * squares


def importance(lag: Float[Tensor, " B"], *, dimensions: int, most: float) -> Float[Tensor, " B"]:
    """min(ratio of densities, most): V-trace's truncated importance weight (arXiv 1802.01561, equation 1).

    `lag` is the mean log-ratio per dimension, at the sampler's own weights, of the policy that learns to the one that
    sampled; the ratio of the two densities of a step is exp(`dimensions` * lag). The surrogate is then taken of the
    log-ratio to the policy that learns (decoupled PPO, arXiv 2110.00641).
    """
    return (dimensions * lag).clamp(max=math.log(most)).exp()


def spread(weights: Float[Tensor, " B"], counted: Bool[Tensor, " B"], *, most: float) -> Float[Tensor, "4"]:
    """Sums over the importance weights that are `counted`, which add up over passes and ranks.

    They are how many there are, of w, of w^2, and how many are truncated. Nothing here waits for the device.
    """
    count = counted.double()
    w = weights.double() * count
    truncated = (weights >= most * (1 - 1e-6)) * count
    return torch.stack([count.sum(), w.sum(), w.square().sum(), truncated.sum()])


def spread_in_numbers(sums: Sequence[float]) -> dict[str, float] | None:
    """The importance weights' `mean`, `std`, `truncated` fraction and `effective` fraction; None where there are none.

    The effective fraction is (sum w)^2 / (n sum w^2): how much of the sample an equally weighted one would need.
    """
    count, total, squares, truncated = sums
    if not count:
        return None
    return {
        "mean": total / count,
        "std": _deviation(total, squares, count),
        "truncated": truncated / count,
        "effective": total**2 / (count * squares) if squares else 0.0,
    }


def inactive(
    log_ratio: Float[Tensor, " B"],
    advantage: Float[Tensor, " B"],
    *,
    clip_range: float | Float[Tensor, " B"],
    objective: Objective,
) -> Float[Tensor, " B"]:
    """1 where the clip range cuts the surrogate's gradient off, else 0. Raises ConfigError for an unknown objective."""
    match objective:
        case "clipped_ratio":
            change = torch.expm1(log_ratio)
        case "log_hinge":
            change = log_ratio
        case _:
            raise ConfigError(f"got objective {objective!r}; expected 'clipped_ratio' or 'log_hinge'")
    return (advantage * change > clip_range * advantage.abs()).to(log_ratio.dtype)


@torch.no_grad()
def gradient_norm(
    prediction: Float[Tensor, "B ..."],
    old_prediction: Float[Tensor, "B ..."],
    noise: Float[Tensor, "B ..."],
    log_ratio: Float[Tensor, " B"],
    advantage: Float[Tensor, " B"],
    *,
    weight: float | Float[Tensor, " B"],
    sign: float | Float[Tensor, " B"],
    clip_range: float | Float[Tensor, " B"],
    objective: Objective,
) -> Float[Tensor, " B"]:
    """L2 norm of each sample's d loss / d prediction, in closed form: |A| r w / D ||s z + w d|| where active, else 0.

    r is rho for the clipped ratio and 1 for the hinge. Raises ConfigError for another objective.
    """
    d, z = _change_and_noise(prediction, old_prediction, noise)
    w, s = _per_sample(weight, d), _per_sample(sign, d)
    slope = (w * (s * z + w * d)).flatten(1)
    norm: Tensor = advantage.abs() * slope.square().sum(1).sqrt() / slope.shape[1]
    if objective == "clipped_ratio":
        norm = norm * log_ratio.exp()
    return norm * (1 - inactive(log_ratio, advantage, clip_range=clip_range, objective=objective))


SHOWN = 5
"""Numbers that are not finite, in an error."""


class StepDiagnostics:
    """What a surrogate does at each of a trajectory's T steps, added up over the micro-batches of an update.

    Kept as sums per step, so that ranks are merged by adding (and their maxima by taking the greater).
    """

    # change = rho - 1
    SUMS = (
        "count", "change", "change_squared", "log_ratio", "log_ratio_squared", "clipped", "inactive", "gradient_norm"
    )  # fmt: skip

    def __init__(self, steps: int) -> None:
        self._sums = torch.zeros(len(self.SUMS), steps, dtype=torch.float64)
        self._max_log_ratio = torch.zeros(steps, dtype=torch.float64)
        self._noted: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def add(
        self,
        step: int | Int[Tensor, " B"],
        log_ratio: Float[Tensor, " B"],
        advantage: Float[Tensor, " B"],
        gradient_norm: Float[Tensor, " B"],
        *,
        clip_range: float | Float[Tensor, " B"],
        objective: Objective,
    ) -> None:
        """Note B samples, all at `step` or each at its own, without waiting for the device; `count` counts them.

        Raises ConfigError for an unknown objective.
        """
        stopped = inactive(log_ratio, advantage, clip_range=clip_range, objective=objective)
        steps, limits = (_each(value, log_ratio) for value in (step, clip_range))
        self._noted.append((steps.long(), torch.stack([log_ratio, gradient_norm, stopped.to(log_ratio), limits])))

    def count(self) -> None:
        """Count what was noted: a wait for the device, whatever the number of micro-batches.

        Raises TrainingError for a log-ratio or gradient that is not finite; nothing of what was noted is counted then.
        """
        if not self._noted:
            return
        noted, self._noted = self._noted, []
        where = torch.cat([steps for steps, _ in noted]).cpu()
        values, norms, stops, limits = torch.cat([part for _, part in noted], dim=1).cpu().double()
        finite = values.isfinite() & norms.isfinite()
        if not finite.all():
            some = [found[~finite][:SHOWN].tolist() for found in (values, norms)]
            raise TrainingError(
                f"at step {where[~finite].unique().tolist()} a log-ratio or its gradient is not finite, of "
                f"{int((~finite).sum())} (image, step) pairs: log-ratios {some[0]}, gradient norms {some[1]}, ...; "
                "lower the learning rate, or use a wider dtype"
            )
        change = torch.expm1(values)
        clipped = (values.abs() > limits).double()
        squares = (change.square(), values, values.square())
        rows = torch.stack([torch.ones_like(values), change, *squares, clipped, stops, norms])
        self._sums.index_add_(1, where, rows)
        self._max_log_ratio.scatter_reduce_(0, where, values.abs(), reduce="amax")

    @property
    def sums(self) -> Float[Tensor, "8 T"]:
        """Of SUMS, at each step."""
        self.count()
        return self._sums

    @sums.setter
    def sums(self, value: Float[Tensor, "8 T"]) -> None:
        self._sums = value

    @property
    def max_log_ratio(self) -> Float[Tensor, " T"]:
        """The greatest |log rho| at each step."""
        self.count()
        return self._max_log_ratio

    @max_log_ratio.setter
    def max_log_ratio(self, value: Float[Tensor, " T"]) -> None:
        self._max_log_ratio = value

    def merge(self, other: "StepDiagnostics") -> None:
        """Count what `other` has counted, of another rank or part of the update. Raises ValueError if its T differs."""
        if self.sums.shape != other.sums.shape:
            raise ValueError(f"got diagnostics of {other.sums.shape[1]} steps; expected {self.sums.shape[1]}, as here")
        self.sums = self.sums + other.sums
        self.max_log_ratio = torch.maximum(self.max_log_ratio, other.max_log_ratio)

    def as_dict(self) -> dict[str, list[float]]:
        """Plain numbers, to travel between processes; `from_dict` is the way back."""
        sums = dict(zip(self.SUMS, self.sums.tolist(), strict=True))
        return {**sums, "max_log_ratio": self.max_log_ratio.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, list[float]]) -> "StepDiagnostics":
        """What `as_dict` gave."""
        made = cls(len(values["count"]))
        made.sums = torch.tensor([values[name] for name in cls.SUMS], dtype=torch.float64)
        made.max_log_ratio = torch.tensor(values["max_log_ratio"], dtype=torch.float64)
        return made

    def summary(self) -> dict[str, list[float | None]]:
        """Per step, None where nothing was counted.

        `ratio_mean` and `ratio_std` of rho; `log_ratio_std` of log rho; `clip_fraction`, the share with |log rho| > xi,
        whatever the objective; `inactive_fraction`, the share whose gradient is cut off, one-sided and so about half of
        it; `max_log_ratio` of |log rho|; `gradient_share`, the step's part of all gradient norms, adding up to 1 (None
        if they are all 0).
        """
        rows = [_statistics(*column) for column in zip(self.sums.T.tolist(), self.max_log_ratio.tolist(), strict=True)]
        table = {name: [row[name] for row in rows] for name in rows[0]}
        count, norms = self.sums[0].tolist(), self.sums[-1].tolist()
        total = math.fsum(norms)
        shares = [norm / total if seen and total else None for seen, norm in zip(count, norms, strict=True)]
        return {**table, "gradient_share": shares}

    def overall(self) -> dict[str, float | None]:
        """`summary`'s values over all samples and steps at once, without `gradient_share`."""
        return _statistics(self.sums.sum(1).tolist(), self.max_log_ratio.max().item())


def _statistics(sums: list[float], max_log_ratio: float) -> dict[str, float | None]:
    """The numbers that StepDiagnostics.SUMS stand for."""
    count, change, change_squared, log_ratio, log_ratio_squared, clipped, stopped, _ = sums
    names = ("ratio_mean", "ratio_std", "log_ratio_std", "clip_fraction", "inactive_fraction", "max_log_ratio")
    if count == 0:
        return dict.fromkeys(names)
    mean = change / count
    values = (
        1 + mean,
        _deviation(change, change_squared, count),
        _deviation(log_ratio, log_ratio_squared, count),
        clipped / count,
        stopped / count,
        max_log_ratio,
    )
    return dict(zip(names, values, strict=True))


def _deviation(summed: float, squared: float, count: float) -> float:
    """Of `count` values whose sum and sum of squares these are."""
    return math.sqrt(max(0.0, squared / count - (summed / count) ** 2))


def _each(value: float | Tensor, like: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """One a sample."""
    return value.to(like) if isinstance(value, Tensor) else torch.full_like(like, value)


def _change_and_noise(
    prediction: Float[Tensor, "B ..."], old_prediction: Float[Tensor, "B ..."], noise: Float[Tensor, "B ..."]
) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."]]:
    """d and z, in float32 at least."""
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return prediction.to(dtype) - old_prediction.to(dtype), noise.to(dtype)


def _per_sample(value: float | Float[Tensor, " B"], like: Float[Tensor, "B ..."]) -> float | Float[Tensor, "B ..."]:
    """A number as it is, or one a sample, so shaped that it multiplies `like`."""
    if not isinstance(value, Tensor):
        return value  # a tensor of it would have to be copied to the device
    return value.to(like).reshape(-1, *[1] * (like.ndim - 1))
