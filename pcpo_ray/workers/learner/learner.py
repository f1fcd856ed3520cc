"""The learner: weighted rollouts in, one batch's updates to the weights. One rank's process."""

import contextlib
import math
import time
from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pcpo_ray import config
from pcpo_ray.algorithm import objective
from pcpo_ray.algorithm.credit import Credit
from pcpo_ray.data import updates, weights
from pcpo_ray.data.tensors import sent_to
from pcpo_ray.data.types import Trajectory
from pcpo_ray.data.updates import DriverState, Update
from pcpo_ray.data.weights import WeightSnapshot
from pcpo_ray.errors import CheckpointError, PcpoError, TrainingError
from pcpo_ray.models.policy import Policy, trained_per_group
from pcpo_ray.runs import checkpoints
from pcpo_ray.runs.disk import writing
from pcpo_ray.workers import canary
from pcpo_ray.workers.learner import distributed, micro_batches, mini_batches
from pcpo_ray.workers.learner.distributed import Rank
from pcpo_ray.workers.learner.ema import EMA
from pcpo_ray.workers.learner.masters import Masters
from pcpo_ray.workers.learner.micro_batches import OpenedGroup, PairBatch
from pcpo_ray.workers.learner.mini_batches import Block
from pcpo_ray.workers.learner.movement import Movement
from pcpo_ray.workers.packing import PackedTrajectory, unpack_trajectory

Group = tuple[int, Trajectory | PackedTrajectory | None, Sequence[float]]
"""The version that sampled it, its trajectory (None where another rank learns it), its images' advantages."""

BAD_GRADIENTS = 3
"""Optimizer steps in a row that may be skipped, as their gradient is not finite; one more ends the run."""

FIRST_RATIO_LIMIT = 1e-6
"""Largest |log-ratio| allowed where the weights are those that sampled: above it, sampling and learning differ."""

ALONE = Rank()


