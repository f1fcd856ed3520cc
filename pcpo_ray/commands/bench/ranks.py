"""Ranks: the fraction of the learner ranks' passes that are idle. Counted, not timed."""

import dataclasses
from collections.abc import Sequence

from pcpo_ray import config
from pcpo_ray.commands.bench.rows import Goal, Row, Say
from pcpo_ray.models import steps
from pcpo_ray.workers.learner import micro_batches, mini_batches

RANKS, GROUPS = 4, 2


def measured_on(run: config.Run) -> config.Run:
    return dataclasses.replace(
        run,
        rollout=dataclasses.replace(run.rollout, prompts=GROUPS),
        optimizer=dataclasses.replace(run.optimizer, minibatches=1, epochs=1),
        workers=dataclasses.replace(
            run.workers, learner=dataclasses.replace(run.workers.learner, ranks=RANKS, strategy="ddp")
        ),
    )


def measure(run: config.Run, repeats: int, say: Say) -> Sequence[Row]:
    """Count one mini-batch with fewer groups than ranks, in which all ranks wait for the busiest one."""
    trained, asked = steps.trained_steps(run), run.optimizer.micro_batch
    size = asked if isinstance(asked, int) else None
    length = mini_batches.length_of(run, size)
    blocks = mini_batches.cut_into_blocks(dict.fromkeys(range(GROUPS), (run.rollout.images, trained)), length)
    shared = [mini_batches.rank_share(blocks, rank, RANKS) for rank in range(RANKS)]
    grouped = [[block for block in blocks if block.place % RANKS == rank] for rank in range(RANKS)]
    together = micro_batches.blocks_per_pass(length, size)
    passes, before = ([_passes(own, together) for own in shares] for shares in (shared, grouped))
    row = Row(
        name=f"idle, {RANKS} ranks on {GROUPS} groups",
        unit="of all passes",
        figures=(_idle(passes),),
        limits=(_idle(before),),
        limit="the same where each rank learns whole groups",
        goal=Goal(bound="at most", value=0.1, of="figure"),
        facts={"passes of each rank": passes, "where each learns whole groups": before, "images of a block": length},
    )
    return [row]


def _passes(blocks: Sequence[mini_batches.Block], together: int) -> int:
    kinds: dict[int, list[mini_batches.Block]] = {}
    for block in blocks:
        kinds.setdefault(len(block), []).append(block)
    return sum(len(micro_batches.split(same, together)) for same in kinds.values())


def _idle(passes: Sequence[int]) -> float:
    return 1 - sum(passes) / (len(passes) * max(passes))
