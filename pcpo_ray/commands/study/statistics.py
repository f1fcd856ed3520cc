"""Intervals and tests over few seeds, and when a curve reaches a target.

n seeds; arms are compared seed by seed, as the same seed has the same prompts and noises in every arm.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from pcpo_ray.data.seeds import seed_of
from pcpo_ray.runs.intervals import Estimate

LEVEL = 0.95
RESAMPLES = 9999
MOST = 16
"""Seeds that a study may have: the sign-flip test goes through every assignment of signs."""


def interval(values: Float[np.ndarray, " n"]) -> Estimate:
    """The mean and its 95% t-interval over seeds. NaN bounds for fewer than two; NaN where a value is."""
    from scipy.stats import t

    n, mean = len(values), float(np.mean(values)) if len(values) else math.nan
    if n < 2:
        return Estimate(mean=mean, low=math.nan, high=math.nan)
    half = float(t.ppf(0.5 + LEVEL / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Estimate(mean=mean, low=mean - half, high=mean + half)


def sign_flip(differences: Float[np.ndarray, " n"]) -> float:
    """The two-sided p of the paired permutation test: the fraction of the 2^n sign assignments whose |sum| is as large.

    Exact, whatever the differences' distribution, where an arm and its baseline are exchangeable at each seed. At n
    seeds it is never below `least_p(n)`.
    """
    n = len(differences)
    signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    sums = np.abs(signs @ differences)
    seen = abs(float(np.sum(differences)))
    return float(np.mean(sums >= seen - 1e-12 * float(np.sum(np.abs(differences)))))


def least_p(n: int) -> float:
    """The smallest p that `sign_flip` can give with n seeds."""
    return 2.0 ** (1 - n)


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted so that any of them being below a level is as rare as one would be (Holm, 1979)."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    adjusted, worst = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = worst
    return adjusted


def ratio(numerator: Float[np.ndarray, " n"], denominator: Float[np.ndarray, " n"]) -> Estimate:
    """The ratio of two paired means and its 95% bootstrap interval, seeds resampled in pairs.

    Plain percentiles are too narrow at few seeds; they are widened to what makes the interval of a mean as wide as the
    t-interval (Hesterberg, 2015, 3.3). As it cannot leave the range of the single seeds' values, its coverage at n
    seeds is at most about 1 - 2^(1-n): 94% of 5, 75% of 3.
    """
    from scipy.stats import norm, t

    n = len(numerator)
    value = float(np.mean(numerator) / np.mean(denominator))
    if n < 2:
        return Estimate(mean=value, low=math.nan, high=math.nan)
    tail = float(norm.cdf(math.sqrt(n / (n - 1)) * t.ppf((1 - LEVEL) / 2, n - 1)))
    drawn = np.random.default_rng(seed_of("bootstrap", n)).integers(n, size=(RESAMPLES, n))
    ratios = numerator[drawn].mean(1) / denominator[drawn].mean(1)
    low, high = np.quantile(ratios, (tail, 1 - tail))
    return Estimate(mean=value, low=float(low), high=float(high))


@dataclass(frozen=True, kw_only=True)
class Reached:
    """When runs reached a target: one time a seed, `end` where it was not reached by then (censored)."""

    times: Float[np.ndarray, " n"]
    reached: np.ndarray
    end: float

    @property
    def median(self) -> float | None:
        """The median over seeds; None where as many as half have not reached it, which leaves it beyond the end."""
        times = np.sort(np.where(self.reached, self.times, math.inf))
        n = len(times)
        middle = float((times[(n - 1) // 2] + times[n // 2]) / 2)
        return middle if math.isfinite(middle) else None


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The speed-up of an arm over another in reaching a target: (the other's mean time) / (its own).

    `bound`: "" where every run of both reached it; ">" where only the other's were cut off, so that the true ratio is
    higher; "<" where only its own were; "?" where both had runs cut off and nothing follows, `ratio` being NaN.
    """

    ratio: Estimate
    bound: str
    p: float


def crossing(x: Sequence[float], y: Sequence[float], target: float) -> float | None:
    """The first x at which the curve through the points, straight between them, is at `target`; None if it never is.

    Points whose y is NaN are left out.
    """
    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
    if not points:
        return None
    if points[0][1] >= target:
        return points[0][0]
    for (x0, y0), (x1, y1) in pairwise(points):
        if y1 >= target:
            return x0 + (x1 - x0) * (target - y0) / (y1 - y0)
    return None


def reached(curves: Sequence[tuple[Sequence[float], Sequence[float]]], targets: Sequence[float]) -> Reached:
    """When each seed's curve reached its target."""
    end = max(x[-1] for x, _ in curves)
    found = [crossing(x, y, target) for (x, y), target in zip(curves, targets, strict=True)]
    times = np.array([end if time is None else time for time in found], float)
    return Reached(times=times, reached=np.array([time is not None for time in found]), end=end)


def speed(arm: Reached, other: Reached) -> Speed:
    """Compares the times of two arms, seed by seed.

    The test flips signs of the differences of times cut off at the end, which is as exact as without censoring: both
    arms end at the same time.
    """
    p = sign_flip(other.times - arm.times)
    cut, other_cut = not arm.reached.all(), not other.reached.all()
    if (cut and other_cut) or not arm.times.mean():
        return Speed(ratio=Estimate(mean=math.nan, low=math.nan, high=math.nan), bound="?", p=p)
    return Speed(ratio=ratio(other.times, arm.times), bound="<" if cut else ">" if other_cut else "", p=p)
