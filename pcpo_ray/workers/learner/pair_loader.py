"""Pair loader: groups as they reach the learner in, batches of (image, trained step) pairs on its device out.

Shapes: N images of a group, K trained steps, B pairs of a pass, `...` one image's latents.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pcpo_ray import config
from pcpo_ray.data.tensors import Conditioning, in_one_piece, of_rows, sent_to
from pcpo_ray.data.types import Size, Trajectory
from pcpo_ray.errors import TrainingError
from pcpo_ray.models.policy import Policy
from pcpo_ray.models.steps import trained_per_group
from pcpo_ray.workers.learner import micro_batches, mini_batches
from pcpo_ray.workers.learner.distributed import Rank
from pcpo_ray.workers.learner.mini_batches import Block
from pcpo_ray.workers.packing import PackedTrajectory, unpack_trajectory

SampledGroup = tuple[int, Trajectory | PackedTrajectory | None, Sequence[float]]
"""The version that sampled a group, its trajectory (None where another rank trains on it), its images' advantages."""

Trajectories = Mapping[int, Trajectory | PackedTrajectory]
"""Groups' trajectories by their place in the batch."""


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """The pairs of one pass, one row per pair.

    `steps` are indices into the sampler's T timesteps. `indices` are the same per block, as Python ints: reading them
    from a GPU would synchronise. `size` is that of all their prompts. `weights` are those of measured credit.
    """

    blocks: Sequence[Block]
    indices: Sequence[int]
    steps: Int[Tensor, " B"]
    latents: Float[Tensor, "B ..."]
    predictions: Float[Tensor, "B ..."]
    noises: Float[Tensor, "B ..."]
    log_probs: Float[Tensor, " B"]
    conditioning: Conditioning
    size: Size | None = None
    weights: Float[Tensor, " B"] | None = None

    @property
    def lengths(self) -> list[int]:
        """The number of pairs in each block."""
        return [len(block) for block in self.blocks]

    def apart(self) -> list["PairBatch"]:
        """Split into a batch per block, each with the images that the sampler passed through the network together."""
        ends = itertools.accumulate(self.lengths)
        whole = [slice(end - len(block), end) for end, block in zip(ends, self.blocks, strict=True)]
        names = ("steps", "latents", "predictions", "noises", "log_probs")
        return [
            PairBatch(
                blocks=[block],
                indices=[index],
                **{name: getattr(self, name)[rows] for name in names},
                conditioning={name: value[rows] for name, value in self.conditioning.items()},
                size=self.size,
                weights=None if self.weights is None else self.weights[rows],
            )
            for block, index, rows in zip(self.blocks, self.indices, whole, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class OpenedGroup:
    """A group's trajectory on the device, from its image number `first` on."""

    trajectory: Trajectory
    first: int = 0

    def rows(self, block: Block) -> slice:
        """Return where a block's images are in `trajectory`."""
        return slice(block.rows.start - self.first, block.rows.stop - self.first)


class PairLoader:
    """Cuts groups into blocks, plans the passes, and loads each pass's pairs onto the policy's device."""

    def __init__(self, run: config.Run, policy: Policy, rank: Rank) -> None:
        self.config = run
        self.policy = policy
        self.rank = rank

    def blocks(self, batch: Sequence[SampledGroup], places: Sequence[int]) -> list[Block]:
        """Cut the groups at these places of a batch into blocks, whichever rank has their trajectories.

        Raises TrainingError for a trajectory with another number of images or trained steps than the config's.
        """
        trained = trained_per_group(self.config.sampling.subset, len(self.policy.credit.trained))
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
        asked = self.config.optimizer.micro_batch
        length = mini_batches.length_of(self.config, asked if isinstance(asked, int) else None)
        return mini_batches.cut_into_blocks({place: (len(batch[place][2]), trained) for place in places}, length)

    def passes(self, blocks: Sequence[Block], groups: Trajectories, size: int | None) -> list[list[Block]]:
        """Plan passes through the network of at most `size` pairs each (None: one block each)."""
        count = micro_batches.blocks_per_pass(mini_batches.length_of(self.config, size), size)
        return micro_batches.passes(blocks, groups, count)

    def run(
        self,
        groups: Trajectories,
        passes: Sequence[Sequence[Block]],
        work: Callable[[PairBatch], None],
        dummy: Callable[[], Any],
        last: Callable[[], Any] = lambda: None,
    ) -> Exception | None:
        """Do `work` on the pairs of each pass, and return this rank's failure.

        FSDP gathers parameters on all ranks together. So `dummy` passes follow until this rank has made as many as the
        busiest one, and a failure within a pass, which the others take part in, is raised at once. Each rank calls
        `last` before the last of these passes.
        """
        most = self._most_passes(len(passes))
        begun, ended, failure = 0, 0, None
        try:
            for pairs in self.pairs(groups, passes):
                begun += 1
                if begun == most:
                    last()
                work(pairs)
                del pairs  # may be views of a group, which must be freed before the next one is unpacked
                ended += 1
        except Exception as error:
            if self.rank.sharded and begun != ended:
                raise self.rank.told(error) from error
            failure = error
        for number in range(ended + 1, most + 1):
            if number == most:
                last()
            dummy()
        return failure

    def _most_passes(self, passes: int) -> int:
        """Return the busiest rank's number of passes if ranks gather parameters together, else 0.

        Ask before the first pass: during one, other ranks would wait for this collective.
        """
        if not self.rank.sharded:
            return 0
        return int(self.rank.largest(torch.tensor(passes, device=self.policy.device)))

    def pairs(self, groups: Trajectories, passes: Sequence[Sequence[Block]]) -> Iterator[PairBatch]:
        """Yield each pass's pairs. Only the groups of one pass are unpacked at a time, and only the images needed."""
        opened: dict[int, OpenedGroup] = {}
        rows: dict[int, slice] = {}
        for block in (block for blocks in passes for block in blocks):
            before = rows.get(block.place, block.rows)
            rows[block.place] = slice(min(before.start, block.rows.start), max(before.stop, block.rows.stop))
        indices = {place: micro_batches.steps_of(groups[place]) for place in rows}
        every_step = self.to_device(passes, lambda block: [indices[block.place][block.k]] * len(block), torch.long)
        for blocks, steps in zip(passes, every_step, strict=True):
            wanted = dict.fromkeys(block.place for block in blocks)
            opened = {place: opened[place] for place in wanted if place in opened}
            for place in wanted:
                if place not in opened:
                    opened[place] = self.open(groups[place], rows[place])
            yield gather(blocks, [indices[block.place][block.k] for block in blocks], opened, steps)

    def to_device(
        self, passes: Sequence[Sequence[Block]], values_of: Callable[[Block], Sequence[float]], dtype: torch.dtype
    ) -> Sequence[Float[Tensor, " B"] | Int[Tensor, " B"]]:
        """Copy per-pair values for every pass to the device at once; a copy per pass would stall each pass."""
        values = [value for blocks in passes for block in blocks for value in values_of(block)]
        lengths = [sum(len(block) for block in blocks) for blocks in passes]
        copied: tuple[Tensor, ...] = sent_to(torch.tensor(values, dtype=dtype), self.policy.device).split(lengths)
        return copied

    def open(self, trajectory: Trajectory | PackedTrajectory, rows: slice) -> OpenedGroup:
        """Put the images at `rows` on the device; an unpacked trajectory goes there whole.

        A packed trajectory is unpacked anew each time, so that few groups are unpacked at once.
        """
        if isinstance(trajectory, PackedTrajectory):
            unpacked = unpack_trajectory(self.policy, trajectory, rows).to(self.policy.device)
            return OpenedGroup(trajectory=unpacked, first=rows.start)
        return OpenedGroup(trajectory=trajectory.to(self.policy.device))


def trajectories_of(batch: Sequence[SampledGroup], blocks: Sequence[Block]) -> dict[int, Trajectory | PackedTrajectory]:
    """Collect the trajectories of the groups that these blocks belong to, in the blocks' order."""
    found: dict[int, Trajectory | PackedTrajectory] = {}
    for place in dict.fromkeys(block.place for block in blocks):
        trajectory = batch[place][1]
        assert trajectory is not None  # a rank is sent every group of which it trains on a block
        found[place] = trajectory
    return found


def gather(
    blocks: Sequence[Block], indices: Sequence[int], groups: Mapping[int, OpenedGroup], steps: Int[Tensor, " B"]
) -> PairBatch:
    """Gather the pairs of one pass from opened groups."""
    names = ("latents", "predictions", "noises", "log_probs")
    where = [(groups[one.place].trajectory, groups[one.place].rows(one), one.k) for one in blocks]
    texts = [of_rows(group.conditioning, rows, len(group)) for group, rows, _ in where]
    measured = [group.weights[rows, k] for group, rows, k in where if group.weights is not None]
    return PairBatch(
        blocks=blocks,
        indices=indices,
        steps=steps,
        **{name: _together([getattr(group, name)[rows, k] for group, rows, k in where]) for name in names},
        conditioning=in_one_piece({name: _together([rows[name] for rows in texts]) for name in texts[0]}),
        size=where[0][0].size,
        weights=_together(measured) if measured else None,
    )


def _together(rows: Sequence[Tensor]) -> Tensor:
    # contiguous, as the sampler had them: half-precision kernels add up in another order over strided rows
    return rows[0].contiguous() if len(rows) == 1 else torch.cat(tuple(rows))
