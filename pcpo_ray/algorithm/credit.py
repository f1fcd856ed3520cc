"""Which weight each step's log-ratio carries in the loss, and with which steps to sample (PCPO, arXiv 2509.25774).

A sampler credits its T steps unevenly: step t's log-ratio moves with w_t = |gain| / std. PCPO makes the credit
proportionate: constant for diffusion, proportional to the time covered for flow matching. Each function here is a kind:

    kind                sampler                            weight in the loss           the ratio of its own sampler?
    native              native                             w_t                          yes
    reweight            native                             the native mean              no: a reweighted loss
    released            plus root at w* = 4.5              the native mean              no: its true weight stays uneven
    variance            minus root at w*                   the native mean              up to one factor: all are w*
    interpolate         native, its prediction mixed with  w*                           yes
                        the reference's by `mix`
    proportionate_flow  native                             zeta dt_t                    no: a reweighted loss
    tilted              native                             proportionate, times a ramp  no: a reweighted loss

"The native mean" is over the steps trained, so that arms which are compared take steps of the same size on average.
Steps that are not trained keep the native sampler and carry no weight. `trained` holds the indices of the steps
trained, 0 the noisiest. Every function raises CreditError if it is empty, repeats an index or names one that is not
there, and if a trained step draws no noise.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pcpo_ray.algorithm.schedule import DiffusionSchedule, FlowSchedule, Schedule
from pcpo_ray.algorithm.transitions import AffineStep, ddim
from pcpo_ray.errors import CreditError


@dataclass(frozen=True, kw_only=True)
class Credit:
    """A sampler's T steps and the T numbers by which its log-ratios are weighted.

    `steps`: what the sampler does. `weights`: what `objective.log_ratio` is given; 0 where a step is not trained.
    `mix`: lambda, by which the sampler replaces the prediction: ref + lambda (theta - ref); 1 leaves it alone.
    `trained`: indices of the steps trained, ascending.
    """

    steps: tuple[AffineStep, ...]
    weights: tuple[float, ...]
    mix: tuple[float, ...]
    trained: tuple[int, ...]

    def restricted(self, chosen: Sequence[int]) -> "Credit":
        """The same sampler, of which only the `chosen` steps are trained, with the weights they have."""
        weights = tuple(weight if index in chosen else 0.0 for index, weight in enumerate(self.weights))
        return replace(self, weights=weights, trained=tuple(sorted(chosen)))

    def elsewhere(self, steps: Sequence[AffineStep]) -> "Credit":
        """The trained steps as they are, and in place of the others these."""
        pairs = [(self.steps[i], self.mix[i]) if i in self.trained else (step, 1.0) for i, step in enumerate(steps)]
        return replace(self, steps=tuple(step for step, _ in pairs), mix=tuple(mix for _, mix in pairs))


def native(steps: Sequence[AffineStep], trained: Sequence[int]) -> Credit:
    """Every step carries the weight that its own sampler gives it: the exact log-ratio."""
    weights = _native_weights(steps, trained)
    return _credit(steps, weights)


def reweight(steps: Sequence[AffineStep], trained: Sequence[int]) -> Credit:
    """The native sampler; every trained step carries the mean of the native weights.

    The trajectories are exactly those of `native`. The log-ratio is no longer that of the sampler: this is a
    reweighting of the loss, by a constant in place of w_t.
    """
    weights = _native_weights(steps, trained)
    return _credit(steps, _all_at_mean(weights))


def released(schedule: DiffusionSchedule, trained: Sequence[int], *, w_star: float = 4.5, eta: float = 1.0) -> Credit:
    """The plus root at `w_star`, and w* rescaled to the native mean, as the authors' code family has it.

    For w* beyond sqrt(1 + least weight^2) the plus root does not give a step the weight w* (see `ddim.plus_sigma`): it
    leaves the true weights uneven, about where they were. `eta` is the native sampler's. Raises CreditError, naming
    the least feasible weight and the step that asks for it, if w* is lower.
    """
    return _at_root(ddim.plus_sigma, schedule, trained, w_star, eta)


def variance(
    schedule: DiffusionSchedule, trained: Sequence[int], *, w_star: float | None = None, eta: float = 1.0
) -> Credit:
    """The minus root at `w_star`: trained steps whose true weights are all w*, rescaled to the native mean in the loss.

    `w_star` None takes the least that all trained steps can have. That is high if a schedule's last two steps are
    trained, and then the sampler is almost deterministic. `eta` is the native sampler's. Raises CreditError as
    `released` does.
    """
    return _at_root(ddim.minus_sigma, schedule, trained, w_star, eta)


def interpolate(steps: Sequence[AffineStep], trained: Sequence[int], *, w_star: float | None = None) -> Credit:
    """The native sampler, stepping with ref + lambda_t (theta - ref) where lambda_t = w* / w_t.

    The trajectory stores the network's raw prediction. Between two policies the mixed predictions differ by
    lambda_t d with d = theta - theta_old, the reference cancelling, so the exact log-ratio in terms of the stored d
    carries the weight lambda_t w_t = w* in both of its terms. `w_star` None is the native mean. lambda_t above 1
    extrapolates, at steps whose native weight is below w*. Raises CreditError unless w* is positive and finite.
    """
    weights = _native_weights(steps, trained)
    wanted = _mean(weights) if w_star is None else w_star
    if not 0 < wanted < math.inf:
        raise CreditError(f"got w_star {wanted}; expected a positive, finite weight, or None for the native mean")
    mix = [wanted / weights[index] if index in weights else 1.0 for index in range(len(steps))]
    return _credit(steps, dict.fromkeys(weights, wanted), mix=mix)


def proportionate_flow(schedule: FlowSchedule, steps: Sequence[AffineStep], trained: Sequence[int]) -> Credit:
    """w_t := zeta dt_t over the trained steps, zeta = (sum of their native weights) / (sum of their dt).

    With every step trained from t = 1 the dt sum to 1 and zeta is the sum of the native weights, the paper's form.
    Raises CreditError unless `steps` are as many as the schedule's.
    """
    if len(steps) != len(schedule):
        raise CreditError(f"got {len(steps)} steps for a schedule of {len(schedule)}; make the steps from the schedule")
    weights = _native_weights(steps, trained)
    zeta = math.fsum(weights.values()) / math.fsum(schedule.dt[index] for index in weights)
    return _credit(steps, {index: zeta * schedule.dt[index] for index in weights})


def tilted(schedule: Schedule, steps: Sequence[AffineStep], trained: Sequence[int], *, slope: float) -> Credit:
    """Proportionate credit times a ramp in time, from 1 + slope at the first trained step to 1 - slope at the last.

    Ours, beyond the paper: a `slope` above 0 favours early, noisy steps, below 0 late ones, and 0 is `reweight` or, for
    flow, `proportionate_flow` exactly. Time is counted in steps for diffusion, each of which covers as much; for flow
    it is that of a step's middle. A common factor keeps the native mean, as in the other kinds. Raises CreditError
    unless -1 < slope < 1, where every weight is positive, and unless `steps` are as many as the schedule's.
    """
    if not -1 < slope < 1:
        raise CreditError(f"got slope {slope}; expected a number between -1 and 1, so that every weight is positive")
    if len(steps) != len(schedule):
        raise CreditError(f"got {len(steps)} steps for a schedule of {len(schedule)}; make the steps from the schedule")
    weights = _native_weights(steps, trained)
    if isinstance(schedule, FlowSchedule):
        covered = {index: schedule.dt[index] for index in weights}
        passed = {index: -(schedule.times[index] + schedule.times[index + 1]) / 2 for index in weights}
    else:
        covered = dict.fromkeys(weights, 1.0)
        passed = {index: float(index) for index in weights}
    first, last = min(passed.values()), max(passed.values())
    middle, half = (first + last) / 2, (last - first) / 2 or 1.0
    shares = {index: covered[index] * (1 - slope * (passed[index] - middle) / half) for index in weights}
    zeta = math.fsum(weights.values()) / math.fsum(shares.values())
    return _credit(steps, {index: zeta * share for index, share in shares.items()})


def _at_root(
    root: Callable[[DiffusionSchedule, int, float], float],
    schedule: DiffusionSchedule,
    trained: Sequence[int],
    w_star: float | None,
    eta: float,
) -> Credit:
    """`root`'s sigma for `w_star` at the trained steps, the native one elsewhere; every weight is the native mean."""
    steps = ddim.steps(schedule, eta=eta)
    weights = _native_weights(steps, trained)
    least = ddim.least_weight(schedule, tuple(weights))
    wanted = least if w_star is None else w_star
    if not least * (1 - ddim.ROUNDING) <= wanted < math.inf:
        worst = ddim.most_demanding(schedule, tuple(weights))
        raise CreditError(
            f"no sampler gives all trained steps the weight {wanted:.6g}: the smallest feasible w_star is {least:.6g}, "
            f"which step {worst} (timestep {schedule.timesteps[worst]}) asks for; set a finite w_star "
            "of at least that, or leave that step untrained"
        )
    sigmas = [root(schedule, i, wanted) if i in weights else step.std for i, step in enumerate(steps)]
    return _credit(ddim.steps_with_sigma(schedule, sigmas), _all_at_mean(weights))


