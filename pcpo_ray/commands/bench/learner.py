"""The learner: an update on a whole batch, against bare forward and backward passes of its (sample, step) pairs."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pcpo_ray import config
from pcpo_ray.commands.bench import bare, work
from pcpo_ray.commands.bench.rows import Goal, Row, Say, alternate, timed
from pcpo_ray.data.tensors import Conditioning, device_here, of_rows
from pcpo_ray.data.types import Trajectory
from pcpo_ray.errors import BenchError
from pcpo_ray.models.policy import Policy
from pcpo_ray.workers.learner.learner import Learner

TRIED = 128
"""The number of pairs on which each size of a bare micro-batch is tried."""

RATE = 1e-12
"""A learning rate too small to change the weights: every repeat is a first update and does the same."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """All (sample, step) pairs of a batch, one row per pair."""

    latents: Float[Tensor, "B ..."]
    steps: Int[Tensor, " B"]
    conditioning: Conditioning

    def __getitem__(self, rows: slice) -> "Batch":
        conditioning = {name: row[rows] for name, row in self.conditioning.items()}
        return Batch(latents=self.latents[rows], steps=self.steps[rows], conditioning=conditioning)


def measured_on(run: config.Run) -> config.Run:
    return dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, learning_rate=RATE))


def measure(run: config.Run, repeats: int, say: Say) -> Sequence[Row]:
    """Measure one update on all groups of a batch, and one bare pass over the same pairs, per repeat."""
    device = device_here()
    say("sampling a batch")
    groups = work.sampled(run, device)
    trajectories = [group.trajectory for group in groups]
    torch.set_num_threads(run.workers.learner.threads)
    learner = Learner(run, device)
    policy = learner.policy
    count = run.optimizer.epochs * sum(len(one) * len(one.steps) for one in trajectories)
    advantages = np.linspace(-1.0, 1.0, run.rollout.images).tolist()

    def update() -> float:
        batch = [(learner.version, group.packed, advantages) for group in groups]  # packed, as they reach the learner
        return count / timed(lambda: learner.update(learner.version + 1, batch))

    joined = _joined(trajectories, device)
    tried = {size: _tried(policy, joined, size, run.objective.kl > 0) for size in work.sizes(len(joined.latents))}
    fitting = {size: found for size, found in tried.items() if found is not None}
    if not fitting:
        raise BenchError(f"not even micro-batches of {min(tried)} fit the device; use a smaller model")
    best = max(fitting, key=lambda size: fitting[size])
    say(f"bare pairs/s by micro-batch: {', '.join(f'{size}: {found:.4g}' for size, found in fitting.items())}")
    calls = _calls(policy, joined, best) * run.optimizer.epochs

    def network() -> float:
        return count / timed(lambda: _pass(policy, calls, run.objective.kl > 0))

    figures, limits = alternate(update, network, repeats, say)
    row = Row(
        name="learner",
        unit="pairs/s",
        figures=figures,
        limits=limits,
        limit="forward and backward of the same (sample, step) pairs, nothing else, at the best micro-batch",
        goal=Goal(bound="at least", value=0.95),
        facts={
            "pairs": count,
            "the learner's micro-batch": learner.micro_batch or run.sampling.together(run.rollout.images),
            "best micro-batch": best,
            "bare pairs/s by micro-batch": {str(size): found for size, found in fitting.items()},
            "dtype": run.model.dtype,
            **({"compiled": True} if run.optimizer.compile else {}),
            **({"old predictions": "recomputed"} if run.objective.old_predictions == "recomputed" else {}),
        },
    )
    return [row]


def _joined(trajectories: Sequence[Trajectory], device: torch.device) -> Batch:
    rows = [of_rows(one.conditioning, slice(0, len(one)), len(one)) for one in trajectories for _ in one.steps]
    return Batch(
        latents=torch.cat([one.latents[:, k] for one in trajectories for k in range(len(one.steps))]).to(device),
        steps=torch.cat([one.steps.repeat_interleave(len(one)) for one in trajectories]).to(device),
        conditioning={name: torch.cat([row[name] for row in rows]).to(device) for name in rows[0]},
    )


def _calls(policy: Policy, batch: Batch, size: int) -> list[bare.Call]:
    """Make calls of so many pairs each, whatever their steps."""
    parts = [batch[start : start + size] for start in range(0, len(batch.latents), size)]
    return [bare.call(policy, part.latents, part.steps, part.conditioning) for part in parts]


def _tried(policy: Policy, batch: Batch, size: int, reference: bool) -> float | None:
    """Measure pairs/s with micro-batches of a size, the better of two; None if they do not fit the device."""
    part = batch[: max(size, TRIED)]
    try:
        calls = _calls(policy, part, size)
        _pass(policy, calls[:1], reference)
        seconds = min(timed(lambda: _pass(policy, calls, reference)) for _ in range(2))
    except torch.OutOfMemoryError:
        return None
    return len(part.latents) / seconds


def _pass(policy: Policy, calls: Sequence[bare.Call], reference: bool) -> None:
    """Run each call forward and backward, after the reference's forward if the objective needs one."""
    for call in calls:
        if reference:
            with torch.no_grad():
                bare.reference(policy, call)
        bare.forward(policy, call).float().square().mean().backward()
    for parameter in policy.denoiser.trainable().values():
        parameter.grad = None
