"""What sampler and learner must build alike: the denoiser, the steps of its schedule, and the credit they carry."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import assert_never

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pcpo_ray import config, models
from pcpo_ray.algorithm import credit
from pcpo_ray.algorithm.schedule import DiffusionSchedule, FlowSchedule, Schedule
from pcpo_ray.algorithm.transitions import AffineStep, ddim, flow_cps, flow_sde
from pcpo_ray.data.seeds import generator, seed_of
from pcpo_ray.data.tensors import Conditioning
from pcpo_ray.data.types import Task
from pcpo_ray.errors import CreditError, ScheduleError
from pcpo_ray.models import Denoiser

ALL = slice(None)
"""All images of a group."""


@dataclass(frozen=True, kw_only=True)
class SamplingSetup:
    """One way to sample from a denoiser: its settings, the schedule, its timesteps on the device, and the steps."""

    sampling: config.Sampling
    schedule: Schedule
    timesteps: Float[Tensor, " T"]
    credit: credit.Credit


class Policy:
    """A denoiser and the T steps by which a run samples from it."""

    def __init__(self, run: config.Run, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            # for the whole process: in bf16 its backward pass gave NaN for a small FLUX (H100, torch 2.11, cuDNN 9.19),
            # and for others at other shapes (pytorch #196678)
            torch.backends.cuda.enable_cudnn_sdp(False)
        self.denoiser: Denoiser = models.load(run.model, run.sampling, seed=seed_of(run.seed, "adapter"), device=device)
        self.schedule = self.denoiser.schedule(run.sampling.steps)
        self.run = run
        self.sampling = run.sampling
        self.timesteps = self._timesteps(self.schedule)
        self.native = native_steps(run.sampling, self.schedule)
        self.deterministic = deterministic_steps(self.schedule)
        self.credit = plan(run.credit, run.sampling, self.schedule)
        self.mixed = run.optimizer.mixed_precision == "bf16"
        self.composed: tuple[tuple[Mapping[str, Tensor], float], ...] = ()

    def credit_of(self, step: int, position: int) -> credit.Credit:
        """Of the group at `position` of the batch that update `step` learns: `credit`, or the part its subset leaves.

        The weights stay those of the whole, so that credit is proportionate from batch to batch too.
        """
        subset, trained = self.run.sampling.subset, self.credit.trained
        if subset is None:
            return self.credit
        if isinstance(subset, config.ShareOfSteps):
            count = trained_per_group(subset, len(trained))
            drawn = np.random.default_rng(seed_of(self.run.seed, "steps", step, position))
            chosen = drawn.choice(trained, count, replace=False).tolist()
            return self.credit.restricted(chosen)
        first = first_of_window(subset, len(trained), step, self.run.seed)
        return self.credit.restricted(trained[first : first + subset.size]).elsewhere(self.deterministic)

    def _timesteps(self, schedule: Schedule) -> Float[Tensor, " T"]:
        """All of them at once: a copy to the device at each step would be waited for."""
        return torch.tensor(schedule.timesteps, dtype=torch.float32, device=self.device)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, encode, predict and draw noise as evaluations sample (config.Evaluation.sampling)."""
        if self.run.evaluation.sampling is None:
            yield
            return
        training = (self.sampling, self.schedule, self.timesteps, self.credit)
        way = self._evaluation
        with self.denoiser.sampling_as(way.sampling):
            self.sampling, self.schedule, self.timesteps, self.credit = (
                way.sampling,
                way.schedule,
                way.timesteps,
                way.credit,
            )
            try:
                yield
            finally:
                self.sampling, self.schedule, self.timesteps, self.credit = training

    @cached_property
    def _evaluation(self) -> SamplingSetup:
        sampling = self.run.evaluated
        with self.denoiser.sampling_as(sampling):
            schedule = self.denoiser.schedule(sampling.steps)
        return SamplingSetup(
            sampling=sampling,
            schedule=schedule,
            timesteps=self._timesteps(schedule),
            credit=evaluation_credit(self.run, schedule),
        )

    @property
    def computes_in(self) -> torch.dtype:
        """The dtype of what the network itself gives."""
        dtype: torch.dtype = torch.bfloat16 if self.mixed else getattr(torch, self.run.model.dtype)
        return dtype

    def initial_noise(self, task: Task, rows: slice = ALL) -> Float[Tensor, "N ..."]:
        """The initial latents of a task's images (those at `rows`), each from its sample's own seed, on the CPU in
        float32.

        With sampling.shared_noise they come from the group's seed.
        """
        samples = self._samples(task)[rows]
        if self.sampling.shared_noise:
            samples = [(*own[:-1], "shared") for own in samples]
        return torch.stack([self.denoiser.initial_noise(generator(*own, "initial")) for own in samples])

    def step_noise(self, task: Task, rows: slice = ALL) -> Float[Tensor, "N T ..."]:
        """The noise of each step of a task's images (those at `rows`), from each sample's own seed, on the CPU in
        float32.

        Zeros that take no memory where no step has any.
        """
        samples = self._samples(task)[rows]
        shape = (len(samples), len(self.schedule), *self.denoiser.latent_shape)
        if all(step.std == 0 for step in self.credit.steps):
            return torch.zeros(1, device=self.device).expand(shape)
        drawn = torch.empty(shape)
        for row, own in zip(drawn, samples, strict=True):
            row.normal_(generator=generator(*own, "steps"))
        return drawn

    def _samples(self, task: Task) -> list[tuple[int | str, ...]]:
        """What each sample's seeds are made of."""
        return [
            (self.run.seed, task.purpose, task.step, position, prompt.index, sample)
            for position, prompt in enumerate(task.prompts, task.position)
            for sample in range(task.images)
        ]

    def compose(self, adapters: Sequence[tuple[Mapping[str, Tensor], float]]) -> None:
        """From now on predict base + sum of strength (adapter - base) over (an adapter's parameters, its strength)."""
        self.composed = tuple(adapters)

    def predict(
        self, latents: Float[Tensor, "B ..."], step: int | Int[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B ..."]:
        """The network's prediction at step index `step`, of all or of each: the same bits where asked at the same B."""
        if not self.composed:
            return self._predict(latents, step, conditioning)
        with self.denoiser.without_adapter():
            base = self._predict(latents, step, conditioning)
        total, parameters = base, self.denoiser.trainable()
        for adapter, strength in self.composed:
            for name, value in adapter.items():
                parameters[name].data.copy_(value)
            total = total + strength * (self._predict(latents, step, conditioning) - base)
        return total

    def _predict(
        self, latents: Float[Tensor, "B ..."], step: int | Int[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B ..."]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            return self.denoiser.predict(latents, self.timesteps[step].expand(len(latents)), conditioning)


def native_steps(sampling: config.Sampling, schedule: Schedule) -> tuple[AffineStep, ...]:
    """The steps of the config's process; a flow's last one is the ODE's, so that images carry no noise of its own."""
    process = sampling.process
    if isinstance(schedule, DiffusionSchedule):
        assert isinstance(process, config.Ddim)  # config.Run has checked it
        return ddim.steps(schedule, eta=process.eta)
    match process:
        case config.CoefficientsPreserving(eta=eta):
            return flow_cps.steps(schedule, flow_cps.renewed_noise(schedule, eta))
        case config.ProportionateNoise(zeta=zeta):
            return flow_cps.steps(schedule, flow_cps.proportionate_noise(schedule, zeta))
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
    """The schedule's steps without noise."""
    if isinstance(schedule, DiffusionSchedule):
        return ddim.steps(schedule, eta=0.0)
    return flow_sde.steps(schedule, (0.0,) * len(schedule))


def evaluation_credit(run: config.Run, schedule: Schedule) -> credit.Credit:
    """The steps of an evaluation that samples in a way of its own: the process's or the ODE's, none of them trained.

    They step with the network's own prediction. Raises ScheduleError.
    """
    assert run.evaluation.sampling is not None
    deterministic = run.evaluation.sampling.deterministic
    with _named(f"evaluation.sampling.steps={len(schedule)}, sampling.process.kind={run.sampling.process.kind}"):
        steps = deterministic_steps(schedule) if deterministic else native_steps(run.evaluated, schedule)
    return credit.Credit(steps=steps, weights=(0.0,) * len(steps), mix=(1.0,) * len(steps), trained=())


def trained_per_group(subset: config.ShareOfSteps | config.Window | None, trained: int) -> int:
    """How many of so many trained steps one group is trained on."""
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
    """How many steps of each trajectory are trained on, without loading a model. Raises CreditError, ScheduleError."""
    schedule = models.schedule_of(models.folder_of(run.model, weights=False), run.model, run.sampling)
    return trained_per_group(run.sampling.subset, len(plan(run.credit, run.sampling, schedule).trained))


def first_of_window(window: config.Window, trained: int, step: int, seed: int) -> int:
    """Where, among so many trained steps, the window of update `step` (from 1) begins."""
    places = trained - window.size + 1
    if window.order == "random":
        return int(np.random.default_rng(seed_of(seed, "window", step)).integers(places))
    # ceil: the last place is reached even where the stride does not divide the way to it
    stops = 1 + -(-(places - 1) // window.stride)
    return min((step - 1) // window.every % stops * window.stride, places - 1)


def plan(kind: config.Credit, sampling: config.Sampling, schedule: Schedule) -> credit.Credit:
    """The steps to sample with and the weights they carry. Raises CreditError and ScheduleError."""
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
    """Say which keys it was, where what is raised inside knows numbers only."""
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
        case config.Reweight():
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
        case _:
            assert_never(kind)
