"""Schedules that the paper's tests share: Stable Diffusion 1.5's, and any that hypothesis can think of."""

from hypothesis import strategies as st

from pcpo_ray.algorithm.schedule import DiffusionSchedule, FlowSchedule, scaled_linear_alpha_bars

SD15_ALPHA_BARS = scaled_linear_alpha_bars()


def sd15(steps: int = 50) -> DiffusionSchedule:
    return DiffusionSchedule.from_alpha_bars(SD15_ALPHA_BARS, steps=steps, final_alpha_bar=SD15_ALPHA_BARS[0])


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
