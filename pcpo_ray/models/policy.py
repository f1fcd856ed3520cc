"""The policy: a denoiser, the steps by which it is sampled from, and their credit. Samplers and learners build one."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from pcpo_ray import config, models
from pcpo_ray.algorithm import credit
from pcpo_ray.algorithm.schedule import Schedule
from pcpo_ray.algorithm.transitions import AffineStep
from pcpo_ray.data.parked import parked_network
from pcpo_ray.data.seeds import generator, seed_of
from pcpo_ray.data.tensors import Conditioning
from pcpo_ray.data.types import Size, Task
from pcpo_ray.models import Denoiser, image_sizes, steps

ALL = slice(None)
"""The rows of all images of a group."""


@dataclass(frozen=True, kw_only=True)
class SamplingSetup:
    """A way to sample from a denoiser: settings, schedule, timesteps on the device, and the steps with their credit."""

    sampling: config.Sampling
    schedule: Schedule
    timesteps: Float[Tensor, " T"]
    deterministic: tuple[AffineStep, ...]
    credit: credit.Credit


class Policy:
    """A denoiser and the T steps by which a run samples from it.

    With `workers.park` the VAE is on the device while it decodes only. A network that is `cut` is loaded onto the CPU,
    whatever the device: fsdp2 moves it part by part.
    """

    def __init__(self, run: config.Run, device: torch.device, *, cut: bool = False) -> None:
        self.device = device
        if device.type == "cuda":
            # for the whole process: in bf16 its backward pass gave NaN for a small FLUX (H100, torch 2.11, cuDNN 9.19),
            # and for others at other shapes (pytorch #196678)
            torch.backends.cuda.enable_cudnn_sdp(False)
        loaded_on = torch.device("cpu") if cut else device
        seed = seed_of(run.seed, "adapter")
        self.denoiser: Denoiser = models.load(run.model, run.sampling, seed=seed, device=loaded_on)
        self.denoiser.device = device
        self.vae = parked_network(run.workers.park, self.denoiser.pipeline.vae, device)
        self.run = run
        self.setups: dict[tuple[Size | None, bool], SamplingSetup] = {}
        """Setups by size, and by whether they are an evaluation's own."""
        self._take(self.setup())
        self.native = steps.native_steps(run.sampling, self.schedule)
        self.mixed = run.optimizer.mixed_precision == "bf16"
        self.composed: tuple[tuple[Mapping[str, Tensor], float], ...] = ()

    def credit_of(self, step: int, position: int) -> credit.Credit:
        """Return the credit of the group at `position` in the batch of update `step`: what its subset leaves.

        The weights stay those of the whole, so that credit is proportionate across batches too.
        """
        subset, trained = self.run.sampling.subset, self.credit.trained
        if subset is None:
            return self.credit
        if isinstance(subset, config.ShareOfSteps):
            count = steps.trained_per_group(subset, len(trained))
            drawn = np.random.default_rng(seed_of(self.run.seed, "steps", step, position))
            chosen = drawn.choice(trained, count, replace=False).tolist()
            return self.credit.restricted(chosen)
        first = steps.first_of_window(subset, len(trained), step, position, self.run.seed)
        return self.credit.restricted(trained[first : first + subset.size]).elsewhere(self.deterministic)

    def drawing(self, plan: credit.Credit) -> tuple[AffineStep, ...]:
        """Return the steps that draw images: the credit's, or those of the ODE where pairs are noised images."""
        return self.deterministic if self.renoised else plan.steps

    @property
    def renoised(self) -> bool:
        """True if pairs are noised images instead of the sampler's steps."""
        return isinstance(self.run.sampling.process, config.Renoised)

    def _timesteps(self, schedule: Schedule) -> Float[Tensor, " T"]:
        """Copy all timesteps to the device at once; a copy per step would stall each step."""
        return torch.tensor(schedule.timesteps, dtype=torch.float32, device=self.device)

    def setup(self, size: Size | None = None, *, evaluation: bool = False) -> SamplingSetup:
        """Return the way to sample images of a size (None: the config's), in training or an evaluation of its own."""
        if (size, evaluation) not in self.setups:
            run = self.run
            sampling = image_sizes.sized(run.evaluated if evaluation else run.sampling, size)
            with self.denoiser.sampling_as(sampling):
                schedule = self.denoiser.schedule(sampling.steps)
            plan = steps.evaluation_credit(run, schedule) if evaluation else steps.plan(run.credit, sampling, schedule)
            self.setups[size, evaluation] = SamplingSetup(
                sampling=sampling,
                schedule=schedule,
                timesteps=self._timesteps(schedule),
                deterministic=steps.deterministic_steps(schedule),
                credit=plan,
            )
        return self.setups[size, evaluation]

    def _take(self, setup: SamplingSetup) -> None:
        self.current, self.sampling, self.schedule = setup, setup.sampling, setup.schedule
        self.timesteps, self.deterministic, self.credit = setup.timesteps, setup.deterministic, setup.credit

    @contextlib.contextmanager
    def _following(self, setup: SamplingSetup) -> Iterator[None]:
        before = self.current
        with self.denoiser.sampling_as(setup.sampling):
            self._take(setup)
            try:
                yield
            finally:
                self._take(before)

    def sized(self, size: Size | None) -> contextlib.AbstractContextManager[None]:
        """Predict, draw noise and decode for images of a prompt's size while inside; None changes nothing."""
        return contextlib.nullcontext() if size is None else self._following(self.setup(size))

    def evaluating(self, size: Size | None = None) -> contextlib.AbstractContextManager[None]:
        """Encode, predict and draw noise as evaluations do (config.Evaluation.sampling) while inside."""
        if self.run.evaluation.sampling is None:
            return self.sized(size)
        return self._following(self.setup(size, evaluation=True))

    @property
    def computes_in(self) -> torch.dtype:
        """The dtype of the network's own output."""
        dtype: torch.dtype = torch.bfloat16 if self.mixed else getattr(torch, self.run.model.dtype)
        return dtype

    @property
    def computed_in(self) -> str:
        """The name of `computes_in`."""
        return str(self.computes_in).removeprefix("torch.")

    def decode(self, latents: Float[Tensor, "B ..."]) -> UInt8[np.ndarray, "B H W 3"]:
        """Decode latents to images."""
        with self.vae.awake():
            return self.denoiser.decode(latents)

    def initial_noise(self, task: Task, rows: slice = ALL) -> Float[Tensor, "N ..."]:
        """Draw the initial latents of a task's images (those at `rows`), on the CPU in float32.

        Each comes from its sample's own seed, or with sampling.shared_noise from the group's.
        """
        samples = self._samples(task)[rows]
        if self.sampling.shared_noise:
            samples = [(*own[:-1], "shared") for own in samples]
        return torch.stack([self.denoiser.initial_noise(generator(*own, "initial")) for own in samples])

    def step_noise(self, task: Task, rows: slice = ALL) -> Float[Tensor, "N T ..."]:
        """Draw the noise of each step of a task's images (those at `rows`), on the CPU in float32.

        Each sample has its own seed. If no step draws noise, the zeros take no memory.
        """
        samples = self._samples(task)[rows]
        shape = (len(samples), len(self.schedule), *self.denoiser.latent_shape)
        taken = self.credit.steps if task.purpose == "train" else self.drawing(self.credit)
        if all(step.std == 0 for step in taken):
            return torch.zeros(1, device=self.device).expand(shape)
        drawn = torch.empty(shape)
        for row, own in zip(drawn, samples, strict=True):
            row.normal_(generator=generator(*own, "steps"))
        return drawn

    def _samples(self, task: Task) -> list[tuple[int | str, ...]]:
        """Return the parts that each sample's seeds are made of."""
        return [
            (self.run.seed, task.purpose, task.step, position, prompt.index, sample)
            for position, prompt in enumerate(task.prompts, task.position)
            for sample in range(task.images)
        ]

    def compose(self, adapters: Sequence[tuple[Mapping[str, Tensor], float]]) -> None:
        """Predict base + sum of strength (adapter - base) from now on, over (an adapter's parameters, its strength)."""
        self.composed = tuple(adapters)

    def predict(
        self, latents: Float[Tensor, "B ..."], step: int | Int[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B ..."]:
        """Predict at index `step`, one for all rows or one each. The bits are reproducible at the same B."""
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
