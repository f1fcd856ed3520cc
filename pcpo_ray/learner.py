"""The learner: weighted rollouts in, one batch's updates to the weights. One rank's process."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray import canary, checkpoint, config, minibatches, objective, ranks, weights
from pcpo_ray.average import Average
from pcpo_ray.credit import Credit
from pcpo_ray.errors import TrainingError
from pcpo_ray.policy import Policy
from pcpo_ray.ranks import Rank
from pcpo_ray.stages import State, Update
from pcpo_ray.trajectory import Conditioning, Trajectory

Group = tuple[int, Trajectory | None, Sequence[float]]
"""The version that sampled it, its trajectory (None where another rank learns it), its images' advantages."""

FIRST_RATIO_LIMIT = 1e-6
"""Largest |log-ratio| allowed where the weights are those that sampled: above it, sampling and learning differ."""

ALONE = Rank()


class Learner:
    """Trains what is trainable with AdamW, in lock-step with the other ranks. `version` counts the batches learned.

    `clip_ranges` and `factors` are each step's clip range and what its loss is multiplied by.
    """

    def __init__(self, run: config.Run, device: torch.device, rank: Rank = ALONE) -> None:
        from accelerate import Accelerator

        self.run = run
        self.rank = rank
        self.policy = Policy(run, device)
        if rank.sharded:
            ranks.shard(self.policy.denoiser.module, rank)
        self.version = 0
        plan, settings = self.policy.credit, run.objective
        self.clip_ranges = scaled(plan, settings.clip_range, plan.weights if settings.clip_scale == "weight" else None)
        noises = [step.std for step in plan.steps]
        self.factors = scaled(plan, 1.0, noises if settings.step_loss == "noise" else None)
        self.parameters = self.policy.denoiser.trainable()
        optimization = run.optimizer
        optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=optimization.learning_rate,
            betas=(optimization.beta1, optimization.beta2),
            eps=optimization.epsilon,
            weight_decay=optimization.weight_decay,
        )
        self.accelerator = Accelerator(mixed_precision=optimization.mixed_precision, cpu=device.type == "cpu")
        self.policy.denoiser.module, self.optimizer = self.accelerator.prepare(self.policy.denoiser.module, optimizer)
        self.average = None if optimization.average is None else Average(self.parameters.values(), optimization.average)
        # dropout would make the ratio at unchanged weights differ from 1
        self.policy.denoiser.module.eval()

    def update(self, step: int, batch: Sequence[Group]) -> Update:
        """Learn one batch, giving version `step`; every rank gets the whole list, and the same answer.

        Raises TrainingError if `step` is not the next one, if a log-ratio at unchanged weights is not 0, and if a
        gradient is not finite.
        """
        started = time.perf_counter()
        if step != self.version + 1:
            raise TrainingError(f"asked for update {step} at version {self.version}; expected {self.version + 1}")
        diagnostics = objective.StepDiagnostics(len(self.policy.schedule))
        parts = minibatches.of(self.run.optimizer, len(batch), seed=self.run.seed, step=step)
        shares = [minibatches.share(part, self.rank.index, self.rank.count) for part in parts]
        # in the first optimizer step the log-ratio itself is the lag: nothing has moved since
        lags = self._lags(batch, sorted({n for own in shares for n in own})) if len(parts) > 1 else {}
        taken = []
        for part, (indices, own) in enumerate(zip(parts, shares, strict=True)):
            fresh = part == 0 and all(batch[index][0] == self.version for index in indices)
            taken.append(self._minibatch({n: batch[n] for n in own}, lags, diagnostics, unchanged=fresh))
            if part == 0:
                first = diagnostics.max_log_ratio.max()
        self.version = step
        self._merge(diagnostics)
        losses, divergences, norms = zip(*taken, strict=True)
        return Update(
            version=step,
            loss=float(np.mean(losses)),
            kl=float(np.mean(divergences)) if self.run.objective.kl else None,
            gradient_norm=float(np.mean(norms)),
            first_log_ratio=float(self.rank.largest(first.to(self.policy.device))),
            diagnostics={"overall": diagnostics.overall(), "per_timestep": self._per_timestep(diagnostics)},
            seconds=time.perf_counter() - started,
        )

    def _merge(self, diagnostics: objective.StepDiagnostics) -> None:
        """Count what every rank has counted."""
        for name, reduce in (("sums", self.rank.total), ("max_log_ratio", self.rank.largest)):
            merged = reduce(getattr(diagnostics, name).to(self.policy.device))
            setattr(diagnostics, name, merged.cpu())

    def _lags(self, batch: Sequence[Group], own: Sequence[int]) -> dict[int, Float[Tensor, "N K"]]:
        """Of each of this rank's groups: the log-ratios of the weights as they are now to those that sampled it."""
        if self.run.objective.correction is None:
            return {}
        found: dict[int, Tensor] = {}
        passes = 0
        with torch.no_grad():
            for place in own:
                trajectory = batch[place][1]
                assert trajectory is not None
                opened = trajectory.to(self.policy.device)
                found[place] = torch.zeros(opened.log_probs.shape, device=self.policy.device)
                for rows, conditioning in self._micro_batches(opened):
                    for k in range(len(opened.steps)):
                        prediction = self._predict(opened, rows, k, conditioning)
                        found[place][rows, k] = self._log_ratio(prediction, opened, rows, k)
                        passes += 1
            if self.rank.sharded:
                for _ in range(int(self.rank.largest(torch.tensor(passes, device=self.policy.device))) - passes):
                    canary.output(self.policy)
        return found

    def _predict(self, trajectory: Trajectory, rows: slice, k: int, conditioning: Conditioning) -> Tensor:
        """The present prediction at the k-th trained step, rounded as the sampler's was."""
        prediction = self.policy.predict(trajectory.latents[rows, k], int(trajectory.steps[k]), conditioning)
        return objective.rounded(prediction, trajectory.predictions.dtype)

    def _log_ratio(self, prediction: Tensor, trajectory: Trajectory, rows: slice, k: int) -> Float[Tensor, " B"]:
        index, plan = int(trajectory.steps[k]), self.policy.credit
        terms = (prediction, trajectory.predictions[rows, k], trajectory.noises[rows, k])
        if self.run.objective.log_ratio == "replay":
            step, latents = plan.steps[index], trajectory.latents[rows, k]
            next_latents, _ = step.draw(latents, *terms[1:])  # the bits that the sampler went on with
            return step.log_prob(next_latents, latents, prediction) - trajectory.log_probs[rows, k]
        return objective.log_ratio(*terms, weight=plan.weights[index], sign=plan.steps[index].sign)

    def _micro_batches(self, trajectory: Trajectory) -> Iterator[tuple[slice, Conditioning]]:
        """Rows that go through the network at once, as they did when they were sampled, with their conditioning."""
        size = self.run.sampling.batch or len(trajectory)
        for start in range(0, len(trajectory), size):
            rows = slice(start, min(start + size, len(trajectory)))
            count = rows.stop - start
            yield rows, {name: row.expand(count, *row.shape[1:]) for name, row in trajectory.conditioning.items()}

    def _minibatch(
        self,
        groups: Mapping[int, Group],
        lags: Mapping[int, Float[Tensor, "N K"]],
        diagnostics: objective.StepDiagnostics,
        *,
        unchanged: bool,
    ) -> tuple[float, float, float]:
        """One optimizer step on the mean loss over all ranks' (image, trained step) pairs, of which `groups` are own.

        Returns the loss, the mean KL divergence from the reference, which it contains, and the gradient's norm.
        """
        device = self.policy.device
        opened = {place: trajectory for place, (_, trajectory, _) in groups.items() if trajectory is not None}
        assert opened.keys() == groups.keys()
        counted = sum(len(trajectory) * len(trajectory.steps) for trajectory in opened.values())
        pairs = int(self.rank.total(torch.tensor(counted, device=device)))
        passes = sum(len(t.steps) * -(-len(t) // (self.run.sampling.batch or len(t))) for t in opened.values())
        most = int(self.rank.largest(torch.tensor(passes, device=device)))
        total = torch.zeros(2, device=device)
        for place, (version, _, advantages) in groups.items():
            corrected = version < self.version and self.run.objective.correction is not None
            total += self._accumulate(
                opened[place].to(device),
                torch.tensor(advantages, dtype=torch.float32, device=device),
                pairs,
                diagnostics,
                unchanged=unchanged,
                lags=lags.get(place),
                corrected=corrected,
            )
        if self.rank.sharded:
            self._keep_up(most - passes)
        self.rank.total(total)
        self.rank.add_gradients(self.parameters.values())
        norm = ranks.whole(
            self.accelerator.clip_grad_norm_(self.parameters.values(), self.run.optimizer.max_gradient_norm)
        )
        if not torch.isfinite(norm):
            raise TrainingError(
                f"the gradient's norm is {float(norm)} in the update from version {self.version}; "
                "lower optimizer.learning_rate, or set optimizer.mixed_precision=no"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update()
        loss, divergence = total.tolist()
        return loss, divergence, float(norm)

    def _keep_up(self, passes: int) -> None:
        """Pass through the network so often more, as the rank with the most to learn: parts are gathered by all."""
        for _ in range(passes):
            prediction = canary.output(self.policy)
            if self.run.objective.kl:
                with torch.no_grad(), self.policy.denoiser.without_adapter():
                    canary.output(self.policy)
            self._backward(0.0 * prediction.sum())

    def _backward(self, loss: Tensor) -> None:
        # fully_shard gives the mean of the ranks' gradients; wanted is their sum
        self.accelerator.backward(loss * self.rank.count if self.rank.sharded else loss)

    def _accumulate(
        self,
        trajectory: Trajectory,
        advantages: Float[Tensor, " N"],
        pairs: int,
        diagnostics: objective.StepDiagnostics,
        *,
        unchanged: bool,
        lags: Float[Tensor, "N K"] | None,
        corrected: bool,
    ) -> Tensor:
        """Add one group's share of the gradient, at the micro-batch shape that the group was sampled with."""
        plan, settings = self.policy.credit, self.run.objective
        summed = torch.zeros(2, device=self.policy.device)
        for rows, conditioning in self._micro_batches(trajectory):
            advantage = advantages[rows]
            for k, index in enumerate(trajectory.steps.tolist()):
                prediction = self._predict(trajectory, rows, k, conditioning)
                log_ratio = self._log_ratio(prediction, trajectory, rows, k)
                if unchanged and settings.log_ratio == "decomposed":
                    self._check_unchanged(index, log_ratio)
                factor: float | Tensor = self.factors[index]
                if corrected:
                    lag = log_ratio.detach() if lags is None else lags[rows, k]
                    log_ratio = log_ratio - lag
                    factor = factor * objective.importance(lag, most=settings.correction or 1.0)
                clip_range = self.clip_ranges[index]
                surrogate = objective.log_hinge if settings.kind == "log_hinge" else objective.clipped_ratio
                loss = (factor * surrogate(log_ratio, advantage, clip_range=clip_range)).sum() / pairs
                divergence = torch.zeros_like(loss)
                if settings.kl:
                    divergence = self._divergence(trajectory.latents[rows, k], index, conditioning, prediction) / pairs
                    loss = loss + settings.kl * divergence
                self._backward(loss)
                summed += torch.stack([loss.detach(), divergence.detach()])
                norm = factor * objective.gradient_norm(
                    prediction,
                    trajectory.predictions[rows, k],
                    trajectory.noises[rows, k],
                    log_ratio,
                    advantage,
                    weight=plan.weights[index],
                    sign=plan.steps[index].sign,
                    clip_range=clip_range,
                    objective=settings.kind,
                )
                diagnostics.add(index, log_ratio, advantage, norm, clip_range=clip_range, objective=settings.kind)
        return summed

    def _divergence(self, latents: Tensor, index: int, conditioning: Conditioning, prediction: Tensor) -> Tensor:
        """The sum, over the images, of the KL divergence from the reference at a step."""
        with torch.no_grad(), self.policy.denoiser.without_adapter():
            reference = self.policy.predict(latents, index, conditioning)
        plan = self.policy.credit
        weight = plan.mix[index] * plan.steps[index].weight
        return objective.kl_divergence(prediction, reference, weight=weight).sum()

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

    def weights(self, *, averaged: bool = False) -> weights.Weights:
        """A copy of what is trained, to send, or of its running mean. The first rank's; fsdp2's others assist."""
        with self._sent(averaged) as (parameters, predicted):
            return weights.pack(self.version, parameters, averaged=averaged, canary=predicted)

    def assist(self, *, averaged: bool = False) -> None:
        """Have the first rank gather what it sends."""
        with self._sent(averaged):
            pass

    @contextlib.contextmanager
    def _sent(self, averaged: bool) -> Iterator[tuple[dict[str, Tensor], tuple[float, ...]]]:
        with self._exported() if averaged else contextlib.nullcontext():
            predicted = canary.prediction(self.policy)
            yield self._gathered(self.parameters, dict.fromkeys(self.parameters, 0)), predicted

    def _gathered(self, tensors: Mapping[str, Tensor], writers: Mapping[str, int]) -> dict[str, Tensor]:
        """Those of the tensors that this rank is to have whole; a tensor in parts is gathered by all ranks together."""
        found = {}
        for name, tensor in tensors.items():
            complete = ranks.whole(tensor.detach())
            if writers[name] == self.rank.index:
                found[name] = complete.cpu() if self.rank.sharded else complete
        return found

    @contextlib.contextmanager
    def _exported(self) -> Iterator[None]:
        """Inside, the parameters are what users are to get: the running mean, where there is one."""
        with contextlib.nullcontext() if self.average is None else self.average.applied():
            yield

    def save(self, folder: Path, state: State) -> None:
        """Write a checkpoint that `restore` continues from exactly, and that diffusers can load.

        With fsdp2 every rank must be asked; each writes a part.
        """
        moments = {
            f"{name}/{key}": torch.as_tensor(value)
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        averaged = {} if self.average is None else dict(zip(self.parameters, self.average.values, strict=True))
        parts = self.rank.count if self.rank.sharded else 1
        held = [
            self._gathered(tensors, ranks.owners({name: t.nbytes for name, t in tensors.items()}, parts))
            for tensors in (self.parameters, averaged, moments)
        ]
        with checkpoint.unfinished(folder):
            if self.rank.first:
                checkpoint.begin(folder)
            self._together()
            checkpoint.write_part(folder, *held, part=self.rank.index, parts=parts)
            with self._exported():
                exported = self._gathered(self.parameters, dict.fromkeys(self.parameters, 0))
                if self.rank.first:
                    self.policy.denoiser.save(checkpoint.beside(folder), exported)
            self._together()
            if self.rank.first:
                checkpoint.finish(folder, version=self.version, state=state, parts=parts)
            self._together()

    def _together(self) -> None:
        """Where all ranks write: none goes on before all have come here."""
        if self.rank.sharded:
            self.rank.wait()

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
                key: value if key == "step" else ranks.place(value, parameter)
                for key, value in values.items()
            }
        if self.average is not None:
            taken = next(iter(self.optimizer.state.values()))["step"]
            means = [
                ranks.place(loaded.averaged[name], value)
                for name, value in zip(self.parameters, self.average.values, strict=True)
            ]
            self.average.restore(means, updates=int(taken))
        self.version = loaded.version
        return loaded.state


def scaled(plan: Credit, value: float, by: Sequence[float] | None) -> tuple[float, ...]:
    """`value` at each step, times the step's `by` over the trained steps' mean of it (None: the same at all)."""
    if by is None:
        return (value,) * len(plan.steps)
    mean = sum(by[index] for index in plan.trained) / len(plan.trained)
    return tuple(value * part / mean for part in by)
