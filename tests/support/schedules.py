"""Schedules that the paper's tests share: Stable Diffusion 1.5's, and any that hypothesis can think of."""

import math

from hypothesis import strategies as st

from pcpo_ray.algorithm.schedule import DiffusionSchedule, FlowSchedule


def scaled_linear_alpha_bars() -> tuple[float, ...]:
    """Compute the cumulative alphas of Stable Diffusion's schedule, in which sqrt(beta) is linear."""
    first, last = math.sqrt(0.00085), math.sqrt(0.012)
    alpha_bars, product = [], 1.0
    for k in range(1000):
        product *= 1 - (first + (last - first) * k / 999) ** 2
        alpha_bars.append(product)
    return tuple(alpha_bars)


SD15_ALPHA_BARS = scaled_linear_alpha_bars()


def sd15(steps: int = 50, *, offset: int = 1, final_alpha_bar: float = SD15_ALPHA_BARS[0]) -> DiffusionSchedule:
    """Make `steps` of Stable Diffusion's schedule at `leading` spacing (arXiv 2305.08891, table 2)."""
    stride = len(SD15_ALPHA_BARS) // steps
    timesteps = tuple(k * stride + offset for k in reversed(range(steps)))
    after = (timestep - stride for timestep in timesteps)
    return DiffusionSchedule(
        timesteps=timesteps,
        alpha_bar=tuple(SD15_ALPHA_BARS[t] for t in timesteps),
        alpha_bar_prev=tuple(SD15_ALPHA_BARS[t] if t >= 0 else final_alpha_bar for t in after),
    )


@st.composite
def diffusion_schedules(draw: st.DrawFn) -> DiffusionSchedule:
    """1 to 12 steps, each adding between a thousandth and a half of what noise it can, ending with a little noise."""
    betas = draw(st.lists(st.floats(1e-3, 0.5), min_size=2, max_size=13))
    levels = [1.0]
    for beta in betas:
        levels.append(levels[-1] * (1 - beta))
    falling = levels[:0:-1]
    return DiffusionSchedule(
        timesteps=tuple(range(len(falling) - 1, 0, -1)),
        alpha_bar=tuple(falling[:-1]),
        alpha_bar_prev=tuple(falling[1:]),
    )


@st.composite
def flow_schedules(draw: st.DrawFn) -> FlowSchedule:
    """2 to 30 shifted steps."""
    return FlowSchedule.shifted(steps=draw(st.integers(2, 30)), shift=draw(st.floats(0.5, 6.0)))
