"""Credit: the weight of each step's log-ratio in the loss, and the steps to sample with (PCPO, arXiv 2509.25774).

A sampler credits its T steps unevenly: step t's log-ratio moves with w_t = |gain| / std. PCPO makes the credit
proportionate: constant for diffusion, proportional to the time covered for flow matching. Other methods leave w_t, and
scale the log-ratio inside the clip or the loss outside it (weighting.py). Each function here is a kind:

    kind                sampler                            weight in the loss           the ratio of its own sampler?
    native              native                             w_t                          yes
    reweight            native                             the native mean              no: a reweighted loss
    released            plus root at w* = 4.5              the native mean              no: its true weight stays uneven
    variance            minus root at w*                   the native mean              up to one factor: all are w*
    interpolate         native, its prediction mixed with  w*                           yes
                        the reference's by `mix`
    proportionate_flow  native                             zeta dt_t                    no: a reweighted loss
    tilted              native                             proportionate, times a ramp  no: a reweighted loss
    given               native                             as given                     no: a reweighted loss

"The native mean" is over the trained steps, so that the kinds take steps of the same size on average when they are
compared. Steps that are not trained keep the native sampler and carry no weight. `trained` holds the indices of the
trained steps; 0 is the noisiest. Every function raises CreditError if `trained` is empty, repeats an index or has one
out of range, and if a trained step draws no noise.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pcpo_ray.algorithm.schedule import DiffusionSchedule, FlowSchedule, Schedule
from pcpo_ray.algorithm.transitions import AffineStep, ddim
from pcpo_ray.errors import CreditError


@dataclass(frozen=True, kw_only=True)
class Credit:
    """A sampler's T steps and the T weights of its log-ratios.

    `steps` are the steps of the sampler. `weights` are given to `objective.log_ratio`; untrained steps have weight 0.
    `mix` is lambda: the sampler replaces the prediction by ref + lambda (theta - ref), and 1 leaves it as it is.
    `trained` are the indices of the trained steps, ascending. `scales` multiply the log-ratio before it is clipped,
    `outside` the step's loss; without `quadratic` the log-ratio is its linear term only.
    """

    steps: tuple[AffineStep, ...]
    weights: tuple[float, ...]
    mix: tuple[float, ...]
    trained: tuple[int, ...]
    scales: tuple[float, ...]
    outside: tuple[float, ...]
    quadratic: bool = True

    @property
    def inside(self) -> tuple[float, ...]:
        """The weight of each step inside the clip, to first order: scale times weight."""
        return tuple(scale * weight for scale, weight in zip(self.scales, self.weights, strict=True))

    def restricted(self, chosen: Sequence[int]) -> "Credit":
        """Train only the `chosen` steps of the same sampler, with the weights they have."""
        weights = tuple(weight if index in chosen else 0.0 for index, weight in enumerate(self.weights))
        return replace(self, weights=weights, trained=tuple(sorted(chosen)))

    def elsewhere(self, steps: Sequence[AffineStep]) -> "Credit":
        """Keep the trained steps, and replace all others by those given."""
        pairs = [(self.steps[i], self.mix[i]) if i in self.trained else (step, 1.0) for i, step in enumerate(steps)]
        return replace(self, steps=tuple(step for step, _ in pairs), mix=tuple(mix for _, mix in pairs))


def native(steps: Sequence[AffineStep], trained: Sequence[int]) -> Credit:
    """Give every step the weight of its own sampler, which makes the log-ratio exact."""
    return made(steps, native_weights(steps, trained))


def reweight(steps: Sequence[AffineStep], trained: Sequence[int]) -> Credit:
    """Keep the native sampler, and give every trained step the mean of the native weights.

    The trajectories are exactly those of `native`. The log-ratio is no longer the sampler's own: this reweights the
    loss, with a constant in place of w_t.
    """
    weights = native_weights(steps, trained)
    return made(steps, _all_at_mean(weights))


def released(schedule: DiffusionSchedule, trained: Sequence[int], *, w_star: float = 4.5, eta: float = 1.0) -> Credit:
    """Sample with the plus root at `w_star`, and rescale w* to the native mean, as the authors' released code does.

    For w* beyond sqrt(1 + least weight^2) the plus root does not give a step the weight w* (see `ddim.plus_sigma`): the
    true weights stay about as uneven as they were. `eta` is the native sampler's. Raises CreditError if w* is below the
    least feasible weight, naming that weight and the step that sets it.
    """
    return _at_root(ddim.plus_sigma, schedule, trained, w_star, eta)


def variance(
    schedule: DiffusionSchedule, trained: Sequence[int], *, w_star: float | None = None, eta: float = 1.0
) -> Credit:
    """Sample with the minus root at `w_star`: every trained step has the true weight w*, and the native mean as credit.

    `w_star` None takes the least weight that all trained steps can have. It is high if the last two steps of a schedule
    are trained, and the sampler is then almost deterministic. `eta` is the native sampler's. Raises CreditError as
    `released` does.
    """
    return _at_root(ddim.minus_sigma, schedule, trained, w_star, eta)


def interpolate(steps: Sequence[AffineStep], trained: Sequence[int], *, w_star: float | None = None) -> Credit:
    """Step the native sampler with ref + lambda_t (theta - ref), where lambda_t = w* / w_t.

    The trajectory stores the network's raw prediction. The mixed predictions of two policies differ by lambda_t d with
    d = theta - theta_old, as the reference cancels. The exact log-ratio in terms of the stored d therefore carries the
    weight lambda_t w_t = w* in both of its terms. `w_star` None is the native mean. At steps whose native weight is
    below w*, lambda_t is above 1 and extrapolates. Raises CreditError unless w* is positive and finite.
    """
    weights = native_weights(steps, trained)
    wanted = _mean(weights) if w_star is None else w_star
    if not 0 < wanted < math.inf:
        raise CreditError(f"got w_star {wanted}; expected a positive, finite weight, or None for the native mean")
    mix = [wanted / weights[index] if index in weights else 1.0 for index in range(len(steps))]
    return made(steps, dict.fromkeys(weights, wanted), mix=mix)


def proportionate_flow(schedule: FlowSchedule, steps: Sequence[AffineStep], trained: Sequence[int]) -> Credit:
    """Set w_t := zeta dt_t over the trained steps, with zeta = (sum of their native weights) / (sum of their dt).

    If every step from t = 1 is trained, the dt sum to 1 and zeta is the sum of the native weights, the paper's form.
    Raises CreditError unless there are as many `steps` as in the schedule.
    """
    if len(steps) != len(schedule):
        raise CreditError(f"got {len(steps)} steps for a schedule of {len(schedule)}; make the steps from the schedule")
    weights = native_weights(steps, trained)
    zeta = math.fsum(weights.values()) / math.fsum(schedule.dt[index] for index in weights)
    return made(steps, {index: zeta * schedule.dt[index] for index in weights})


def tilted(schedule: Schedule, steps: Sequence[AffineStep], trained: Sequence[int], *, slope: float) -> Credit:
    """Multiply proportionate credit by a ramp, from 1 + slope at the first trained step to 1 - slope at the last.

    Ours, beyond the paper. A `slope` above 0 favours early, noisy steps, one below 0 late steps; 0 is exactly
    `reweight` or, for flow, `proportionate_flow`. The ramp is linear in time. For diffusion every step covers the same
    time; for flow the time of a step is that of its middle. A common factor keeps the native mean, as in the other
    kinds. Raises CreditError unless -1 < slope < 1, where every weight is positive, and unless there are as many
    `steps` as in the schedule.
    """
    if not -1 < slope < 1:
        raise CreditError(f"got slope {slope}; expected a number between -1 and 1, so that every weight is positive")
    if len(steps) != len(schedule):
        raise CreditError(f"got {len(steps)} steps for a schedule of {len(schedule)}; make the steps from the schedule")
    weights = native_weights(steps, trained)
    if isinstance(schedule, FlowSchedule):
        covered = {index: schedule.dt[index] for index in weights}
        passed = {index: -(schedule.times[index] + schedule.times[index + 1]) / 2 for index in weights}
    else:
        covered = dict.fromkeys(weights, 1.0)
        passed = {index: float(index) for index in weights}
    first, last = min(passed.values()), max(passed.values())
    middle, half = (first + last) / 2, (last - first) / 2 or 1.0
    ramped = {index: covered[index] * (1 - slope * (passed[index] - middle) / half) for index in weights}
    zeta = math.fsum(weights.values()) / math.fsum(ramped.values())
    return made(steps, {index: zeta * value for index, value in ramped.items()})


def given(steps: Sequence[AffineStep], trained: Sequence[int], weights: Sequence[float]) -> Credit:
    """Keep the native sampler, with these weights at the trained steps, in their ascending order.

    Raises CreditError unless all are finite and at least 0, and one is above 0.
    """
    own = native_weights(steps, trained)
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise CreditError(
            f"got the weights {[float(f'{weight:.4g}') for weight in weights]}; expected finite numbers of at least 0, "
            "not all of them 0"
        )
    return made(steps, dict(zip(own, weights, strict=True)))


def _at_root(
    root: Callable[[DiffusionSchedule, int, float], float],
    schedule: DiffusionSchedule,
    trained: Sequence[int],
    w_star: float | None,
    eta: float,
) -> Credit:
    """Use `root`'s sigma for `w_star` at the trained steps, the native one elsewhere, and the native mean as weight."""
    steps = ddim.steps(schedule, eta=eta)
    weights = native_weights(steps, trained)
    least = ddim.least_weight(schedule, tuple(weights))
    wanted = least if w_star is None else w_star
    if not least * (1 - ddim.ROUNDING) <= wanted < math.inf:
        worst = ddim.most_demanding(schedule, tuple(weights))
        raise CreditError(
            f"no sampler gives all trained steps the weight {wanted:.6g}: the smallest feasible w_star is {least:.6g}, "
            f"which step {worst} (timestep {schedule.timesteps[worst]}) needs; set a finite w_star "
            "of at least that, or leave that step untrained"
        )
    sigmas = [root(schedule, i, wanted) if i in weights else step.std for i, step in enumerate(steps)]
    return made(ddim.steps_with_sigma(schedule, sigmas), _all_at_mean(weights))


def native_weights(steps: Sequence[AffineStep], trained: Sequence[int]) -> dict[int, float]:
    """Compute the trained steps' own weights, by index. Raises CreditError for a trained step without noise."""
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
    """Sort the indices. Raises CreditError if there is none, or one is repeated or out of range."""
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


def made(
    steps: Sequence[AffineStep],
    weights: Mapping[int, float],
    *,
    mix: Sequence[float] | None = None,
    scales: Mapping[int, float] | None = None,
    outside: Mapping[int, float] | None = None,
    quadratic: bool = True,
) -> Credit:
    """Make the credit of the steps that `weights` names by index; what is left out is 1 at every step."""
    return Credit(
        steps=tuple(steps),
        weights=tuple(weights.get(index, 0.0) for index in range(len(steps))),
        mix=(1.0,) * len(steps) if mix is None else tuple(mix),
        trained=tuple(weights),
        scales=tuple((scales or {}).get(index, 1.0) for index in range(len(steps))),
        outside=tuple((outside or {}).get(index, 1.0) for index in range(len(steps))),
        quadratic=quadratic,
    )