def _native_weights(steps: Sequence[AffineStep], trained: Sequence[int]) -> dict[int, float]:
    """The trained steps' own weights, by index."""
    indices = _checked(trained, len(steps))
    for index in indices:
        if steps[index].std == 0:
            raise CreditError(
                f"step {index} of {len(steps)} draws no noise, so its weight is infinite and it cannot be trained; "
                "leave it untrained, or give it noise (eta or a noise level above 0; for DDIM's last step, a scheduler "
                "with set_alpha_to_one false)"
            )
    return {index: steps[index].weight for index in indices}


def _checked(trained: Sequence[int], count: int) -> tuple[int, ...]:
    """The indices, ascending."""
    indices = tuple(sorted(trained))
    if not indices or len(set(indices)) != len(indices) or indices[0] < 0 or indices[-1] >= count:
        raise CreditError(
            f"got trained steps {tuple(trained)}; expected at least one index, each once, from 0 to {count - 1}"
        )
    return indices


def _mean(weights: dict[int, float]) -> float:
    return math.fsum(weights.values()) / len(weights)


def _all_at_mean(weights: dict[int, float]) -> dict[int, float]:
    return dict.fromkeys(weights, _mean(weights))


def _credit(steps: Sequence[AffineStep], weights: dict[int, float], *, mix: Sequence[float] | None = None) -> Credit:
    return Credit(
        steps=tuple(steps),
        weights=tuple(weights.get(index, 0.0) for index in range(len(steps))),
        mix=(1.0,) * len(steps) if mix is None else tuple(mix),
        trained=tuple(weights),
    )
