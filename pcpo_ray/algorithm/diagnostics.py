"""Diagnostics of a surrogate while it is trained: ratios, clipping and gradient norms at each timestep.

Notation and shapes are those of objective.py.
"""

import math
from typing import assert_never, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pcpo_ray.algorithm.objective import Loss, Objective, change_and_noise, masked, per_sample, slope, std_of_sums
from pcpo_ray.errors import ConfigError, TrainingError

SHOWN = 5
"""The most non-finite numbers that an error quotes."""


def inactive(
    log_ratio: Float[Tensor, " B"],
    advantage: Float[Tensor, " B"],
    *,
    clip_range: float | Float[Tensor, " B"],
    objective: Objective | Loss,
    divergence: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, " B"]:
    """Mark with 1 where the clip range cuts off the surrogate's gradient, else 0.

    For `divergence_mask` the clip range is its threshold of the `divergence`. For another objective these are the
    samples whose loss has no slope though they have an advantage. Raises ConfigError for an unknown name.
    """
    if callable(objective):
        return ((slope(objective, log_ratio, advantage) == 0) & (advantage != 0)).to(log_ratio.dtype)
    if objective not in get_args(Objective):
        raise ConfigError(f"got objective {objective!r}; expected {' or '.join(map(repr, get_args(Objective)))}")
    match objective:
        case "clipped_ratio":
            change = torch.expm1(log_ratio)
        case "log_hinge":
            change = log_ratio
        case "divergence_mask":
            assert divergence is not None
            return masked(log_ratio, advantage, divergence, threshold=clip_range).to(log_ratio.dtype)
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
    stopped: Float[Tensor, " B"],
    objective: Objective | Loss,
    quadratic: bool = True,
) -> Float[Tensor, " B"]:
    """Compute the L2 norm of each sample's d loss / d prediction: |A| r w / D ||s z + w d|| where active, else 0.

    r is rho for surrogates on the ratio and 1 for the hinge; another objective has its slope in place of |A| r. Without
    `quadratic` the log-ratio has no term w d. `stopped` is what `inactive` found. Raises ConfigError for an unknown
    name.
    """
    d, z = change_and_noise(prediction, old_prediction, noise)
    w, s = per_sample(weight, d), per_sample(sign, d)
    moved = (w * (s * z + w * d) if quadratic else w * (s * z)).flatten(1)
    if callable(objective):
        steep: Tensor = slope(objective, log_ratio, advantage).abs() * moved.square().sum(1).sqrt() / moved.shape[1]
        return steep
    norm: Tensor = advantage.abs() * moved.square().sum(1).sqrt() / moved.shape[1]
    match objective:
        case "clipped_ratio" | "divergence_mask":
            norm = norm * log_ratio.exp()
        case "log_hinge":
            pass
        case _:
            assert_never(objective)
    return norm * (1 - stopped)


