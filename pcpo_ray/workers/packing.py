"""Packing of trajectories to cross processes: predictions and little else, unpacked to the same bits.

Noise is drawn again from its seeds (Policy.initial_noise, step_noise), and latents are computed again by the affine
recursion

    x_next = scale * x + gain * prediction + std * z

with the order of operations and the roundings of sampling. So a packed trajectory holds the predictions of the trained
steps. It holds latents only where they do not follow from the step before: that one was not trained (a window, a
fraction of the steps), or stepped with another prediction (credit `interpolate`). The m predictions of a gap would
bridge it too, but with fewer bytes only if m is 1 and they have half the latents' width. Where pairs are noised images,
all latents follow from the final ones and the noise.

Shapes: N images of a group, K trained steps, `...` one image's latents.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from torch import Tensor

from pcpo_ray.algorithm.credit import Credit
from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.algorithm.transitions import renoised
from pcpo_ray.data.tensors import from_numpy, to_numpy
from pcpo_ray.data.types import Size, Task, Trajectory
from pcpo_ray.errors import TrainingError
from pcpo_ray.models.policy import ALL, Policy
from pcpo_ray.workers import precision

Array = tuple[str, np.ndarray]
"""A tensor's dtype and its bits (tensors.to_numpy), which an object store hands over without a copy."""


@dataclass(frozen=True, kw_only=True)
class PackedTrajectory:
    """One group's trajectory without the noise.

    `latents` are those of `sent_steps`, or the final ones. `predictions` have the network's dtype if that loses
    nothing. `digests`, one per image, check the values that are computed again; `machine` names the machine that
    computed them first. `weights` are those of credit that was measured on it.
    """

    task: Task
    steps: tuple[int, ...]
    predictions: Array
    latents: Array
    log_probs: Array
    conditioning: Mapping[str, Array]
    digests: tuple[str, ...]
    machine: str
    weights: Array | None = None

    def __len__(self) -> int:
        return self.task.images

    @property
    def size(self) -> Size | None:
        """The size of its images, if it is the prompt's own."""
        return self.task.prompt.size

    @property
    def bytes(self) -> int:
        """The bytes of its arrays."""
        measured = () if self.weights is None else (self.weights,)
        arrays = (self.predictions, self.latents, self.log_probs, *self.conditioning.values(), *measured)
        return sum(array.nbytes for _, array in arrays)


def sent_steps(credit: Credit) -> tuple[int, ...]:
    """List the trained steps whose latents do not follow from the trained step before, or at index 0 from the seeds."""
    follows = {0, *(index + 1 for index in credit.trained if credit.mix[index] == 1.0)}
    return tuple(index for index in credit.trained if index not in follows)


def pack_trajectory(policy: Policy, task: Task, trajectory: Trajectory) -> PackedTrajectory:
    """Pack the trajectory of a task."""
    with policy.sized(task.prompt.size):
        sent = set(sent_steps(policy.credit_of(task.step, task.position)))
    steps = tuple(trajectory.steps.tolist())
    needed = trajectory.latents[:, [k for k, index in enumerate(steps) if index in sent]]
    return PackedTrajectory(
        task=task,
        steps=steps,
        predictions=to_numpy(_narrow(trajectory.predictions, policy.computes_in)),
        latents=to_numpy(needed if trajectory.clean is None else trajectory.clean[:, None]),
        log_probs=to_numpy(trajectory.log_probs),
        conditioning={name: to_numpy(row) for name, row in trajectory.conditioning.items()},
        digests=_digests(trajectory),
        machine=_machine(),
        weights=None if trajectory.weights is None else to_numpy(trajectory.weights),
    )


def unpack_trajectory(policy: Policy, packed: PackedTrajectory, rows: slice = ALL) -> Trajectory:
    """Unpack the trajectory of the images at `rows`, exactly and on the CPU.

    Raises TrainingError if this machine computes other bits.
    """
    with policy.sized(packed.size):
        return _unpacked(policy, packed, rows)


def _unpacked(policy: Policy, packed: PackedTrajectory, rows: slice) -> Trajectory:
    task = packed.task
    credit = policy.credit_of(task.step, task.position)
    if packed.steps != credit.trained:
        raise TrainingError(
            f"the group at place {task.position} of step {task.step} was sampled for the steps {packed.steps}; "
            f"the learner's config trains {credit.trained}: give both the same config"
        )
    storage = getattr(torch, policy.run.sampling.storage)
    noises = policy.step_noise(task, rows)[:, list(packed.steps)].to(storage)
    predictions = _of(packed.predictions, rows).to(storage)
    latents, clean = torch.empty_like(predictions), None
    if policy.renoised:
        clean = _of(packed.latents, rows)[:, 0]
        assert isinstance(policy.schedule, FlowSchedule)  # config.Run has checked it
        for k, index in enumerate(packed.steps):
            latents[:, k] = renoised.noised(policy.schedule, index, clean, noises[:, k])
            noises[:, k] = renoised.residual(credit.steps[index], predictions[:, k], clean, noises[:, k])
    else:
        after = policy.initial_noise(task, rows).to(storage)
        sent = dict(zip(sent_steps(credit), _of(packed.latents, rows).unbind(1), strict=True))
        for k, index in enumerate(packed.steps):
            latents[:, k] = before = sent.get(index, after)
            after = credit.steps[index].moved(before, predictions[:, k], noises[:, k])
    opened = Trajectory(
        steps=torch.tensor(packed.steps),
        latents=latents,
        predictions=predictions,
        noises=noises,
        log_probs=_of(packed.log_probs, rows),
        conditioning={name: from_numpy(row) for name, row in packed.conditioning.items()},
        size=packed.size,
        weights=None if packed.weights is None else _of(packed.weights, rows),
        clean=clean,
    )
    if _digests(opened) != packed.digests[rows]:
        if not latents.isfinite().all():  # NaN bits may differ on any machine
            raise TrainingError(
                f"the group at place {task.position} of step {task.step} has latents that are not finite; "
                f"{precision.remedy(policy.run, task.version)}"
            )
        raise TrainingError(
            f"the group at place {task.position} of step {task.step} has other noise or latents here ({_machine()}) "
            f"than where it was sampled ({packed.machine}); have samplers and learner run on CPUs of one kind, with "
            "the same torch, or set ATEN_CPU_CAPABILITY=default for all of them"
        )
    return opened


def _narrow(predictions: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to `dtype` if that is exact, as for a half-precision network's predictions without guidance."""
    if dtype.itemsize >= predictions.dtype.itemsize:
        return predictions
    narrow = predictions.to(dtype)
    return narrow if torch.equal(narrow.to(predictions.dtype), predictions) else predictions


def _of(array: Array, rows: slice) -> Tensor:
    name, values = array
    return from_numpy((name, values[rows]))


def _digests(trajectory: Trajectory) -> tuple[str, ...]:
    """Hash each image's latents and noise, which `unpack_trajectory` computes again."""
    found = []
    for latents, noises in zip(to_numpy(trajectory.latents)[1], to_numpy(trajectory.noises)[1], strict=True):
        digest = xxhash.xxh3_128(latents.data)
        digest.update(noises.data)
        found.append(digest.hexdigest())
    return tuple(found)


def _machine() -> str:
    """Describe the software and hardware that the bits of noise depend on."""
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
