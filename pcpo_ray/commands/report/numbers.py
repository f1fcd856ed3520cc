"""Numbers as a reader takes them in: two significant digits of what is uncertain, and no more."""

import math

from pcpo_ray.runs.intervals import Estimate

NONE = "-"
"""The mark of a number that is missing."""

MINUS = "\u2212"
"""A minus sign that is as wide as a plus."""


NOTHING = 1e-12
"""A number below which there is only rounding."""

MOST = 6
"""Decimal places beyond which a number is written with an exponent."""


def places(width: float) -> int:
    """Return the decimal places that give two significant digits of a positive width."""
    return max(0, 1 - math.floor(math.log10(float(f"{width:.1e}"))))


def places_of(value: Estimate) -> int | None:
    """Return the decimal places of a mean that its interval is worth; None without an interval, or one of no width."""
    width = value.high - value.low
    return places(width) if value.bounded and width > NOTHING else None


def number(value: float | None, decimals: int | None = None, sign: str = "") -> str:
    """Format a number with so many decimals (None: three significant digits); `sign` "+" shows the plus too."""
    if value is None or not math.isfinite(value):
        return NONE
    if abs(value) < NOTHING:
        return "0" if decimals is None else f"{0:.{min(decimals, MOST)}f}"
    digits = 2 if decimals is None else 1
    if decimals is None:
        decimals = max(0, 2 - math.floor(math.log10(abs(float(f"{value:.2e}")))))
    if decimals > MOST:
        return f"{value:{sign}.{digits}e}".replace("-", MINUS)
    text = f"{value:{sign}.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("-+")
    return text.replace("-", MINUS)


def signed(value: float | None, decimals: int | None = None) -> str:
    """Format a change, with its sign."""
    return number(value, decimals, "+")


def interval(value: Estimate) -> str:
    """Format an interval's ends; empty where there is none."""
    if not value.bounded:
        return ""
    decimals = places_of(value)
    return f"{signed(value.low, decimals)} to {signed(value.high, decimals)}"


def percent(share: float) -> str:
    """Format a share in per cent: whole ones, and one decimal below ten."""
    value = 100 * share
    if 0 < value < 0.1:
        return "<0.1%"
    return f"{value:.0f}%" if value >= 10 or value == 0 else f"{value:.1f}%"


def duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours, whichever reads best."""
    if seconds < 0.1:
        return "<0.1 s" if seconds > 0 else "0 s"
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
