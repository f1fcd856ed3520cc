"""Noise schedules: the noise levels that a trajectory visits, noisiest first; a sampler's steps follow from them alone.

Notation: T steps; `alpha_bar` is the cumulative alpha of diffusion, in (0, 1]; `time` is the t of flow matching, 1 for
noise and 0 for data. Everything is float64 and known before the run starts.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from pcpo_ray.errors import ScheduleError

TRAIN_STEPS = 1000  # the range in which flow models count their timesteps


@dataclass(frozen=True, kw_only=True)
class DiffusionSchedule:
    """T denoising steps of a diffusion model.

    `timesteps` are the network's input at each step. A step starts at the noise level `alpha_bar` and goes to
    `alpha_bar_prev`. Raises ScheduleError unless timesteps fall and every step removes noise.
    """

    timesteps: tuple[int, ...]
    alpha_bar: tuple[float, ...]
    alpha_bar_prev: tuple[float, ...]

    def __post_init__(self) -> None:
        lengths = (len(self.timesteps), len(self.alpha_bar), len(self.alpha_bar_prev))
        if len(set(lengths)) != 1 or not self.timesteps:
            raise ScheduleError(
                f"got {lengths} timesteps, alpha_bar and alpha_bar_prev; expected the same number of each, at least one"
            )
        if self.timesteps[-1] < 0 or any(now <= later for now, later in pairwise(self.timesteps)):
            raise ScheduleError(
                f"got timesteps {self.timesteps}; expected them to fall strictly and stay at or above 0: "
                "give them noisiest first"
            )
        for timestep, now, after in zip(self.timesteps, self.alpha_bar, self.alpha_bar_prev, strict=True):
            if not 0 < now < after <= 1:
                raise ScheduleError(
                    f"the step at timestep {timestep} goes from alpha_bar {now} to {after}; expected "
                    "0 < alpha_bar < alpha_bar_prev <= 1, a step that removes noise. With timesteps that reach 0, "
                    "set the offset to 1 or final_alpha_bar to 1"
                )

    def __len__(self) -> int:
        return len(self.timesteps)


@dataclass(frozen=True, kw_only=True)
class FlowSchedule:
    """T steps of a flow-matching model: T + 1 `times`, from noise (at most 1) strictly down to 0.

    Raises ScheduleError for any other times.
    """

    times: tuple[float, ...]

    def __post_init__(self) -> None:
        falling = all(now > later for now, later in pairwise(self.times))
        if len(self.times) < 2 or not falling or self.times[0] > 1 or self.times[-1] != 0:
            raise ScheduleError(
                f"got times {self.times}; expected at least two, falling strictly from at most 1 to exactly 0"
            )

    def __len__(self) -> int:
        return len(self.times) - 1

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The network's input at each of the T steps: 1000 t."""
        return tuple(TRAIN_STEPS * time for time in self.times[:-1])

    @property
    def dt(self) -> tuple[float, ...]:
        """The positive time that each of the T steps covers; they sum to the first time."""
        return tuple(now - later for now, later in pairwise(self.times))

    @classmethod
    def shifted(cls, *, steps: int, shift: float) -> "FlowSchedule":
        """Shift even u from 1 to 0 towards the noise: t = shift u / (1 + (shift - 1) u) (arXiv 2403.03206).

        Raises ScheduleError unless steps >= 1 and shift > 0.
        """
        if steps < 1 or not shift > 0:
            raise ScheduleError(f"got {steps} steps with shift {shift}; expected at least 1 step and a shift above 0")
        even = (1 - k / steps for k in range(steps + 1))
        return cls(times=tuple(shift * u / (1 + (shift - 1) * u) for u in even))


Schedule: TypeAlias = DiffusionSchedule | FlowSchedule