class TimestepDiagnostics:
    """Diagnostics of a surrogate at each of a trajectory's T timesteps, summed over the micro-batches of an update.

    They are kept as sums per timestep, so that ranks merge by adding (and maxima by taking the larger).
    """

    # change = rho - 1
    SUMS = (
        "count", "change", "change_squared", "centred_change", "log_ratio", "log_ratio_squared", "clipped", "inactive",
        "weight", "gradient_norm"
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
        gradient_norm: Float[Tensor, " B"],
        *,
        drift: Float[Tensor, " B"],
        stopped: Float[Tensor, " B"],
        distance: Float[Tensor, " B"],
        limit: float | Float[Tensor, " B"],
        weight: float | Float[Tensor, " B"],
    ) -> None:
        """Note B samples, all at one timestep index `step` or each at its own; `count` counts them later.

        `drift` is the quadratic term of the log-ratio, w^2 mean(d^2) / 2, by which its mean over the noise is below 0.
        `stopped` is what `inactive` found. A sample counts as clipped if its `distance` exceeds the `limit`. `weight`
        is its credit weight. This does not wait for the device.
        """
        rows = [log_ratio, gradient_norm, drift, stopped, distance, *(_each(one, log_ratio) for one in (limit, weight))]
        self._noted.append((_each(step, log_ratio).long(), torch.stack([row.to(log_ratio) for row in rows])))

    def count(self) -> None:
        """Count all noted samples, with one wait for the device, however many micro-batches there were.

        Raises TrainingError for a log-ratio or gradient that is not finite, and then counts none of them.
        """
        if not self._noted:
            return
        noted, self._noted = self._noted, []
        where = torch.cat([steps for steps, _ in noted]).cpu()
        values, norms, drifts, stops, distances, limits, weights = (
            torch.cat([part for _, part in noted], dim=1).cpu().double()
        )
        finite = values.isfinite() & norms.isfinite()
        if not finite.all():
            some = [found[~finite][:SHOWN].tolist() for found in (values, norms)]
            raise TrainingError(
                f"at step {where[~finite].unique().tolist()} a log-ratio or its gradient is not finite, of "
                f"{int((~finite).sum())} (image, step) pairs: log-ratios {some[0]}, gradient norms {some[1]}, ...; "
                "lower the learning rate, or use a wider dtype"
            )
        change = torch.expm1(values)
        clipped = (distances > limits).double()
        squares = (change.square(), torch.expm1(values + drifts), values, values.square())
        rows = torch.stack([torch.ones_like(values), change, *squares, clipped, stops, weights, norms])
        self._sums.index_add_(1, where, rows)
        self._max_log_ratio.scatter_reduce_(0, where, values.abs(), reduce="amax")

    @property
    def sums(self) -> Float[Tensor, "10 T"]:
        """The sums that SUMS names, at each timestep."""
        self.count()
        return self._sums

    @sums.setter
    def sums(self, value: Float[Tensor, "10 T"]) -> None:
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
        """Summarise each timestep; a value is None where nothing was counted. `weight_mean` is of the credit weights.

        `ratio_mean` and `ratio_std` are of rho, `log_ratio_std` of log rho, `max_log_ratio` of |log rho|.
        `centred_ratio_mean` is of rho without the quadratic term of log rho. Taking the mean over D makes `ratio_mean`
        fall below 1 by that term, and this one stay at 1. `clip_fraction` is the fraction with |log rho| > xi, whatever
        the objective; for `divergence_mask` that whose divergence exceeds the threshold. `inactive_fraction` is the
        fraction whose gradient is cut off; it is one-sided, so about half of that. `gradient_share` is the timestep's
        fraction of all gradient norms; they add up to 1 (None if all norms are 0).
        """
        rows = [_statistics(*column) for column in zip(self.sums.T.tolist(), self.max_log_ratio.tolist(), strict=True)]
        table = {name: [row[name] for row in rows] for name in rows[0]}
        count, norms = self.sums[0].tolist(), self.sums[-1].tolist()
        total = math.fsum(norms)
        shares = [norm / total if seen and total else None for seen, norm in zip(count, norms, strict=True)]
        weights = [total / seen if seen else None for total, seen in zip(self.sums[-2].tolist(), count, strict=True)]
        return {**table, "weight_mean": weights, "gradient_share": shares}

    def overall(self) -> dict[str, float | None]:
        """Summarise all samples and timesteps at once; the values are those of `summary` but its last two."""
        return _statistics(self.sums.sum(1).tolist(), self.max_log_ratio.max().item())


def _statistics(sums: list[float], max_log_ratio: float) -> dict[str, float | None]:
    """Compute the statistics from the sums that TimestepDiagnostics.SUMS names."""
    count, change, change_squared, centred, log_ratio, log_ratio_squared, clipped, stopped, *_ = sums
    names = (
        "ratio_mean", "centred_ratio_mean", "ratio_std", "log_ratio_std", "clip_fraction", "inactive_fraction",
        "max_log_ratio"
    )  # fmt: skip
    if count == 0:
        return dict.fromkeys(names)
    mean = change / count
    values = (
        1 + mean,
        1 + centred / count,
        std_of_sums(change, change_squared, count),
        std_of_sums(log_ratio, log_ratio_squared, count),
        clipped / count,
        stopped / count,
        max_log_ratio,
    )
    return dict(zip(names, values, strict=True))


def _each(value: float | Tensor, like: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Give one value for each sample."""
    return value.to(like) if isinstance(value, Tensor) else torch.full_like(like, value)
