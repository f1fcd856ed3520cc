"""The learner: weighted rollouts in, one batch's updates to the weights. One rank's process."""

import contextlib
import time
from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pcpo_ray import canary, checkpoint, config, micro_batches, minibatches, objective, ranks, weights
from pcpo_ray.average import Average
from pcpo_ray.credit import Credit
from pcpo_ray.errors import TrainingError
from pcpo_ray.micro_batches import Block, Pairs
from pcpo_ray.packed import Packed, unpack
from pcpo_ray.policy import Policy, kept
from pcpo_ray.ranks import Rank
from pcpo_ray.stages import State, Update
from pcpo_ray.trajectory import Trajectory, sent_to

Group = tuple[int, Trajectory | Packed | None, Sequence[float]]
"""The version that sampled it, its trajectory (None where another rank learns it), its images' advantages."""

FIRST_RATIO_LIMIT = 1e-6
"""Largest |log-ratio| allowed where the weights are those that sampled: above it, sampling and learning differ."""

ALONE = Rank()


class Learner:
    """Trains what is trainable with AdamW, in lock-step with the other ranks. `version` counts the batches learned.

    Of each of the T steps, on the device: `credit_weights`, `signs`, `clip_ranges`, `factors` (what its loss is
    multiplied by) and `own_weights` (those of the divergence from the reference). `micro_batch` are the (image, step)
    pairs that go through the network at once, None where as many as with the sampler, or not yet found.
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
        noises = [step.std for step in plan.steps]
        self.credit_weights = torch.tensor(plan.weights, device=device)
        self.signs = torch.tensor([step.sign for step in plan.steps], device=device)
        clip_ranges = scaled(plan, settings.clip_range, plan.weights if settings.clip_scale == "weight" else None)
        self.clip_ranges = torch.tensor(clip_ranges, device=device)
        self.factors = torch.tensor(scaled(plan, 1.0, noises if settings.step_loss == "noise" else None), device=device)
        own = [mix * step.weight for mix, step in zip(plan.mix, plan.steps, strict=True)]
        self.own_weights = torch.tensor(own, dtype=torch.float64, device=device)
        self.parameters = self.policy.denoiser.trainable()
        optimization = run.optimizer
        optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=optimization.learning_rate,
            betas=(optimization.beta1, optimization.beta2),
            eps=optimization.epsilon,
            weight_decay=optimization.weight_decay,
        )
        wanted = optimization.micro_batch
        self.micro_batch = None if wanted == "auto" else wanted
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
        found = self._find_micro_batch(batch, len(parts[0]), shares[0])
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
            micro_batch=found,
        )

    def _merge(self, diagnostics: objective.StepDiagnostics) -> None:
        """Count what every rank has counted."""
        for name, reduce in (("sums", self.rank.total), ("max_log_ratio", self.rank.largest)):
            merged = reduce(getattr(diagnostics, name).to(self.policy.device))
            setattr(diagnostics, name, merged.cpu())

    def _lags(self, batch: Sequence[Group], own: Sequence[int]) -> dict[int, Float[Tensor, "N K"]]:
        """Of this rank's older groups: the log-ratios of the weights as they are now to those that sampled each."""
        if self.run.objective.correction is None:
            return {}
        held: dict[int, Trajectory | Packed] = {}
        for place in own:
            version, trajectory, _ = batch[place]
            assert trajectory is not None
            if version < self.version:
                held[place] = trajectory
        passes = self._passes(held, self.micro_batch)
        more = self._passes_more(len(passes))
        shapes = {place: (len(one), len(one.steps)) for place, one in held.items()}
        found = {place: torch.zeros(shape, device=self.policy.device) for place, shape in shapes.items()}
        with torch.no_grad():
            for pairs in self._pairs(held, passes):
                log_ratios = self._log_ratio(self._predict(pairs), pairs).split(pairs.lengths)
                for block, log_ratio in zip(pairs.blocks, log_ratios, strict=True):
                    found[block.place][block.rows, block.k] = log_ratio
                del pairs  # as in _minibatch
            for _ in range(more):
                canary.output(self.policy)
        return found

    def _passes(self, groups: Mapping[int, Trajectory | Packed], size: int | None) -> list[list[Block]]:
        return micro_batches.passes(groups, self.run.sampling.batch, size)

    def _pairs(
        self, groups: Mapping[int, Trajectory] | Mapping[int, Trajectory | Packed], passes: Sequence[Sequence[Block]]
    ) -> Iterator[Pairs]:
        """Each pass's pairs on the device; only the groups of one pass lie open."""
        opened: dict[int, Trajectory] = {}
        every_step = self._told(passes, lambda block: [block.index] * len(block), torch.long)
        for blocks, steps in zip(passes, every_step, strict=True):
            wanted = dict.fromkeys(block.place for block in blocks)
            opened = {place: opened[place] for place in wanted if place in opened}
            for place in wanted:
                if place not in opened:
                    opened[place] = self._open(groups[place])
            yield micro_batches.gather(blocks, opened, steps)

    def _told(
        self, passes: Sequence[Sequence[Block]], of: Callable[[Block], Sequence[float]], dtype: torch.dtype
    ) -> Sequence[Float[Tensor, " B"] | Int[Tensor, " B"]]:
        """Numbers of each pass's pairs, on the device: all by one copy, as one a pass would be waited for at each."""
        numbers = [number for blocks in passes for block in blocks for number in of(block)]
        lengths = [sum(len(block) for block in blocks) for blocks in passes]
        told: tuple[Tensor, ...] = sent_to(torch.tensor(numbers, dtype=dtype), self.policy.device).split(lengths)
        return told

    def _open(self, trajectory: Trajectory | Packed) -> Trajectory:
        """On the learner's device; what came packed is opened anew each time, so that few groups lie open at once."""
        opened = unpack(self.policy, trajectory) if isinstance(trajectory, Packed) else trajectory
        return opened.to(self.policy.device)

    def _find_micro_batch(self, batch: Sequence[Group], count: int, own: Sequence[int]) -> micro_batches.Found | None:
        """Where optimizer.micro_batch is auto and not yet known, choose it, by trying it on a minibatch.

        That has `count` groups, of which this rank learns its `own`; all ranks choose the same.
        """
        if self.run.optimizer.micro_batch != "auto" or self.micro_batch is not None:
            return None
        steps, images = kept(self.run.sampling.subset, len(self.policy.credit.trained)), self.run.rollout.images
        most = max(1, count // self.rank.count) * images * steps
        sizes = micro_batches.candidates(min(self.run.sampling.batch or images, images), most)
        taken = torch.zeros(len(sizes), dtype=torch.float64)  # of a rank that learns nothing
        held = {place: t for place in own if (t := batch[place][1]) is not None}
        if held:
            taken = self._measure(sizes, held)
        found = micro_batches.Found.of(sizes, self.rank.total(taken.to(self.policy.device)).tolist())
        self.micro_batch = found.size
        return found

    def _measure(self, sizes: Sequence[int], groups: Mapping[int, Trajectory | Packed]) -> Tensor:
        """Seconds a pair by size (micro_batches.measure), tried on these groups."""
        longest = max(self._passes(groups, sizes[-1]), key=lambda blocks: sum(map(len, blocks)))
        opened = {place: self._open(groups[place]) for place in {block.place for block in longest}}

        @torch.no_grad()
        def same(size: int) -> bool:
            shapes: dict[Hashable, list[list[Block]]] = {}
            for blocks in self._passes(groups, size):
                texts = micro_batches.shapes_of(groups[blocks[0].place])
                shapes.setdefault((len(blocks), len(blocks[0]), texts), []).append(blocks)
            tried = [blocks for alike in shapes.values() for blocks in (alike[0], alike[-1])]
            return len(longest) * len(longest[0]) >= size and all(
                torch.equal(self._predict(pairs), torch.cat([self._predict(one) for one in pairs.apart()]))
                for pairs in self._pairs({**groups, **opened}, tried)
            )

        def learn(size: int) -> None:
            (pairs,) = self._pairs(opened, [longest[: max(1, size // len(longest[0]))]])
            if self.run.objective.kl:
                self._reference(pairs)
            self.accelerator.backward(self._predict(pairs).square().mean())

        # AdamW's two moments, which the first step makes, must have room beside
        moments = [torch.empty_like(p) for p in self.parameters.values() if p not in self.optimizer.state for _ in "12"]
        with self._away_from_zero():
            taken = micro_batches.measure(sizes, same, learn, self.policy.device)
        del moments
        self.optimizer.zero_grad()
        return taken

    @contextlib.contextmanager
    def _away_from_zero(self) -> Iterator[None]:
        """Inside, no trained tensor is all zeros, as half of an adapter is at first, which so has no part in any bit.

        0.02 is about what diffusers draws weights with.
        """
        zeros = [p.data for p in self.parameters.values() if not p.any()]
        drawing = torch.Generator(self.policy.device).manual_seed(0)
        for values in zeros:
            values.normal_(std=0.02, generator=drawing)
        try:
            yield
        finally:
            for values in zeros:
                values.zero_()

    def _predict(self, pairs: Pairs) -> Float[Tensor, "B ..."]:
        """The present prediction, rounded as the sampler's was."""
        prediction = self.policy.predict(pairs.latents, pairs.steps, pairs.conditioning)
        return objective.rounded(prediction, pairs.predictions.dtype)

    @torch.no_grad()
    def _reference(self, pairs: Pairs) -> Float[Tensor, "B ..."]:
        """The prediction without the adapter."""
        with self.policy.denoiser.without_adapter():
            return self.policy.predict(pairs.latents, pairs.steps, pairs.conditioning)

    def _log_ratio(self, prediction: Float[Tensor, "B ..."], pairs: Pairs) -> Float[Tensor, " B"]:
        if self.run.objective.log_ratio == "replay":
            return self._replayed(prediction, pairs)
        weight, sign = self.credit_weights[pairs.steps], self.signs[pairs.steps]
        return objective.log_ratio(prediction, pairs.predictions, pairs.noises, weight=weight, sign=sign)

    def _replayed(self, prediction: Float[Tensor, "B ..."], pairs: Pairs) -> Float[Tensor, " B"]:
        """The log-ratio with the noise recovered from the bits that the sampler went on with."""
        found = []
        for one, predicted in zip(pairs.apart(), prediction.split(pairs.lengths), strict=True):
            step = self.policy.credit.steps[one.blocks[0].index]
            after = step.moved(one.latents, one.predictions, one.noises)
            found.append(step.log_prob(after, one.latents, predicted) - one.log_probs)
        return torch.cat(found)

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
        found = {place: trajectory for place, (_, trajectory, _) in groups.items() if trajectory is not None}
        assert found.keys() == groups.keys()
        counted = sum(len(trajectory) * len(trajectory.steps) for trajectory in found.values())
        count = int(self.rank.total(torch.tensor(counted, device=device)))
        passes = self._passes(found, self.micro_batch)
        more = self._passes_more(len(passes))
        advantages = iter(self._told(passes, lambda block: groups[block.place][2][block.rows], torch.float32))
        total = torch.zeros(2, device=device)
        older = {place for place in found if groups[place][0] < self.version}
        for pairs in self._pairs(found, passes):
            total += self._accumulate(pairs, next(advantages), lags, older, diagnostics, count=count)
            del pairs  # may be views of a group, which is not to lie beside the next one
        diagnostics.count()
        if unchanged and self.run.objective.log_ratio == "decomposed":
            self._check_unchanged(diagnostics.max_log_ratio.tolist())
        self._keep_up(more)
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

    def _passes_more(self, passes: int) -> int:
        """How many passes fewer this rank has than the one with the most, where all gather parameters together.

        To be asked before the first of them: meanwhile other ranks would wait for it in a pass.
        """
        if not self.rank.sharded:
            return 0
        return int(self.rank.largest(torch.tensor(passes, device=self.policy.device))) - passes

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
        pairs: Pairs,
        advantage: Float[Tensor, " B"],
        lags: Mapping[int, Float[Tensor, "N K"]],
        older: Container[int],
        diagnostics: objective.StepDiagnostics,
        *,
        count: int,
    ) -> Float[Tensor, "2"]:
        """Add a pass's share of the gradient, of the mean over `count` pairs. Nothing here waits for the device.

        Returns the share of the loss, and of the divergence in it.
        """
        settings = self.run.objective
        prediction = self._predict(pairs)
        log_ratio = self._log_ratio(prediction, pairs)
        clip_range, factor = self.clip_ranges[pairs.steps], self.factors[pairs.steps]
        if settings.correction is not None:
            lag, importance = self._lag(pairs, log_ratio.detach(), lags, older, most=settings.correction)
            log_ratio, factor = log_ratio - lag, factor * importance
        surrogate = objective.log_hinge if settings.kind == "log_hinge" else objective.clipped_ratio
        loss = (factor * surrogate(log_ratio, advantage, clip_range=clip_range)).sum() / count
        divergence = torch.zeros_like(loss)
        if settings.kl:
            own = self.own_weights[pairs.steps]
            divergence = objective.kl_divergence(prediction, self._reference(pairs), weight=own).sum() / count
            loss = loss + settings.kl * divergence
        self._backward(loss)
        norm = factor * objective.gradient_norm(
            prediction,
            pairs.predictions,
            pairs.noises,
            log_ratio,
            advantage,
            weight=self.credit_weights[pairs.steps],
            sign=self.signs[pairs.steps],
            clip_range=clip_range,
            objective=settings.kind,
        )
        diagnostics.add(pairs.steps, log_ratio, advantage, norm, clip_range=clip_range, objective=settings.kind)
        return torch.stack([loss.detach(), divergence.detach()])

    @staticmethod
    def _lag(
        pairs: Pairs,
        log_ratio: Float[Tensor, " B"],
        lags: Mapping[int, Float[Tensor, "N K"]],
        older: Container[int],
        *,
        most: float,
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Log-ratio of the weights that the update began with to those that sampled, and the importance of that.

        `log_ratio` is the present one, which the lag is while nothing has moved: where `lags` has none. The pairs of
        groups that are not older have lag 0 and importance 1.
        """
        found = []
        for block, present in zip(pairs.blocks, log_ratio.split(pairs.lengths), strict=True):
            if block.place in older:
                lag = lags[block.place][block.rows, block.k] if block.place in lags else present
                found.append((lag, objective.importance(lag, most=most)))
            else:
                found.append((torch.zeros_like(present), torch.ones_like(present)))
        lag, importance = (torch.cat(parts) for parts in zip(*found, strict=True))
        return lag, importance

    def _check_unchanged(self, log_ratios: Sequence[float]) -> None:
        """Of all steps the greatest |log-ratio|, each."""
        largest = max(log_ratios)
        if largest > FIRST_RATIO_LIMIT:
            index = log_ratios.index(largest)
            raise TrainingError(
                f"at the weights that sampled (version {self.version}), step {index} has log-ratio {largest:.3g}; "
                f"expected 0 (at most {FIRST_RATIO_LIMIT:g}): sampler and learner do not compute the same prediction. "
                "Use the same dtype, sampling.batch and kernels on both, model.dtype=float32, or "
                "optimizer.micro_batch=null"
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

    def weights(self, *, averaged: bool = False, over: weights.Weights | None = None) -> weights.Weights:
        """A copy of what is trained, to send, or of its running mean; it may take the memory of `over`.

        The first rank's; fsdp2's others assist.
        """
        with self._sent(averaged) as (parameters, predicted):
            return weights.pack(self.version, parameters, averaged=averaged, canary=predicted, over=over)

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
        if self.run.optimizer.micro_batch == "auto":
            self.micro_batch = loaded.state.micro_batch
        return loaded.state


def scaled(plan: Credit, value: float, by: Sequence[float] | None) -> tuple[float, ...]:
    """`value` at each step, times the step's `by` over the trained steps' mean of it (None: the same at all)."""
    if by is None:
        return (value,) * len(plan.steps)
    mean = sum(by[index] for index in plan.trained) / len(plan.trained)
    return tuple(value * part / mean for part in by)
