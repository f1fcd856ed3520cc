"""The sampler: a task in, a group's images and trajectory out. Pure in (run seed, task, weights)."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from jaxtyping import UInt8
from numpy import ndarray
from torch import Tensor

from pcpo_ray import config
from pcpo_ray.algorithm.credit import Credit
from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.algorithm.transitions import renoised
from pcpo_ray.data import prompts, tasks, weights
from pcpo_ray.data.tensors import Conditioning, in_one_piece, of_rows, sent_to
from pcpo_ray.data.types import Task, Trajectory
from pcpo_ray.errors import TrainingError
from pcpo_ray.models import kernels
from pcpo_ray.models.policy import Policy
from pcpo_ray.workers import canary, precision, sampling_batch
from pcpo_ray.workers.measuring import Measuring, measuring

AHEAD = 256
"""The approximate number of texts encoded at once if workers share a text cache."""


class Sampler:
    """One process's sampler. It loads weights only between tasks. `policy` is one that is there; None: load it."""

    def __init__(self, run: config.Run, device: torch.device, policy: Policy | None = None) -> None:
        self.run = run
        self.policy = policy or _own_policy(run, device)
        self.batch: int | None = None
        """The number of images at once that was chosen (sampling.batch=auto); None until then."""
        self.loaded: str | None = None
        """The checksum of the weights in the network."""
        self.prepared: set[int] = set()
        self.watch: Callable[[int, int], None] = lambda done, steps: None
        """A function that is told how many denoising steps of a task are done, of how many."""

    def holds(self, checksum: str) -> bool:
        """Tell whether the weights of this checksum are in the network; the others have to be loaded."""
        return self.loaded == checksum

    def load(self, received: weights.WeightSnapshot) -> str:
        """Load a version and return the checksum of the parameters as they are now.

        Raises WeightsError if they differ from those sent, or the network's prediction from the learner's.
        """
        manifest, self.loaded = received.manifest, None  # a partial load is no version at all
        checksum = weights.apply(received, self.policy.denoiser.trainable())
        predicted = canary.prediction(self.policy)
        remedy = precision.remedy(self.run, manifest.version)
        canary.check(predicted, manifest.canary, dtype=self.policy.computed_in, version=manifest.version, remedy=remedy)
        self.loaded = checksum
        return checksum

    def prepare(self, task: Task) -> None:
        """Encode ahead the texts of the task's step and of later ones, or those of an evaluation.

        This happens only with a shared cache (model.text_cache); without one, each worker would encode others' texts.
        """
        if self.run.model.text_cache is None:
            return
        steps = -(-AHEAD // self.run.rollout.prompts)
        block = 0 if task.purpose == "evaluate" else 1 + (task.step - 1) // steps
        if block in self.prepared:
            return
        self.prepared.add(block)
        training, evaluated = prompts.sources(self.run)
        if block == 0:
            asked = tasks.evaluation_tasks(self.run, evaluated, 0) + tasks.watched_training_tasks(self.run, training, 0)
            drawn = [prompt for one in asked for prompt in one.prompts]
        else:
            last = min(block * steps, self.run.steps)
            drawn = [
                prompt
                for step in range((block - 1) * steps + 1, last + 1)
                for prompt in training.batch(step, self.run.rollout.prompts)
            ]
        self.policy.denoiser.prepare([prompt.text for prompt in drawn])

    @torch.no_grad()
    def sample(self, task: Task) -> tuple[Trajectory | None, UInt8[ndarray, "N H W 3"]]:
        """Sample the task's N images, and the trajectory of the trained steps unless the task is an evaluation."""
        size = task.prompt.size
        with self.policy.evaluating(size) if task.purpose == "evaluate" else self.policy.sized(size):
            return self._sample(task)

    def _sample(self, task: Task) -> tuple[Trajectory | None, UInt8[ndarray, "N H W 3"]]:
        denoiser = self.policy.denoiser
        training = task.purpose == "train"
        # evaluations always sample in the same way, whatever subset of the steps is trained
        credit = self.policy.credit_of(task.step, task.position) if training else self.policy.credit
        conditioning = denoiser.encode([prompt.text for prompt in task.prompts])
        dtype = getattr(torch, self.run.sampling.storage)
        latents = sent_to(self.policy.initial_noise(task).to(dtype), self.policy.device)
        self._choose_batch(latents, conditioning)
        texts = self._texts(conditioning, len(task.texts))
        measure = measuring(self.policy) if training else None
        noises = None
        kept: dict[str, list[Tensor]] = {"latents": [], "predictions": [], "noises": [], "log_probs": []}
        drawing = self.policy.drawing(credit)
        for index, step in enumerate(drawing):
            self.watch(index, len(drawing))
            predicted = self._predict(latents, index, texts, credit.mix[index], measure)
            prediction, drawn_with = (one.to(dtype) for one in predicted)
            if measure is not None:
                measure.begun(index, latents, prediction)
            if noises is None:  # all steps at once, while a GPU computes the first prediction
                noises = sent_to(self.policy.step_noise(task).to(dtype), self.policy.device)
            noise = noises[:, index]
            before = latents
            latents, log_prob = step.draw(before, drawn_with, noise)
            if training and index in credit.trained and not self.policy.renoised:
                for name, value in zip(kept, (before, prediction, noise, log_prob), strict=True):
                    kept[name].append(value)
        self._check_finite(latents, task)
        images = self.policy.decode(latents.float())
        if not training:
            return None, images
        if self.policy.renoised:
            assert noises is not None  # a schedule has a step
            for index in credit.trained:
                pair = self._renoised(latents, noises[:, index], index, credit, texts)
                for name, value in zip(kept, pair, strict=True):
                    kept[name].append(value)
        stacked = {name: torch.stack(values, dim=1) for name, values in kept.items()}
        weights = None if measure is None else measure.weights(credit, latents)
        steps = torch.tensor(credit.trained)
        trajectory = Trajectory(
            steps=steps,
            conditioning=conditioning,
            size=task.prompt.size,
            weights=weights,
            clean=latents if self.policy.renoised else None,
            **stacked,
        )
        return trajectory, images

    def _renoised(
        self, clean: Tensor, noise: Tensor, index: int, credit: Credit, texts: Sequence[tuple[slice, Conditioning]]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return latents, prediction, residual and log-probability of the images noised to the time of step `index`."""
        step, schedule = credit.steps[index], self.policy.schedule
        assert isinstance(schedule, FlowSchedule)  # config.Run has checked it
        latents = renoised.noised(schedule, index, clean, noise)
        prediction = self._predict(latents, index, texts, 1.0, None)[0].to(clean.dtype)
        residual = renoised.residual(step, prediction, clean, noise)
        return latents, prediction, residual, step.draw(latents, prediction, residual)[1]

    def _check_finite(self, latents: Tensor, task: Task) -> None:
        """Raise TrainingError unless the final latents are finite.

        A non-finite prediction stays in the latents to the end, so one check suffices and waits for a GPU once.
        """
        if not latents.isfinite().all():
            raise TrainingError(
                f"the predictions for {task.prompt.text!r} (step {task.step}, version {task.version}) are not finite; "
                f"{precision.remedy(self.run, task.version)}"
            )

    def together(self, count: int) -> int:
        """Return how many of so many images pass through the network at once."""
        return min(self.batch or count, self.run.sampling.together(count))

    def _choose_batch(self, latents: Tensor, conditioning: Conditioning) -> None:
        """Choose how many images pass through the network at once, in the first task, if the config wants that."""
        if self.run.sampling.batch != "auto" or self.batch is not None:
            return
        count = len(latents)

        def predict(size: int) -> Tensor:
            rows = slice(0, size)
            return self.policy.predict(latents[rows], 0, in_one_piece(of_rows(conditioning, rows, count)))

        self.batch = sampling_batch.choose(count, predict, self.policy.device)

    def _texts(self, conditioning: Conditioning, count: int) -> list[tuple[slice, Conditioning]]:
        """Split into the images that pass through the network together, with a text for each."""
        size = self.together(count)
        parts = [slice(start, min(start + size, count)) for start in range(0, count, size)]
        return [(rows, in_one_piece(of_rows(conditioning, rows, count))) for rows in parts]

    def _predict(
        self,
        latents: Tensor,
        index: int,
        texts: Sequence[tuple[slice, Conditioning]],
        mix: float,
        measure: Measuring | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the network's own prediction and the one to step with; they differ under credit `interpolate`."""
        own, mixed = [], []
        for rows, conditioning in texts:
            with nullcontext() if measure is None else measure.reading():
                prediction = self.policy.predict(latents[rows], index, conditioning)
            if measure is not None:
                measure.called(len(prediction))
            own.append(prediction)
            if mix != 1.0:
                with self.policy.denoiser.without_adapter():
                    reference = self.policy.predict(latents[rows], index, conditioning)
                prediction = reference + mix * (prediction - reference)
            mixed.append(prediction)
        return torch.cat(own), torch.cat(mixed)


def _own_policy(run: config.Run, device: torch.device) -> Policy:
    """Load a network for sampling alone, compiled if the config wants that. Raises ModelError."""
    if not run.sampling.compile:
        return Policy(run, device)
    kernels.check_compiler("sampling.compile", device)
    policy = Policy(run, device)
    kernels.compile_blocks(policy.denoiser.module)
    return policy
