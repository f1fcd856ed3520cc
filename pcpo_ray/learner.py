"""The learner: weighted rollouts in, one batch's updates to the weights. One process's."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pcpo_ray import checkpoint, config, objective, weights
from pcpo_ray.errors import TrainingError
from pcpo_ray.policy import Policy
from pcpo_ray.stages import State, Update
from pcpo_ray.trajectory import Trajectory, seed_of

FIRST_RATIO_LIMIT = 1e-6
"""Largest |log-ratio| allowed where the weights are those that sampled: above it, sampling and learning differ."""


class Learner:
    """Trains what is trainable with AdamW. `version` counts the batches learned."""

    def __init__(self, run: config.Run, device: torch.device) -> None:
        from accelerate import Accelerator

        self.run = run
        self.policy = Policy(run, device)
        self.version = 0
        self.parameters = self.policy.denoiser.trainable()
        settings = run.optimizer
        optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
        )
        self.accelerator = Accelerator(mixed_precision=settings.mixed_precision, cpu=device.type == "cpu")
        self.policy.denoiser.module, self.optimizer = self.accelerator.prepare(self.policy.denoiser.module, optimizer)
        # dropout would make the ratio at unchanged weights differ from 1
        self.policy.denoiser.module.eval()

    def update(self, step: int, batch: Sequence[tuple[int, Trajectory, Sequence[float]]]) -> Update:
        """Learn one batch of (version sampled with, trajectory, advantage of each image), giving version `step`.

        Raises TrainingError if `step` is not the next one, if a log-ratio at unchanged weights is not 0, and if a
        gradient is not finite.
        """
        started = time.perf_counter()
        if step != self.version + 1:
            raise TrainingError(f"asked for update {step} at version {self.version}; expected {self.version + 1}")
        diagnostics = objective.StepDiagnostics(len(self.policy.schedule))
        order = np.random.default_rng(seed_of(self.run.seed, "minibatches", step)).permutation(len(batch))
        losses, norms = [], []
        for part, indices in enumerate(np.array_split(order, min(self.run.optimizer.updates, len(batch)))):
            groups = [batch[index] for index in indices]
            fresh = part == 0 and all(version == self.version for version, _, _ in groups)
            loss, norm = self._minibatch(groups, diagnostics, unchanged=fresh)
            losses.append(loss)
            norms.append(norm)
            if part == 0:
                first = float(diagnostics.max_log_ratio.max())
        self.version = step
        return Update(
            version=step,
            loss=float(np.mean(losses)),
            gradient_norm=float(np.mean(norms)),
            first_log_ratio=first,
            diagnostics={"overall": diagnostics.overall(), "per_timestep": self._per_timestep(diagnostics)},
            seconds=time.perf_counter() - started,
        )

    def _minibatch(
        self,
        groups: Sequence[tuple[int, Trajectory, Sequence[float]]],
        diagnostics: objective.StepDiagnostics,
        *,
        unchanged: bool,
    ) -> tuple[float, float]:
        """One optimizer step on the mean loss over all (image, trained step) pairs; returns loss and gradient norm."""
        pairs = sum(len(trajectory) * len(trajectory.steps) for _, trajectory, _ in groups)
        total = torch.zeros((), device=self.policy.device)
        for _, trajectory, advantages in groups:
            total += self._accumulate(trajectory.to(self.policy.device), advantages, pairs, diagnostics, unchanged)
        norm = self.accelerator.clip_grad_norm_(self.parameters.values(), self.run.optimizer.max_gradient_norm)
        if not torch.isfinite(norm):
            raise TrainingError(
                f"the gradient's norm is {float(norm)} in the update from version {self.version}; "
                "lower optimizer.learning_rate, or set optimizer.mixed_precision=no"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(total), float(norm)

    def _accumulate(
        self,
        trajectory: Trajectory,
        advantages: Sequence[float],
        pairs: int,
        diagnostics: objective.StepDiagnostics,
        unchanged: bool,
    ) -> Tensor:
        """Add one group's share of the gradient, at the micro-batch shape that the group was sampled with."""
        credit, settings = self.policy.credit, self.run.objective
        size = self.run.sampling.batch or len(trajectory)
        every = torch.tensor(advantages, dtype=torch.float32, device=self.policy.device)
        summed = torch.zeros((), device=self.policy.device)
        for start in range(0, len(trajectory), size):
            rows = slice(start, start + size)
            advantage = every[rows]
            conditioning = {
                name: row.expand(len(advantage), *row.shape[1:]) for name, row in trajectory.conditioning.items()
            }
            for k, index in enumerate(trajectory.steps.tolist()):
                prediction = self.policy.predict(trajectory.latents[rows, k], index, conditioning)
                terms = (prediction, trajectory.predictions[rows, k], trajectory.noises[rows, k])
                weight, sign = credit.weights[index], credit.steps[index].sign
                log_ratio = objective.log_ratio(*terms, weight=weight, sign=sign)
                if unchanged:
                    self._check_unchanged(index, log_ratio)
                surrogate = objective.log_hinge if settings.kind == "log_hinge" else objective.clipped_ratio
                loss = surrogate(log_ratio, advantage, clip_range=settings.clip_range).sum() / pairs
                self.accelerator.backward(loss)
                summed += loss.detach()
                norm = objective.gradient_norm(
                    *terms,
                    log_ratio,
                    advantage,
                    weight=weight,
                    sign=sign,
                    clip_range=settings.clip_range,
                    objective=settings.kind,
                )
                diagnostics.add(
                    index, log_ratio, advantage, norm, clip_range=settings.clip_range, objective=settings.kind
                )
        return summed

    def _check_unchanged(self, index: int, log_ratio: Tensor) -> None:
        largest = float(log_ratio.detach().abs().max())
        if not largest <= FIRST_RATIO_LIMIT:
            raise TrainingError(
                f"at the weights that sampled (version {self.version}), step {index} has log-ratio {largest:.3g}; "
                f"expected 0 (at most {FIRST_RATIO_LIMIT:g}): sampler and learner do not compute the same prediction. "
                "Use the same dtype, sampling.batch and kernels on both, or model.dtype=float32"
            )

    def _per_timestep(self, diagnostics: objective.StepDiagnostics) -> Mapping[str, Sequence[float | None]]:
        """The trained steps' columns, noisiest first."""
        credit, trained = self.policy.credit, self.policy.credit.trained
        columns: dict[str, Sequence[float | None]] = {
            "timestep": self.policy.schedule.timesteps,
            "native_weight": [step.weight for step in self.policy.native],
            "credit_weight": credit.weights,
            **diagnostics.summary(),
        }
        return {name: [values[index] for index in trained] for name, values in columns.items()}

    def weights(self) -> weights.Weights:
        """A copy of what is trained, to send."""
        return weights.pack(self.version, self.parameters)

    def save(self, folder: Path, state: State) -> None:
        """Write a checkpoint that `restore` continues from exactly, and that diffusers can load."""
        moments = {
            f"{name}/{key}": torch.as_tensor(value)
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        checkpoint.write(
            folder,
            version=self.version,
            state=state,
            parameters=self.parameters,
            optimizer=moments,
            export=self.policy.denoiser.save,
        )

    def restore(self, folder: Path) -> State:
        """Take over parameters, optimizer and version. Raises CheckpointError, before anything is changed."""
        loaded = checkpoint.read(folder)
        checkpoint.load_parameters(folder, loaded.parameters, self.parameters)
        moments: dict[str, dict[str, Tensor]] = {}
        for key, value in loaded.optimizer.items():
            name, _, kind = key.rpartition("/")
            moments.setdefault(name, {})[kind] = value
        self.optimizer.state.clear()
        for name, values in moments.items():
            parameter = self.parameters[name]
            self.optimizer.state[parameter] = {
                # AdamW keeps its step count on the CPU
                key: value if key == "step" else value.to(parameter.device)
                for key, value in values.items()
            }
        self.version = loaded.version
        return loaded.state
