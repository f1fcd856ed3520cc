"""The two surrogates on the decomposed log-ratio of an affine step, and the diagnostics of their training.

Notation: B samples (all at one timestep, or each at its own); D latent dimensions; d = theta's prediction - the old
one; z the drawn noise; w and s the step's weight and sign; A advantage; rho the ratio of densities; xi the clip range.
Every log-ratio is the mean over D, not the sum: published clip ranges are set for the mean.
"""

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias, assert_never, get_args

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
    """Compute log rho = -[ s w mean(d z) + w^2 mean(d^2) / 2 ], differentiable in `prediction` (arXiv 2509.25774).

    With the step's own weight this is the exact log-ratio of its two Gaussians at the x_next that was drawn. With
    another weight it is that of a step with this weight. It is exactly 0 at d = 0 in every dtype, because no density is
    recovered from a rounded x_next. Half types are converted to float32 before anything is subtracted.
    """
    d, z = _change_and_noise(prediction, old_prediction, noise)
    w, s = _per_sample(weight, d), _per_sample(sign, d)
    return -(w * d * (s * z + 0.5 * w * d)).flatten(1).mean(1)


def rounded(prediction: Float[Tensor, "B ..."], dtype: torch.dtype) -> Float[Tensor, "B ..."]:
    """Round a prediction to the values of `dtype`, keeping its own dtype and its unrounded gradient.

    Stored predictions were rounded in the same way, so equal predictions stay equal. A cast back and forth would round
    the gradient too, to 0 in float16.
    """
    if dtype == prediction.dtype:
        return prediction
    detached = prediction.detach()
    return prediction + (detached.to(dtype).to(prediction.dtype) - detached)  # the sum is exact


