"""Means over prompts and their bootstrap intervals.

Images of one prompt are not independent, nor are images of the same text at two places. So intervals resample
prompts, and equal texts are one prompt.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float

from pcpo_ray.config import FEWEST
from pcpo_ray.data.seeds import seed_of


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over images, and its 95% bootstrap interval over prompts; NaN bounds for fewer than `FEWEST`."""

    mean: float
    low: float
    high: float

    @property
    def bounded(self) -> bool:
        """True if the interval exists."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def row(self) -> dict[str, float | None]:
        """Return the estimate as it is recorded, with null for NaN."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}

    def scaled(self, factor: float) -> "Estimate":
        """Return the estimate in a unit that is so many times as small, such as percentage points."""
        return Estimate(mean=factor * self.mean, low=factor * self.low, high=factor * self.high)

    @classmethod
    def of(cls, row: Mapping[str, float | None]) -> "Estimate":
        """Return the estimate that `row` recorded."""
        mean, low, high = (math.nan if value is None else value for value in (row["mean"], row["low"], row["high"]))
        return cls(mean=mean, low=low, high=high)


def estimate(values: Float[np.ndarray, "P N"]) -> Estimate:
    """Estimate the mean over prompts, each the mean of its images that have a score; NaN if none has.

    Rows are independent: each row has a text of its own (`tasks`).
    """
    per_prompt = [row[np.isfinite(row)].mean() for row in values if np.isfinite(row).any()]
    if not per_prompt:
        return Estimate(mean=float("nan"), low=float("nan"), high=float("nan"))
    means = np.array(per_prompt)
    if len(means) < FEWEST:
        return Estimate(mean=float(means.mean()), low=math.nan, high=math.nan)
    if np.ptp(means) == 0:
        return Estimate(mean=float(means.mean()), low=float(means.mean()), high=float(means.mean()))
    from scipy.stats import bootstrap

    found = bootstrap(
        (means,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(seed_of("bootstrap"))
    ).confidence_interval
    return Estimate(mean=float(means.mean()), low=float(found.low), high=float(found.high))


def paired(before: Float[np.ndarray, "P N"], after: Float[np.ndarray, "P N"]) -> Estimate:
    """Estimate the mean of after - before, image by image at the same prompt and seed."""
    return estimate(after - before)


def change(before: Float[np.ndarray, "P N"], after: Float[np.ndarray, "P N"]) -> dict[str, float | None]:
    """Return `paired` as it is recorded, and its mean in stds of all scores before and after (`deviations`).

    If all scores were equal before and equal after, at another value, `deviations` is 2 or -2.
    """
    found = paired(before, after)
    if math.isnan(found.mean):
        return {**found.row(), "deviations": None}
    spread = float(np.nanstd(np.stack([before, after])))
    return {**found.row(), "deviations": found.mean / spread if spread else 0.0}