class Learner:
    """Trains what is trainable with AdamW, in lock-step with the other ranks. `version` counts the batches learned.

    `parameters` are the network's, `masters` the float32 weights that AdamW steps (masters.py). Of each of the T steps,
    on the device: `credit_weights`, `signs`, `clip_ranges`, `factors` (what its loss is multiplied by), `scales` (what
    its log-ratio is) and `own_weights` (those of its sampler). `micro_batch` are the (image, step) pairs that go
    through the network at once, None where as many as with the sampler, or not yet found.
    """

    def __init__(self, run: config.Run, device: torch.device, rank: Rank = ALONE) -> None:
        from accelerate import Accelerator

        self.run = run
        self.rank = rank
        self.policy = Policy(run, device)
        self.dtypes = {name: parameter.dtype for name, parameter in self.policy.denoiser.trainable().items()}
        if rank.sharded:
            distributed.shard(self.policy.denoiser.module, rank)
        self.version = 0
        self.stepping = False
        """Whether the weights are between two versions."""
        self.bad_gradients = 0
        self.saves = 0
        plan, settings = self.policy.credit, run.objective
        noises = [step.std for step in plan.steps]
        self.credit_weights = torch.tensor(plan.weights, device=device)
        self.signs = torch.tensor([step.sign for step in plan.steps], device=device)
        clip_ranges = scaled(plan, settings.clip_range, plan.weights if settings.clip_scale == "weight" else None)
        self.clip_ranges = torch.tensor(clip_ranges, device=device)
        self.factors = torch.tensor(scaled(plan, 1.0, noises if settings.step_loss == "noise" else None), device=device)
        own = [mix * step.weight for mix, step in zip(plan.mix, plan.steps, strict=True)]
        self.own_weights = torch.tensor(own, dtype=torch.float64, device=device)
        published = settings.log_ratio == "flow_cps"
        self.scales = torch.tensor([2 * std**2 if published else 1.0 for std in noises], device=device)
        self.parameters = self.policy.denoiser.trainable()
        self.masters = Masters(self.parameters)
        optimization = run.optimizer
        optimizer = torch.optim.AdamW(
            self.masters.values.values(),
            lr=optimization.learning_rate,
            betas=(optimization.beta1, optimization.beta2),
            eps=optimization.epsilon,
            weight_decay=optimization.weight_decay,
        )
        wanted = optimization.micro_batch
        self.micro_batch = None if wanted == "auto" else wanted
        self.accelerator = Accelerator(mixed_precision=optimization.mixed_precision, cpu=device.type == "cpu")
        self.policy.denoiser.module, self.optimizer = self.accelerator.prepare(self.policy.denoiser.module, optimizer)
        weights_here = self.masters.values.values()
        self.average = None if optimization.average is None else EMA(weights_here, optimization.average)
        self.loss_scale = 1.0
        self.importances: list[Float[Tensor, "4"]] = []
        # dropout would make the ratio at unchanged weights differ from 1
        self.policy.denoiser.module.eval()

    def update(self, step: int, batch: Sequence[Group]) -> Update:
        """Learn one batch, giving version `step`; every rank gets the whole list, and the same answer.

        Raises TrainingError if `step` is not the next one, if a log-ratio at unchanged weights is not 0, if a log-ratio
        or a weight is not finite, and if that holds for more than BAD_GRADIENTS optimizer steps' gradients in a row:
        the same on every rank. Of several ranks, each raises a RankError where one has failed of something else.
        """
        try:
            return self._update(step, batch)
        except (PcpoError, distributed.RankError):
            raise
        except Exception as error:
            told = self.rank.told(error)
            if told is error:
                raise
            raise told from error

    def _update(self, step: int, batch: Sequence[Group]) -> Update:
        started = time.perf_counter()
        if step != self.version + 1:
            raise TrainingError(f"asked for update {step} at version {self.version}; expected {self.version + 1}")
        diagnostics = objective.StepDiagnostics(len(self.policy.schedule))
        parts = mini_batches.split_groups(self.run.optimizer, len(batch), seed=self.run.seed, step=step)
        minibatch_blocks = [self._blocks(batch, part) for part in parts]
        shares = [mini_batches.rank_share(blocks, self.rank.index, self.rank.count) for blocks in minibatch_blocks]
        found = self._find_micro_batch(batch, minibatch_blocks[0], shares[0])
        movement = Movement(self.masters.values.values(), self.rank)
        # in the first optimizer step the log-ratio itself is the lag: nothing has moved since
        lags = self._lags(batch, mini_batches.joined(shares)) if len(parts) > 1 else {}
        taken = []
        for part, (places, blocks, own) in enumerate(zip(parts, minibatch_blocks, shares, strict=True)):
            fresh = part == 0 and all(batch[place][0] == self.version for place in places)
            count = sum(map(len, blocks))
            taken.append(self._minibatch(batch, own, lags, diagnostics, count=count, unchanged=fresh))
            if part == 0:
                first = diagnostics.max_log_ratio.max()
        moved = movement.measured(step)
        self.version, self.stepping = step, False
        self._merge(diagnostics)
        losses, divergences, norms = zip(*taken, strict=True)
        good = [norm for norm in norms if norm is not None]
        return Update(
            version=step,
            loss=float(np.mean(losses)),
            kl=float(np.mean(divergences)) if self.run.objective.kl else None,
            gradient_norm=float(np.mean(good)) if good else math.nan,
            skipped=len(norms) - len(good),
            update_ratio=moved.update_ratio,
            moved_fraction=moved.moved_fraction,
            importance=self._importance_seen(),
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

    def _blocks(self, batch: Sequence[Group], places: Sequence[int]) -> list[Block]:
        """The pairs of these groups of a batch, whoever has their trajectories.

        Raises TrainingError for a trajectory that does not have them.
        """
        asked = self.run.optimizer.micro_batch
        trained = trained_per_group(self.run.sampling.subset, len(self.policy.credit.trained))
        for place in places:
            _, trajectory, advantages = batch[place]
            if trajectory is None:
                continue
            images, steps = len(trajectory), len(trajectory.steps)
            if (images, steps) != (len(advantages), trained):
                raise TrainingError(
                    f"the group at place {place} has {images} images at {steps} trained steps; expected "
                    f"{len(advantages)} at {trained}: give samplers and learner the same config"
                )
        length = mini_batches.length_of(self.run, asked if isinstance(asked, int) else None)
        return mini_batches.cut_into_blocks({place: (len(batch[place][2]), trained) for place in places}, length)

    def _lags(self, batch: Sequence[Group], own: Sequence[Block]) -> dict[int, Float[Tensor, "N K 2"]]:
        """Compare the weights as they are now with those that sampled each of this rank's older groups (`_lag_now`)."""
        if self.run.objective.correction is None:
            return {}
        older = [block for block in own if batch[block.place][0] < self.version]
        held = _held(batch, older)
        shapes = {place: (len(one), len(one.steps)) for place, one in held.items()}
        found = {place: torch.zeros(*shape, 2, device=self.policy.device) for place, shape in shapes.items()}

        def compare(pairs: PairBatch) -> None:
            prediction = self._predict(pairs)
            lag = self._lag_now(prediction, self._log_ratio(prediction, pairs), pairs)
            for block, one in zip(pairs.blocks, lag.split(pairs.lengths), strict=True):
                found[block.place][block.rows, block.k] = one

        with torch.no_grad():
            passes = self._passes(older, held, self.micro_batch)
            failure = self._go_through(held, passes, compare, lambda: canary.output(self.policy))
        self.rank.agreed(torch.zeros(1, device=self.policy.device), failure)
        return found

    def _go_through(
        self,
        groups: Mapping[int, Trajectory | PackedTrajectory],
        passes: Sequence[Sequence[Block]],
        work: Callable[[PairBatch], None],
        idle: Callable[[], Any],
    ) -> Exception | None:
        """Have `work` done on the pairs of each pass; what this rank failed of.

        Where parameters are gathered by all ranks together, it goes through the network as often as the rank with the
        most passes, with `idle` after its own, and raises what it failed of in a pass: the others are in that pass.
        """
        most = self._most_passes(len(passes))
        begun, ended, failure = 0, 0, None
        try:
            for pairs in self._pairs(groups, passes):
                begun += 1
                work(pairs)
                del pairs  # may be views of a group, which is not to lie beside the next one
                ended += 1
        except Exception as error:
            if self.rank.sharded and begun != ended:
                raise self.rank.told(error) from error
            failure = error
        for _ in range(most - ended):
            idle()
        return failure

    def _passes(
        self, blocks: Sequence[Block], groups: Mapping[int, Trajectory | PackedTrajectory], size: int | None
    ) -> list[list[Block]]:
        count = micro_batches.blocks_per_pass(mini_batches.length_of(self.run, size), size)
        return micro_batches.passes(blocks, groups, count)

    def _pairs(
        self, groups: Mapping[int, Trajectory | PackedTrajectory], passes: Sequence[Sequence[Block]]
    ) -> Iterator[PairBatch]:
        """Each pass's pairs on the device; only the groups of one pass lie open, and of these the passes' images."""
        opened: dict[int, OpenedGroup] = {}
        rows: dict[int, slice] = {}
        for block in (block for blocks in passes for block in blocks):
            before = rows.get(block.place, block.rows)
            rows[block.place] = slice(min(before.start, block.rows.start), max(before.stop, block.rows.stop))
        indices = {place: micro_batches.steps_of(groups[place]) for place in rows}
        every_step = self._told(passes, lambda block: [indices[block.place][block.k]] * len(block), torch.long)
        for blocks, steps in zip(passes, every_step, strict=True):
            wanted = dict.fromkeys(block.place for block in blocks)
            opened = {place: opened[place] for place in wanted if place in opened}
            for place in wanted:
                if place not in opened:
                    opened[place] = self._open(groups[place], rows[place])
            yield micro_batches.gather(blocks, [indices[block.place][block.k] for block in blocks], opened, steps)

    def _told(
        self, passes: Sequence[Sequence[Block]], of: Callable[[Block], Sequence[float]], dtype: torch.dtype
    ) -> Sequence[Float[Tensor, " B"] | Int[Tensor, " B"]]:
        """Numbers of each pass's pairs, on the device: all by one copy, as one a pass would be waited for at each."""
        numbers = [number for blocks in passes for block in blocks for number in of(block)]
        lengths = [sum(len(block) for block in blocks) for blocks in passes]
        told: tuple[Tensor, ...] = sent_to(torch.tensor(numbers, dtype=dtype), self.policy.device).split(lengths)
        return told

    def _open(self, trajectory: Trajectory | PackedTrajectory, rows: slice) -> OpenedGroup:
        """The images at `rows` on the learner's device, or all of them where they are there already.

        What came packed is opened anew each time, so that few groups lie open at once.
        """
        if isinstance(trajectory, PackedTrajectory):
            unpacked = unpack_trajectory(self.policy, trajectory, rows).to(self.policy.device)
            return OpenedGroup(trajectory=unpacked, first=rows.start)
        return OpenedGroup(trajectory=trajectory.to(self.policy.device))

    def _find_micro_batch(
        self, batch: Sequence[Group], blocks: Sequence[Block], own: Sequence[Block]
    ) -> updates.MicroBatchChoice | None:
        """Where optimizer.micro_batch is auto and not yet known, choose it, by trying it on a minibatch.

        That has these `blocks`, of which this rank learns its `own`; all ranks choose the same.
        """
        if self.run.optimizer.micro_batch != "auto" or self.micro_batch is not None:
            return None
        most = sum(map(len, blocks)) // self.rank.count
        sizes = micro_batches.candidates(mini_batches.length_of(self.run, None), most)
        taken = torch.zeros(len(sizes), dtype=torch.float64)  # of a rank that learns nothing
        failure = None
        if own:
            try:
                taken = self._measure(sizes, _held(batch, own), own)
            except Exception as error:
                failure = error
        found = updates.MicroBatchChoice.of(sizes, self.rank.agreed(taken.to(self.policy.device), failure).tolist())
        self.micro_batch = found.size
        return found

    def _measure(
        self, sizes: Sequence[int], groups: Mapping[int, Trajectory | PackedTrajectory], own: Sequence[Block]
    ) -> Tensor:
        """Seconds a pair by size (micro_batches.measure), tried on these blocks of the groups."""
        longest = max(self._passes(own, groups, sizes[-1]), key=lambda blocks: sum(map(len, blocks)))
        opened = {
            place: self._open(groups[place], slice(0, len(groups[place]))).trajectory
            for place in {block.place for block in longest}
        }

        @torch.no_grad()
        def same(size: int) -> bool:
            shapes: dict[Hashable, list[list[Block]]] = {}
            for blocks in self._passes(own, groups, size):
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
        fresh = [p for p in self.masters.values.values() if p not in self.optimizer.state]
        moments = [torch.empty_like(parameter) for parameter in fresh for _ in "12"]
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

    def _predict(self, pairs: PairBatch) -> Float[Tensor, "B ..."]:
        """The present prediction, rounded as the sampler's was."""
        prediction = self.policy.predict(pairs.latents, pairs.steps, pairs.conditioning)
        return objective.rounded(prediction, pairs.predictions.dtype)

    @torch.no_grad()
    def _reference(self, pairs: PairBatch) -> Float[Tensor, "B ..."]:
        """The prediction without the adapter, rounded as the present one is, so that equal ones have no divergence."""
        with self.policy.denoiser.without_adapter():
            return self._predict(pairs)

    def _log_ratio(self, prediction: Float[Tensor, "B ..."], pairs: PairBatch) -> Float[Tensor, " B"]:
        if self.run.objective.log_ratio == "replay":
            return self._replayed(prediction, pairs)
        weight, sign = self.credit_weights[pairs.steps], self.signs[pairs.steps]
        found = objective.log_ratio(prediction, pairs.predictions, pairs.noises, weight=weight, sign=sign)
        return self.scales[pairs.steps] * found

    def _replayed(self, prediction: Float[Tensor, "B ..."], pairs: PairBatch) -> Float[Tensor, " B"]:
        """The log-ratio with the noise recovered from the bits that the sampler went on with."""
        found = []
        for one, predicted in zip(pairs.apart(), prediction.split(pairs.lengths), strict=True):
            step = self.policy.credit.steps[one.indices[0]]
            after = step.moved(one.latents, one.predictions, one.noises)
            found.append(step.log_prob(after, one.latents, predicted) - one.log_probs)
        return torch.cat(found)

    def _minibatch(
        self,
        batch: Sequence[Group],
        own: Sequence[Block],
        lags: Mapping[int, Float[Tensor, "N K 2"]],
        diagnostics: objective.StepDiagnostics,
        *,
        count: int,
        unchanged: bool,
    ) -> tuple[float, float, float | None]:
        """One optimizer step on the mean loss over `count` (image, trained step) pairs, of which the `own` are here.

        Returns the loss, the mean KL divergence from the reference, which it contains, and the gradient's norm; None
        where that is not finite and the optimizer step was skipped.
        """
        device = self.policy.device
        self.loss_scale = self._scale_for(count)
        older = {block.place for block in own if batch[block.place][0] < self.version}
        held = _held(batch, own)
        passes = self._passes(own, held, self.micro_batch)
        advantages = iter(self._told(passes, lambda block: batch[block.place][2][block.rows], torch.float32))
        total = torch.zeros(2, device=device)

        def learn(pairs: PairBatch) -> None:
            total.add_(self._accumulate(pairs, next(advantages), lags, older, diagnostics, count=count))

        failure = self._go_through(held, passes, learn, self._idle)
        try:
            diagnostics.count()
        except TrainingError as error:
            failure = failure or error
        total = self.rank.agreed(total, failure)
        if unchanged and self.run.objective.log_ratio != "replay":
            self._check_unchanged(self.rank.largest(diagnostics.max_log_ratio.clone().to(device)).tolist())
        norm = self._step()
        loss, divergence = total.tolist()
        return loss, divergence, norm

    def _step(self) -> float | None:
        """Clip the gradient and make AdamW's step; the norm before clipping.

        A gradient that is not finite changes nothing and has no norm: None. Raises TrainingError after more than
        BAD_GRADIENTS of them in a row.
        """
        trained = list(self.masters.values.values())
        self.rank.add_gradients(trained)
        if self.loss_scale != 1.0:
            torch._foreach_div_([p.grad for p in trained if p.grad is not None], self.loss_scale)
        most = self.run.optimizer.max_gradient_norm
        norm = float(distributed.gather_whole(self.accelerator.clip_grad_norm_(trained, most)))
        if math.isfinite(norm):
            self.bad_gradients = 0
            self.stepping = True
            self.optimizer.step()
            self.masters.write_back()
        else:
            self.bad_gradients += 1
        self.optimizer.zero_grad()
        if self.bad_gradients > BAD_GRADIENTS:
            raise TrainingError(
                f"{self.bad_gradients} gradients in a row are not finite (norm {norm}), in the update from version "
                f"{self.version}; lower optimizer.learning_rate, set optimizer.mixed_precision=no, or set model.dtype "
                f"(now {self.run.model.dtype}) to bfloat16 or float32"
            )
        if not math.isfinite(norm):
            return None
        if self.average is not None:
            self.average.update()
        return norm

    def _scale_for(self, count: int) -> float:
        """A power of two for the loss, so that float16 does not round the gradients of a mean over `count` pairs to 0.

        Each pair's gradient of its prediction, about |A| w z / (count D), then is about |A| w z. 1 for other dtypes.
        """
        if torch.float16 not in (self.policy.computes_in, *self.dtypes.values()):
            return 1.0
        dimensions = math.prod(self.policy.denoiser.latent_shape)
        return 2.0 ** round(math.log2(count * dimensions))

    def _most_passes(self, passes: int) -> int:
        """Of this rank, or of the one with the most, where all gather parameters together.

        To be asked before the first of them: meanwhile other ranks would wait for it in a pass.
        """
        if not self.rank.sharded:
            return 0
        return int(self.rank.largest(torch.tensor(passes, device=self.policy.device)))

    def _idle(self) -> None:
        """Pass through the network without learning: parts are gathered by all."""
        prediction = canary.output(self.policy)
        if self.run.objective.kl:
            with torch.no_grad(), self.policy.denoiser.without_adapter():
                canary.output(self.policy)
        self._backward(0.0 * prediction.sum())

    def _backward(self, loss: Tensor) -> None:
        # fully_shard gives the mean of the ranks' gradients; wanted is their sum
        self.accelerator.backward(loss * self.loss_scale * (self.rank.count if self.rank.sharded else 1))

    def _accumulate(
        self,
        pairs: PairBatch,
        advantage: Float[Tensor, " B"],
        lags: Mapping[int, Float[Tensor, "N K 2"]],
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
            lag, importance = self._lag(prediction, log_ratio, pairs, lags, older)
            log_ratio, factor = log_ratio - lag, factor * importance
        match settings.kind:
            case "log_hinge":
                surrogate = objective.log_hinge
            case "clipped_ratio":
                surrogate = objective.clipped_ratio
            case _:
                assert_never(settings.kind)
        loss = (factor * surrogate(log_ratio, advantage, clip_range=clip_range)).sum() / count
        divergence = torch.zeros_like(loss)
        if settings.kl:
            own = self.own_weights[pairs.steps]
            divergence = objective.kl_divergence(prediction, self._reference(pairs), weight=own).sum() / count
            loss = loss + settings.kl * divergence
        self._backward(loss)
        norm = (
            factor
            * self.scales[pairs.steps]
            * objective.gradient_norm(
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
        )
        diagnostics.add(pairs.steps, log_ratio, advantage, norm, clip_range=clip_range, objective=settings.kind)
        return torch.stack([loss.detach(), divergence.detach()])

    @torch.no_grad()
    def _lag_now(
        self, prediction: Float[Tensor, "B ..."], log_ratio: Float[Tensor, " B"], pairs: PairBatch
    ) -> Float[Tensor, "B 2"]:
        """Compare the weights as they are now with those that sampled: the log-ratio that the loss is made of, and that
        of the sampler's own densities, which the importance is made of."""
        weight, sign = self.own_weights[pairs.steps], self.signs[pairs.steps]
        own = objective.log_ratio(prediction, pairs.predictions, pairs.noises, weight=weight, sign=sign)
        return torch.stack([log_ratio.detach(), own], dim=1)

    @torch.no_grad()
    def _lag(
        self,
        prediction: Float[Tensor, "B ..."],
        log_ratio: Float[Tensor, " B"],
        pairs: PairBatch,
        lags: Mapping[int, Float[Tensor, "N K 2"]],
        older: Container[int],
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Log-ratio of the weights that the update began with to those that sampled, and the importance of that.

        While nothing has moved, and `lags` has none, it is the present one. The pairs of groups that are not older have
        lag 0 and importance 1.
        """
        if not any(block.place in older for block in pairs.blocks):
            return torch.zeros_like(log_ratio), torch.ones_like(log_ratio)
        old = torch.tensor([block.place in older for block in pairs.blocks for _ in range(len(block))])
        old = sent_to(old, self.policy.device)
        now = self._lag_now(prediction, log_ratio, pairs)
        begun = [
            lags[block.place][block.rows, block.k] if block.place in lags else present
            for block, present in zip(pairs.blocks, now.split(pairs.lengths), strict=True)
        ]
        lag, own = torch.cat(begun).unbind(1)
        most = self.run.objective.correction
        assert most is not None
        importance = objective.importance(own, dimensions=pairs.latents[0].numel(), most=most)
        self.importances.append(objective.spread(importance, old, most=most))
        return torch.where(old, lag, 0.0), torch.where(old, importance, 1.0)

    def _importance_seen(self) -> Mapping[str, float] | None:
        """The spread of this update's importance weights on all ranks; None where nothing was older."""
        noted, self.importances = self.importances, []
        sums = torch.stack(noted).sum(0) if noted else torch.zeros(4, dtype=torch.float64, device=self.policy.device)
        if self.run.objective.correction is None:
            return None
        return objective.spread_in_numbers(self.rank.total(sums).tolist())

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

    def weights(self, *, averaged: bool = False, over: weights.WeightSnapshot | None = None) -> weights.WeightSnapshot:
        """A copy of what is trained, to send, or of its running mean; it may take the memory of `over`.

        The first rank's; fsdp2's others assist.
        """
        with self._sent(averaged) as (parameters, predicted):
            return weights.pack(self.version, parameters, averaged=averaged, canary=predicted, over=over)

    def assist(self, *, averaged: bool = False) -> None:
        """Have the first rank gather what it sends."""
        with self._sent(averaged):
            pass

    def buckets(self) -> int:
        """How many buckets the weights are sent in."""
        return len(weights.layout(self._of_network())[1])

    def _of_network(self) -> dict[str, Tensor]:
        """The trained weights as samplers hold them: in the network's own dtype."""
        return {name: parameter.detach().to(self.dtypes[name]) for name, parameter in self.parameters.items()}

    @contextlib.contextmanager
    def _sent(self, averaged: bool) -> Iterator[tuple[dict[str, Tensor], tuple[float, ...]]]:
        with self._exported() if averaged else contextlib.nullcontext():
            predicted = self._predicts()
            yield self._gathered(self._of_network(), dict.fromkeys(self.parameters, 0)), predicted

    def _predicts(self) -> tuple[float, ...]:
        """The canary's prediction. Raises TrainingError where it is not finite, so that nobody could go on from it."""
        predicted = canary.prediction(self.policy)
        if not np.isfinite(predicted).all():
            lower = ", or lower optimizer.learning_rate: the weights may have grown too large" if self.version else ""
            raise TrainingError(
                f"with the weights of version {self.version} the network's prediction is not finite; set model.dtype "
                f"(now {self.run.model.dtype}) to float32 or bfloat16, or optimizer.mixed_precision=no{lower}"
            )
        return predicted

    def _gathered(self, tensors: Mapping[str, Tensor], writers: Mapping[str, int]) -> dict[str, Tensor]:
        """Those of the tensors that this rank is to have whole; a tensor in parts is gathered by all ranks together."""
        found = {}
        for name, tensor in tensors.items():
            complete = distributed.gather_whole(tensor.detach())
            if writers[name] == self.rank.index:
                found[name] = complete.cpu() if self.rank.sharded else complete
        return found

    @contextlib.contextmanager
    def _exported(self) -> Iterator[None]:
        """Inside, the parameters are what users are to get: the running mean, where there is one."""
        if self.average is None:
            yield
            return
        try:
            with self.average.applied():
                self.masters.write_back()
                yield
        finally:
            self.masters.write_back()

    def save(
        self,
        folder: Path,
        state: DriverState,
        *,
        older: Sequence[WeightSnapshot] = (),
        allowed: Callable[[], None] = lambda: None,
    ) -> None:
        """Write a checkpoint that `restore` continues from exactly, and that diffusers can load.

        With fsdp2 every rank must be asked; each writes a part, the first one also the `older` versions that the
        batches of `state.begun` need. It gets its name only after `allowed`, which may raise. Raises TrainingError, and
        writes nothing, where nobody could go on from it: in the midst of an update, or with weights, or a running mean,
        that predict what is not finite.
        """
        if self.stepping:
            raise TrainingError(f"the update from version {self.version} was broken off, with a part of its steps made")
        self._predicts()
        moments = {
            f"{name}/{key}": torch.as_tensor(value)
            for name, master in self.masters.values.items()
            for key, value in self.optimizer.state.get(master, {}).items()
        }
        averaged = {} if self.average is None else dict(zip(self.parameters, self.average.values, strict=True))
        parts = self.rank.count if self.rank.sharded else 1
        every = (self.masters.values, averaged, moments)
        size = sum(tensor.nbytes for tensors in every for tensor in tensors.values())
        size += len(state.older) * sum(master.nbytes for master in self.masters.values.values())
        held = [
            self._gathered(tensors, distributed.owners({name: t.nbytes for name, t in tensors.items()}, parts))
            for tensors in every
        ]
        self.saves += 1
        meeting = distributed.Meeting(self.rank, f"checkpoint {self.saves}", seconds=checkpoints.seconds_for(2 * size))
        with meeting.held(), contextlib.ExitStack() as until_whole:
            own = until_whole.enter_context(checkpoints.unfinished(folder) if self.rank.first else writing(folder))
            made = folder.with_name(meeting.tell(own and own.name)[0])
            written = meeting.tell(checkpoints.write_part(made, *held, part=self.rank.index, parts=parts))
            # only now: while one rank writes, another would wait for it in a collective, which has not the time
            with self._exported():
                if self.average is not None:
                    self._predicts()
                exported = self._gathered(self._of_network(), dict.fromkeys(self.parameters, 0))
                if self.rank.first:
                    self.policy.denoiser.save(made, exported)
                    written.append(checkpoints.write_versions(made, older))
            if self.rank.first:
                allowed()
                checkpoints.finish(
                    made,
                    folder,
                    version=self.version,
                    state=state,
                    sums={name: found for sums in written for name, found in sums.items()},
                    updates=0 if self.average is None else self.average.updates,
                )
            meeting.tell()

    def restore(self, folder: Path) -> DriverState:
        """Take over parameters, optimizer and version.

        Raises CheckpointError: before anything is changed if files or shapes are wrong, and afterwards if nobody could
        go on from these weights.
        """
        loaded = checkpoints.read(folder)
        distributed.load_parameters(folder, loaded.parameters, self.masters.values)
        self.masters.write_back()
        moments: dict[str, dict[str, Tensor]] = {}
        for key, value in loaded.optimizer.items():
            name, _, kind = key.rpartition("/")
            moments.setdefault(name, {})[kind] = value
        self.optimizer.state.clear()
        for name, values in moments.items():
            parameter = self.masters.values[name]
            self.optimizer.state[parameter] = {
                # AdamW keeps its step count on the CPU
                key: value if key == "step" else distributed.shard_like(value, parameter)
                for key, value in values.items()
            }
        if self.average is not None:
            means = [
                distributed.shard_like(loaded.averaged[name], value)
                for name, value in zip(self.parameters, self.average.values, strict=True)
            ]
            self.average.restore(means, updates=loaded.updates)
        self.version = loaded.version
        try:
            self._predicts()
        except TrainingError as error:
            raise CheckpointError(
                f"checkpoint {folder} cannot be continued: {error}; delete it to go on from the one before"
            ) from None
        if self.run.optimizer.micro_batch == "auto":
            self.micro_batch = loaded.state.micro_batch
        return loaded.state


def _held(batch: Sequence[Group], blocks: Sequence[Block]) -> dict[int, Trajectory | PackedTrajectory]:
    """The trajectories of the groups that these blocks are of, in the blocks' order."""
    found: dict[int, Trajectory | PackedTrajectory] = {}
    for place in dict.fromkeys(block.place for block in blocks):
        trajectory = batch[place][1]
        assert trajectory is not None  # whoever learns a block was sent its group
        found[place] = trajectory
    return found


def scaled(plan: Credit, value: float, by: Sequence[float] | None) -> tuple[float, ...]:
    """`value` at each step, times the step's `by` over the trained steps' mean of it (None: the same at all)."""
    if by is None:
        return (value,) * len(plan.steps)
    mean = sum(by[index] for index in plan.trained) / len(plan.trained)
    return tuple(value * part / mean for part in by)
