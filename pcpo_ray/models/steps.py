"""Sampling steps and their credit, from the config: the one place where config kinds meet the paper's functions."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import assert_never

import numpy as np

from pcpo_ray import config, models
from pcpo_ray.algorithm import credit, weighting
from pcpo_ray.algorithm.schedule import DiffusionSchedule, FlowSchedule, Schedule
from pcpo_ray.algorithm.transitions import AffineStep, ddim, flow_cps, flow_sde, renoised
from pcpo_ray.data.seeds import seed_of
from pcpo_ray.errors import CreditError, ScheduleError
from pcpo_ray.process.own import PlugPoint

CREDIT = PlugPoint(
    noun="credit",
    method="weights",
    arguments=("schedule", "steps", "trained"),
    returns="one finite weight for each trained step, none below 0 and not all 0",
    error=CreditError,
)
"""Credit of the user's own: the schedule, its T affine steps and the trained indices in, K weights out."""


def native_steps(sampling: config.Sampling, schedule: Schedule) -> tuple[AffineStep, ...]:
    """Build the steps of the config's process, whose log-probabilities are trained on.

    An SDE's last step is the ODE's, so that images carry no fresh noise.
    """
    process = sampling.process
    if isinstance(schedule, DiffusionSchedule):
        assert isinstance(process, config.Ddim)  # config.Run has checked it
        return ddim.steps(schedule, eta=process.eta)
    match process:
        case config.CoefficientsPreserving(eta=eta):
            return flow_cps.steps(schedule, flow_cps.renewed_noise(schedule, eta))
        case config.ProportionateNoise(zeta=zeta):
            return flow_cps.steps(schedule, flow_cps.proportionate_noise(schedule, zeta))
        case config.Renoised(omega=omega):
            return renoised.steps(schedule, omega)
        case config.ConstantNoise(eta=eta):
            levels = flow_sde.constant_noise(schedule, eta)
        case config.RatioNoise(a=a):
            levels = flow_sde.ratio_noise(schedule, a)
        case config.Ddim():
            raise AssertionError("config.Run has checked it")
        case _:
            assert_never(process)
    return flow_sde.steps(schedule, (*levels[:-1], 0.0))


def deterministic_steps(schedule: Schedule) -> tuple[AffineStep, ...]:
    """Build the schedule's steps without noise."""
    if isinstance(schedule, DiffusionSchedule):
        return ddim.steps(schedule, eta=0.0)
    return flow_sde.steps(schedule, (0.0,) * len(schedule))


def evaluation_credit(run: config.Run, schedule: Schedule) -> credit.Credit:
    """Build the steps of an evaluation with settings of its own: the process's or the ODE's, none of them trained.

    They step with the network's own prediction. Raises ScheduleError.
    """
    assert run.evaluation.sampling is not None
    deterministic = run.evaluation.sampling.deterministic or isinstance(run.sampling.process, config.Renoised)
    with _named(f"evaluation.sampling.steps={len(schedule)}, sampling.process.kind={run.sampling.process.kind}"):
        steps = deterministic_steps(schedule) if deterministic else native_steps(run.evaluated, schedule)
    return credit.made(steps, {})


def trained_per_group(subset: config.ShareOfSteps | config.Window | None, trained: int) -> int:
    """Return how many of the `trained` steps one group is trained on."""
    match subset:
        case config.ShareOfSteps(share=share):
            return max(1, round(share * trained))
        case config.Window(size=size):
            return size
        case None:
            return trained
        case _:
            assert_never(subset)


def trained_steps(run: config.Run) -> int:
    """Count the trained steps of each trajectory, without loading a model. Raises CreditError and ScheduleError."""
    schedule = models.schedule_of(models.folder_of(run.model, weights=False), run.model, run.sampling)
    return trained_per_group(run.sampling.subset, len(plan(run.credit, run.sampling, schedule).trained))


