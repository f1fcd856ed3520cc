"""The learner: training groups in, one batch's updates to the weights. One rank's process."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray import config
from pcpo_ray.algorithm.diagnostics import TimestepDiagnostics
from pcpo_ray.data.parked import parked
from pcpo_ray.data.updates import DriverState, MicroBatchChoice, Update
from pcpo_ray.data.weights import Manifest, WeightSnapshot
from pcpo_ray.errors import PcpoError, TrainingError
from pcpo_ray.models import kernels
from pcpo_ray.models.policy import Policy
from pcpo_ray.workers import canary, precision
from pcpo_ray.workers.learner import distributed, mini_batches, optimizers, sharding
from pcpo_ray.workers.learner.autotune import Autotuner
from pcpo_ray.workers.learner.distributed import Rank
from pcpo_ray.workers.learner.ema import EMA
from pcpo_ray.workers.learner.learning_rate import LearningRate
from pcpo_ray.workers.learner.lent import LentSampler
from pcpo_ray.workers.learner.loss import Loss, check_unchanged, loss_scale
from pcpo_ray.workers.learner.masters import Masters
from pcpo_ray.workers.learner.mini_batches import Block
from pcpo_ray.workers.learner.movement import Movement
from pcpo_ray.workers.learner.old_predictions import OldPredictions, predicted_before
from pcpo_ray.workers.learner.pair_loader import PairBatch, PairLoader, SampledGroup, trajectories_of
from pcpo_ray.workers.learner.snapshots import Snapshots

BAD_GRADIENTS = 3
"""Optimizer steps in a row that may be skipped because their gradient is not finite; one more ends the run."""

ALONE = Rank()


class Learner:
    """Trains the policy in lock-step with the other ranks. `version` counts the batches trained on.

    `parameters` are the network's own, `masters` the float32 weights that it steps. `micro_batch` is the number of
    (image, step) pairs per pass: None for as many as the sampler had, or while it is still to be chosen.
    """

    def __init__(self, run: config.Run, device: torch.device, rank: Rank = ALONE) -> None:
        from accelerate import Accelerator

        self.run, self.rank = run, rank
        if run.optimizer.compile:
            kernels.check_compiler("optimizer.compile", device)
        self.policy = Policy(run, device, cut=rank.sharded)
        self.dtypes = {name: parameter.dtype for name, parameter in self.policy.denoiser.trainable().items()}
        if rank.sharded:
            sharding.shard(self.policy.denoiser.module, rank, device)
        self.version, self.bad_gradients, self.loss_scale = 0, 0, 1.0
        self.stepping = False
        """True while the weights are between two versions."""
        self.loader = PairLoader(run, self.policy, rank)
        self.loss = Loss(self.policy, run.objective)
        self.parameters = self.policy.denoiser.trainable()
        self.masters = Masters(self.parameters)
        optimization = run.optimizer
        optimizer = optimizers.make(optimization, self.masters.values)
        self.learning_rate = LearningRate(run)
        self.micro_batch = None if optimization.micro_batch == "auto" else optimization.micro_batch
        self.accelerator = Accelerator(mixed_precision=optimization.mixed_precision, cpu=device.type == "cpu")
        self.policy.denoiser.module, self.optimizer = self.accelerator.prepare(self.policy.denoiser.module, optimizer)
        if optimization.compile:
            kernels.compile_blocks(self.policy.denoiser.module)
        self.ema = None if optimization.average is None else EMA(self.masters.values.values(), optimization.average)
        means = [] if self.ema is None else self.ema.values
        self.resting = parked(run.workers.park, lambda: [*optimizers.state_tensors(self.optimizer), *means], device)
        self.autotuner = Autotuner(
            self.loader, self.loss, self.masters, self.optimizer, self.accelerator.backward, self.rank
        )
        self.snapshots = Snapshots(self.policy, self.masters, self.optimizer, self.ema, self.resting, rank, self.dtypes)
        # dropout would make the ratio at unchanged weights differ from 1
        self.policy.denoiser.module.eval()
        self.lent: LentSampler | None = None

    def lend(self) -> LentSampler:
        """Return a sampler on this learner's network, to be used between the calls of this learner."""
        self.lent = LentSampler(self.run, self.policy, self.rank)
        return self.lent

    def prove(self, manifest: Manifest) -> str:
        """Have the lent sampler show that it holds these weights (LentSampler.prove); all ranks together."""
        assert self.lent is not None
        return self.lent.prove(manifest)

    def update(self, step: int, batch: Sequence[SampledGroup]) -> Update:
        """Train on one batch, giving version `step`; every rank gets the whole list and returns the same.

        Raises TrainingError, the same on every rank: if `step` is not the next one, if a log-ratio at unchanged weights
        is not 0, if a log-ratio or a weight is not finite, and after more than BAD_GRADIENTS bad gradients in a row. If
        a rank fails for another reason, every one of several ranks raises a RankError.
        """
        self._take_back()
        try:
            return self._update(step, batch)
        except (PcpoError, distributed.RankError):
            raise
        except Exception as error:
            told = self.rank.told(error)
            if told is error:
                raise
            raise told from error

    def _update(self, step: int, batch: Sequence[SampledGroup]) -> Update:
        started = time.perf_counter()
        if step != self.version + 1:
            raise TrainingError(f"asked for update {step} at version {self.version}; expected {self.version + 1}")
        rate = self.learning_rate.set(self.optimizer, step)
        noted = TimestepDiagnostics(len(self.policy.schedule))
        parts = mini_batches.split_groups(self.run.optimizer, len(batch), seed=self.run.seed, step=step)
        minibatch_blocks = [self.loader.blocks(batch, part) for part in parts]
        shares = [mini_batches.rank_share(blocks, self.rank.index, self.rank.count) for blocks in minibatch_blocks]
        chosen = self.autotune(batch, minibatch_blocks[0], shares[0])
        movement = Movement(self.masters.values.values(), self.rank)
        old = predicted_before(
            self.loader, batch, shares, self.micro_batch, version=self.version, take=self.loss.take_old
        )
        # in the first optimizer step the log-ratio itself is the lag: nothing has moved since
        lags = self._lags(batch, mini_batches.joined(shares)) if len(parts) > 1 and old is None else {}
        taken = []
        for part, (places, blocks, own) in enumerate(zip(parts, minibatch_blocks, shares, strict=True)):
            fresh = old is not None or all(batch[place][0] == self.version for place in places)
            count, begins = sum(map(len, blocks)), part == 0
            taken.append(
                self._minibatch(batch, own, lags, noted, old, count=count, begins=begins, unchanged=begins and fresh)
            )
            if begins:
                first = noted.max_log_ratio.max()
        moved = movement.measured(step)
        self._merge(noted)
        losses, divergences, norms = zip(*taken, strict=True)
        good = [norm for norm in norms if norm is not None]
        update = Update(
            version=step,
            loss=float(np.mean(losses)),
            kl=float(np.mean(divergences)) if self.run.objective.kl else None,
            learning_rate=rate,
            gradient_norm=float(np.mean(good)) if good else math.nan,
            skipped=len(norms) - len(good),
            update_ratio=moved.update_ratio,
            moved_fraction=moved.moved_fraction,
            importance=self.loss.take_importance(self.rank),
            mismatch=None if old is None else old.measured,
            first_log_ratio=float(self.rank.largest(first.to(self.policy.device))),
            diagnostics={"overall": noted.overall(), "per_timestep": self.loss.per_timestep(noted, old)},
            seconds=time.perf_counter() - started,
            micro_batch=chosen,
        )
        self.version, self.stepping = step, False  # last: what fails before leaves no version
        return update

    def _merge(self, noted: TimestepDiagnostics) -> None:
        """Add up the diagnostics of all ranks."""
        device = self.policy.device
        noted.sums = self.rank.total(noted.sums.to(device)).cpu()
        noted.max_log_ratio = self.rank.largest(noted.max_log_ratio.to(device)).cpu()

    def autotune(
        self, batch: Sequence[SampledGroup], blocks: Sequence[Block], own: Sequence[Block]
    ) -> MicroBatchChoice | None:
        """Choose the micro-batch on a mini-batch of `blocks` (this rank's: `own`), if the config wants that still."""
        if self.run.optimizer.micro_batch != "auto" or self.micro_batch is not None:
            return None
        chosen = self.autotuner.choose(batch, blocks, own)
        self.micro_batch = chosen.size
        return chosen

    def _lags(self, batch: Sequence[SampledGroup], own: Sequence[Block]) -> dict[int, Float[Tensor, "N K 2"]]:
        """Compare the present weights with those that sampled each older group of this rank (Loss.lag_now)."""
        if self.run.objective.correction is None:
            return {}
        older = [block for block in own if batch[block.place][0] < self.version]
        held = trajectories_of(batch, older)
        shapes = {place: (len(one), len(one.steps)) for place, one in held.items()}
        found = {place: torch.zeros(*shape, 2, device=self.policy.device) for place, shape in shapes.items()}

        def compare(pairs: PairBatch) -> None:
            prediction = self.loss.predict(pairs)
            lag = self.loss.lag_now(prediction, self.loss.log_ratio(prediction, pairs), pairs)
            for block, one in zip(pairs.blocks, lag.split(pairs.lengths), strict=True):
                found[block.place][block.rows, block.k] = one

        with torch.no_grad():
            passes = self.loader.passes(older, held, self.micro_batch)
            failure = self.loader.run(held, passes, compare, lambda: canary.output(self.policy))
        self.rank.agreed(torch.zeros(1, device=self.policy.device), failure)
        return found

    def _minibatch(
        self,
        batch: Sequence[SampledGroup],
        own: Sequence[Block],
        lags: Mapping[int, Float[Tensor, "N K 2"]],
        noted: TimestepDiagnostics,
        old: OldPredictions | None,
        *,
        count: int,
        begins: bool,
        unchanged: bool,
    ) -> tuple[float, float, float | None]:
        """Make one optimizer step on the mean loss over `count` (image, step) pairs, of which the `own` are here.

        The first one `begins` the update. Log-ratios are 0 where weights are `unchanged`. Returns the loss, the mean KL
        divergence that it contains, and the gradient's norm, which is None if the gradient was not finite and the
        optimizer step was skipped.
        """
        device = self.policy.device
        dtypes = (self.policy.computes_in, *self.dtypes.values())
        self.loss_scale = loss_scale(dtypes, math.prod(self.policy.denoiser.latent_shape), count)
        older = {block.place for block in own if batch[block.place][0] < self.version}
        held = trajectories_of(batch, own)
        passes = self.loader.passes(own, held, self.micro_batch)
        advantages = iter(self.loader.to_device(passes, lambda block: batch[block.place][2][block.rows], torch.float32))
        total = torch.zeros(2, device=device)

        def accumulate(pairs: PairBatch) -> None:
            loss, divergence = self.loss.of_pass(pairs, next(advantages), lags, older, noted, count=count, old=old)
            self._backward(loss)
            total.add_(torch.stack([loss.detach(), divergence.detach()]))

        last = sharding.reduce_last(self.policy.denoiser.module, adapter=isinstance(self.run.model.train, config.Lora))
        failure = self.loader.run(held, passes, accumulate, self._dummy_pass, last)
        try:
            noted.count()
        except TrainingError as error:
            failure = failure or error
        total = self.rank.agreed(total, failure)
        if unchanged and self.run.objective.log_ratio != "replay":
            check_unchanged(self.rank.largest(noted.max_log_ratio.clone().to(device)).tolist(), self.version)
        if begins and old is not None:
            old.check(self.rank, self.version, most=self.run.objective.max_mismatch)
        norm = self._step()
        loss, divergence = total.tolist()
        return loss, divergence, norm

    def _dummy_pass(self) -> None:
        """Run the canary forward and backward with a gradient of 0, for ranks that gather parameters in a pass."""
        prediction = canary.output(self.policy)
        if self.run.objective.kl:
            with torch.no_grad(), self.policy.denoiser.without_adapter():
                canary.output(self.policy)
        self._backward(0.0 * prediction.sum())

    def _backward(self, loss: Tensor) -> None:
        # fully_shard averages the ranks' gradients, and the loss needs their sum
        self.accelerator.backward(loss * self.loss_scale * (self.rank.count if self.rank.sharded else 1))

    def _step(self) -> float | None:
        """Reduce and clip the gradient, step the optimizer and the EMA, and return the norm before clipping.

        A gradient that is not finite changes nothing and gives None. Raises TrainingError after more than BAD_GRADIENTS
        of them in a row.
        """
        trained = list(self.masters.values.values())
        self.rank.add_gradients(trained)
        if self.loss_scale != 1.0:
            torch._foreach_div_([p.grad for p in trained if p.grad is not None], self.loss_scale)
        most = self.run.optimizer.max_gradient_norm
        norm = float(sharding.gather_whole(self.accelerator.clip_grad_norm_(trained, most)))
        if math.isfinite(norm):
            self.bad_gradients = 0
            self.stepping = True
            with self.resting.awake():
                self.optimizer.step()
                self.masters.write_back()
                if self.ema is not None:
                    self.ema.update()
        else:
            self.bad_gradients += 1
        self.optimizer.zero_grad()
        if self.bad_gradients > BAD_GRADIENTS:
            raise TrainingError(
                f"{self.bad_gradients} gradients in a row are not finite (norm {norm}), in the update from version "
                f"{self.version}; {precision.remedy(self.run, self.version)}"
            )
        return norm if math.isfinite(norm) else None

    def weights(self, *, averaged: bool = False, over: WeightSnapshot | None = None) -> WeightSnapshot:
        """Copy the trained weights, or their EMA, to send; the memory of `over` may be reused.

        With fsdp2 the first rank asks, and the others `assist`.
        """
        with self._taken_back():
            return self.snapshots.pack(self.version, averaged=averaged, over=over)

    def manifest(self) -> Manifest:
        """Describe the trained weights, for a sampler that shares their memory; one rank alone."""
        with self._taken_back():
            return self.snapshots.manifest(self.version)

    def assist(self, *, averaged: bool = False) -> None:
        """Help the first rank to gather the weights that it sends."""
        with self._taken_back():
            self.snapshots.assist(self.version, averaged=averaged)

    def buckets(self) -> int:
        """Count the buckets in which the weights are sent."""
        return self.snapshots.buckets()

    def size(self, older: int) -> int:
        """Return the bytes of a checkpoint with so many older versions."""
        return self.snapshots.size(older)

    def save(
        self,
        folder: Path,
        state: DriverState,
        *,
        older: Iterable[WeightSnapshot] = (),
        allowed: Callable[[], None] = lambda: None,
    ) -> None:
        """Write a checkpoint (Snapshots.save). Raises TrainingError, with nothing written, within a broken update."""

        def whole_and_allowed() -> None:
            if self.stepping:
                raise TrainingError(
                    f"the update from version {self.version} was broken off, with a part of its steps made"
                )
            if self.version != state.step:  # nobody could continue from such a checkpoint
                raise TrainingError(f"step {state.step} is to be saved, and the learner holds version {self.version}")
            allowed()

        with self._taken_back():
            self.snapshots.save(folder, self.version, state, older=older, allowed=whole_and_allowed)

    def restore(self, folder: Path) -> DriverState:
        """Continue from a checkpoint. Raises CheckpointError (Snapshots.restore)."""
        self._take_back()
        loaded = self.snapshots.restore(folder)
        self.version, self.stepping = loaded.version, False
        if self.run.optimizer.micro_batch == "auto":
            self.micro_batch = loaded.state.micro_batch
        return loaded.state

    def _take_back(self) -> None:
        if self.lent is not None:
            self.lent.end()

    def _taken_back(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.lent is None else self.lent.interrupted()
