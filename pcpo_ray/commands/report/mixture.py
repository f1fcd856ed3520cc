"""Which reward pays for which: the correlation of two rewards' gains over the prompts of an evaluation.

g_p = mean over prompt p's images of   score at the last evaluation - score at the first
r   = Pearson's correlation of the two rewards' g over the prompts, with its 95% interval (Fisher's transformation)
"""

import math
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from pcpo_ray import config
from pcpo_ray.config import FEWEST, TOTAL
from pcpo_ray.runs.records import Record


def pairs(record: Record) -> list[dict[str, Any]]:
    """Return each pair of rewards, of which at least one is trained on, with the correlation of their gains.

    None for one evaluation, fewer than `FEWEST` prompts or one reward.
    """
    if len(record.scores) < 2 or record.prompts < FEWEST:
        return []
    weights = {reward.name: reward.weight for reward in record.run.rewards}
    wanted = {reward.name: _wanted(reward) for reward in record.run.evaluation.rewards}
    wanted |= {name: float(np.sign(weight)) for name, weight in weights.items()}
    first, last = record.scores[min(record.scores)], record.scores[max(record.scores)]
    names = [*weights, *(name for name in last if name not in weights and name != TOTAL)]
    return [
        {"one": one, "other": other, **correlation(last[one] - first[one], last[other] - first[other])}
        | {"direction": wanted.get(one, 1.0) * wanted.get(other, 1.0)}
        for one, other in combinations(names, 2)
        if one in weights
    ]


def correlation(one: Float[np.ndarray, "P N"], other: Float[np.ndarray, "P N"]) -> dict[str, float]:
    """Correlate two rewards' gains over the prompts that have both; NaN where one of them is the same for all."""
    from scipy.stats import pearsonr

    both = np.isfinite(one) & np.isfinite(other)
    kept = both.any(axis=1)
    gains = [np.where(both, value, 0)[kept].sum(axis=1) / both[kept].sum(axis=1) for value in (one, other)]
    if kept.sum() < FEWEST or any(np.ptp(gain) == 0 for gain in gains):
        return {"r": math.nan, "low": math.nan, "high": math.nan}
    found = pearsonr(*gains)
    interval = found.confidence_interval(0.95)
    return {"r": float(found.statistic), "low": float(interval.low), "high": float(interval.high)}


def _wanted(reward: config.Reward) -> float:
    """Return 1 for a watched reward that should rise, -1 for one that should fall, 0 for neither."""
    worse = "less" if isinstance(reward, config.CustomReward) else reward.worse
    return {"less": 1.0, "more": -1.0, "neither": 0.0}[worse]


def verdict(pair: dict[str, Any]) -> str:
    """Say in words what a pair's correlation means for who wants both rewards to do well."""
    if not (pair["low"] > 0 or pair["high"] < 0):
        return "◆ unclear" if math.isfinite(pair["r"]) else "no verdict"
    if pair["direction"] == 0:
        return "rise together" if pair["r"] > 0 else "one rises, one falls"
    return "▲ gain together" if pair["direction"] * pair["r"] > 0 else "▼ one pays for the other"