def first_of_window(window: config.Window, trained: int, step: int, position: int, seed: int) -> int:
    """Return where the window of update `step` (from 1) begins among the `trained` steps.

    `position` is the group's place in the batch, for a window that each prompt has of its own.
    """
    places = trained - window.size + 1
    if window.order != "sliding":
        drawn_for = (step,) if window.order == "random" else (step, position)
        return int(np.random.default_rng(seed_of(seed, "window", *drawn_for)).integers(places))
    # ceil: the last place is reached even if the stride does not divide the distance to it
    stops = 1 + -(-(places - 1) // window.stride)
    return min((step - 1) // window.every % stops * window.stride, places - 1)


def plan(kind: config.Credit, sampling: config.Sampling, schedule: Schedule) -> credit.Credit:
    """Plan the steps to sample with and the weights they carry. Raises CreditError and ScheduleError."""
    of_steps = ", ".join(
        [
            f"sampling.steps={sampling.steps}",
            *([] if sampling.trained_steps is None else [f"sampling.trained_steps={sampling.trained_steps}"]),
            f"sampling.process.kind={sampling.process.kind}",
        ]
    )
    with _named(of_steps):
        steps = native_steps(sampling, schedule)
    noisy = [index for index, step in enumerate(steps) if step.std > 0]
    if not noisy:
        raise CreditError(
            f"sampling.steps is {len(steps)}, and the last step draws no noise, which leaves none to train; "
            "use at least 2"
        )
    trained = noisy if sampling.trained_steps is None else range(sampling.trained_steps)
    if isinstance(sampling.subset, config.Window) and sampling.subset.size > len(trained):
        raise CreditError(
            f"sampling.subset.size is {sampling.subset.size}, of {len(trained)} trained steps; use at most those"
        )
    with _named(f"credit.kind={kind.kind}, {of_steps}"):
        return _carrying(kind, sampling, schedule, steps, trained)


@contextlib.contextmanager
def _named(keys: str) -> Iterator[None]:
    """Put the config keys before errors raised inside, which know numbers only."""
    try:
        yield
    except (CreditError, ScheduleError) as error:
        raise type(error)(f"{keys}: {error}") from None


def _carrying(
    kind: config.Credit,
    sampling: config.Sampling,
    schedule: Schedule,
    steps: Sequence[AffineStep],
    trained: Sequence[int],
) -> credit.Credit:
    match kind:
        case config.Native():
            return credit.native(steps, trained)
        case config.Reweight() | config.Entropy() | config.Attention():  # the mean that measured weights keep
            return credit.reweight(steps, trained)
        case config.Interpolate(w_star=w_star):
            return credit.interpolate(steps, trained, w_star=w_star)
        case config.Tilted(slope=slope):
            return credit.tilted(schedule, steps, trained, slope=slope)
        case config.Proportionate():
            assert isinstance(schedule, FlowSchedule)  # config.Run has checked it, and the process of the others
            return credit.proportionate_flow(schedule, steps, trained)
        case config.Released(w_star=w_star):
            assert isinstance(schedule, DiffusionSchedule) and isinstance(sampling.process, config.Ddim)
            return credit.released(schedule, trained, w_star=w_star, eta=sampling.process.eta)
        case config.Variance(w_star=w_star):
            assert isinstance(schedule, DiffusionSchedule) and isinstance(sampling.process, config.Ddim)
            return credit.variance(schedule, trained, w_star=w_star, eta=sampling.process.eta)
        case config.GrpoGuard():
            assert isinstance(schedule, FlowSchedule)
            return weighting.grpo_guard(schedule, steps, trained)
        case config.FlashGrpo():
            return weighting.flash_grpo(steps, trained)
        case config.FairClip():
            return weighting.fair_clip(steps, trained)
        case config.FairClip2():
            assert isinstance(schedule, FlowSchedule)
            return weighting.fair_clip2(schedule, steps, trained)
        case config.CustomCredit():
            return credit.given(steps, trained, _own_weights(kind, schedule, steps, trained))
        case _:
            assert_never(kind)


def _own_weights(
    kind: config.CustomCredit, schedule: Schedule, steps: Sequence[AffineStep], trained: Sequence[int]
) -> list[float]:
    """Ask credit of the user's own for the weights of the trained steps. Raises CreditError."""
    made = CREDIT.make(kind.kind, kind.options)
    returned = CREDIT.call(made, kind.kind, schedule, tuple(steps), tuple(trained))
    weights: list[float] = CREDIT.numbers(kind.kind, returned, (len(trained),)).tolist()
    return weights