def clipped_ratio(
    log_ratio: Float[Tensor, " B"], advantage: Float[Tensor, " B"], *, clip_range: float | Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Compute PPO's loss plus A: max(-A (rho - 1), -A clip(rho - 1, -xi, xi)) (arXiv 1707.06347, equation 7).

    It is written in rho - 1, by expm1, because a float32 rho near 1 has only three digits left for a clip range of
    1e-4. The constant A that it leaves out has no gradient. It equals the hinge max(0, xi |A| - A (rho - 1)) less the
    constant xi |A|.
    """
    change = torch.expm1(log_ratio)
    return torch.maximum(-advantage * change, -advantage * change.clamp(-clip_range, clip_range))  # type: ignore[arg-type]  # torch knows no union


def log_hinge(
    log_ratio: Float[Tensor, " B"], advantage: Float[Tensor, " B"], *, clip_range: float | Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Compute PCPO's loss: max(0, xi |A| - A log rho) (arXiv 2509.25774)."""
    return torch.relu(clip_range * advantage.abs() - advantage * log_ratio)


def kl_divergence(
    prediction: Float[Tensor, "B ..."], reference: Float[Tensor, "B ..."], *, weight: float | Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Compute KL(theta || reference) of a step's Gaussians, per dimension: w^2 mean(d^2) / 2.

    d is the difference of the predictions. `weight` is the step's own, |gain| / std, whatever credit it carries
    (Flow-GRPO, arXiv 2505.05470).
    """
    d = prediction.to(torch.promote_types(prediction.dtype, torch.float32)) - reference
    squares = d.square().flatten(1).mean(1)
    return _per_sample(0.5 * weight**2, squares) * squares


def importance(lag: Float[Tensor, " B"], *, dimensions: int, most: float) -> Float[Tensor, " B"]:
    """Compute min(ratio of densities, most), V-trace's truncated importance weight (arXiv 1802.01561, equation 1).

    `lag` is the mean log-ratio per dimension of the policy that is trained to the one that sampled, at the sampler's
    own weights. The ratio of the two densities of a step is exp(`dimensions` * lag). The surrogate then uses the
    log-ratio to the policy that is trained (decoupled PPO, arXiv 2110.00641).
    """
    return (dimensions * lag).clamp(max=math.log(most)).exp()


def spread(weights: Float[Tensor, " B"], counted: Bool[Tensor, " B"], *, most: float) -> Float[Tensor, "4"]:
    """Sum over the importance weights that are `counted`: their number, w, w^2, and the number truncated.

    Such sums add up over passes and ranks. Nothing here waits for the device.
    """
    count = counted.double()
    w = weights.double() * count
    truncated = (weights >= most * (1 - 1e-6)) * count
    return torch.stack([count.sum(), w.sum(), w.square().sum(), truncated.sum()])


def spread_in_numbers(sums: Sequence[float]) -> dict[str, float] | None:
    """Summarise importance weights: `mean`, `std`, `truncated` fraction, `effective` fraction; None if there are none.

    The effective fraction is (sum w)^2 / (n sum w^2): an equally weighted sample of that size tells as much.
    """
    count, total, squares, truncated = sums
    if not count:
        return None
    return {
        "mean": total / count,
        "std": _std(total, squares, count),
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
    """Mark with 1 where the clip range cuts off the surrogate's gradient, else 0.

    Raises ConfigError for an unknown objective.
    """
    if objective not in get_args(Objective):
        raise ConfigError(f"got objective {objective!r}; expected {' or '.join(map(repr, get_args(Objective)))}")
    match objective:
        case "clipped_ratio":
            change = torch.expm1(log_ratio)
        case "log_hinge":
            change = log_ratio
        case _:
            assert_never(objective)
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
    """Compute the L2 norm of each sample's d loss / d prediction: |A| r w / D ||s z + w d|| where active, else 0.

    r is rho for the clipped ratio and 1 for the hinge. Raises ConfigError for an unknown objective.
    """
    d, z = _change_and_noise(prediction, old_prediction, noise)
    w, s = _per_sample(weight, d), _per_sample(sign, d)
    slope = (w * (s * z + w * d)).flatten(1)
    norm: Tensor = advantage.abs() * slope.square().sum(1).sqrt() / slope.shape[1]
    stopped = inactive(log_ratio, advantage, clip_range=clip_range, objective=objective)
    match objective:
        case "clipped_ratio":
            norm = norm * log_ratio.exp()
        case "log_hinge":
            pass
        case _:
            assert_never(objective)
    return norm * (1 - stopped)


SHOWN = 5
"""Number of values that are not finite which an error shows."""


class StepDiagnostics:
    """Diagnostics of a surrogate at each of a trajectory's T timesteps, summed over the micro-batches of an update.

    They are kept as sums per timestep, so that ranks merge by adding (and maxima by taking the larger).
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
        """Note B samples, all at one timestep index `step` or each at its own; `count` counts them later.

        This does not wait for the device.

        Raises ConfigError for an unknown objective.
        """
        stopped = inactive(log_ratio, advantage, clip_range=clip_range, objective=objective)
        steps, limits = (_each(value, log_ratio) for value in (step, clip_range))
        self._noted.append((steps.long(), torch.stack([log_ratio, gradient_norm, stopped.to(log_ratio), limits])))

    def count(self) -> None:
        """Count all noted samples, with one wait for the device, however many micro-batches there were.

        Raises TrainingError for a log-ratio or gradient that is not finite, and then counts none of them.
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
        """The sums that SUMS names, at each timestep."""
        self.count()
        return self._sums

    @sums.setter
    def sums(self, value: Float[Tensor, "8 T"]) -> None:
        self._sums = value

    @property
    def max_log_ratio(self) -> Float[Tensor, " T"]:
        """The largest |log rho| at each timestep."""
        self.count()
        return self._max_log_ratio

    @max_log_ratio.setter
    def max_log_ratio(self, value: Float[Tensor, " T"]) -> None:
        self._max_log_ratio = value

    def summary(self) -> dict[str, list[float | None]]:
        """Summarise each timestep; a value is None where nothing was counted.

        `ratio_mean` and `ratio_std` are of rho, `log_ratio_std` of log rho, `max_log_ratio` of |log rho|.
        `clip_fraction` is the fraction with |log rho| > xi, whatever the objective. `inactive_fraction` is the fraction
        whose gradient is cut off; it is one-sided, so about half of that. `gradient_share` is the timestep's fraction
        of all gradient norms; they add up to 1 (None if all norms are 0).
        """
        rows = [_statistics(*column) for column in zip(self.sums.T.tolist(), self.max_log_ratio.tolist(), strict=True)]
        table = {name: [row[name] for row in rows] for name in rows[0]}
        count, norms = self.sums[0].tolist(), self.sums[-1].tolist()
        total = math.fsum(norms)
        shares = [norm / total if seen and total else None for seen, norm in zip(count, norms, strict=True)]
        return {**table, "gradient_share": shares}

    def overall(self) -> dict[str, float | None]:
        """Summarise all samples and timesteps at once; the values are those of `summary` but `gradient_share`."""
        return _statistics(self.sums.sum(1).tolist(), self.max_log_ratio.max().item())


def _statistics(sums: list[float], max_log_ratio: float) -> dict[str, float | None]:
    """Compute the statistics from the sums that StepDiagnostics.SUMS names."""
    count, change, change_squared, log_ratio, log_ratio_squared, clipped, stopped, _ = sums
    names = ("ratio_mean", "ratio_std", "log_ratio_std", "clip_fraction", "inactive_fraction", "max_log_ratio")
    if count == 0:
        return dict.fromkeys(names)
    mean = change / count
    values = (
        1 + mean,
        _std(change, change_squared, count),
        _std(log_ratio, log_ratio_squared, count),
        clipped / count,
        stopped / count,
        max_log_ratio,
    )
    return dict(zip(names, values, strict=True))


def _std(summed: float, squared: float, count: float) -> float:
    """Compute the std of `count` values from their sum and their sum of squares."""
    return math.sqrt(max(0.0, squared / count - (summed / count) ** 2))


def _each(value: float | Tensor, like: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Give one value for each sample."""
    return value.to(like) if isinstance(value, Tensor) else torch.full_like(like, value)


def _change_and_noise(
    prediction: Float[Tensor, "B ..."], old_prediction: Float[Tensor, "B ..."], noise: Float[Tensor, "B ..."]
) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."]]:
    """Compute d and z, in float32 at least."""
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return prediction.to(dtype) - old_prediction.to(dtype), noise.to(dtype)


def _per_sample(value: float | Float[Tensor, " B"], like: Float[Tensor, "B ..."]) -> float | Float[Tensor, "B ..."]:
    """Shape one value a sample so that it multiplies `like`; leave a plain number as it is."""
    if not isinstance(value, Tensor):
        return value  # a tensor of it would have to be copied to the device
    return value.to(like).reshape(-1, *[1] * (like.ndim - 1))
