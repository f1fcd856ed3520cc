"""Growth of a step's seconds with samplers and with samples, on simulated work, one batch at a time."""

from collections.abc import Sequence

from pcpo_ray import config
from pcpo_ray.commands.bench import simulated
from pcpo_ray.commands.bench.rows import Row, Say
from pcpo_ray.commands.bench.simulated import IMAGES
from pcpo_ray.commands.bench.waiting import settled
from pcpo_ray.training.loop import Loop

SAMPLERS = (1, 2, 4, 8)
GROUPS = (4, 16, 64)
"""Numbers of groups, each of 16 images: 64 to 1,024 samples."""

SAMPLERS_OF_GROUPS = 4
GROUPS_OF_SAMPLERS = 16
SCORING = 0.01


def measured_on(run: config.Run) -> config.Run:
    """Replace the config by simulated work: 16 ms of a sampler and 2 ms of the learner per image."""
    return simulated.run(simulated.Sampling, samplers=max(SAMPLERS), prompts=GROUPS_OF_SAMPLERS, scoring=SCORING)


def measure(run: config.Run, repeats: int, say: Say) -> Sequence[Row]:
    """Measure one step at each number of samplers and at each number of samples per repeat."""
    points = [(samplers, GROUPS_OF_SAMPLERS) for samplers in SAMPLERS]
    points += [(SAMPLERS_OF_GROUPS, groups) for groups in GROUPS if groups != GROUPS_OF_SAMPLERS]
    found: dict[tuple[int, int], list[float]] = {point: [] for point in points}
    with simulated.looped(run, say) as loop:
        _resize(loop, max(SAMPLERS))
        simulated.steps(loop, 1, staleness=0, prompts=max(SAMPLERS))  # afterwards each sampler has its weights
        for repeat in range(repeats):
            for samplers, groups in points:
                _resize(loop, samplers)
                found[samplers, groups] += simulated.steps(loop, 1, staleness=0, prompts=groups)
            say(f"repeat {repeat + 1} of {repeats}")
    return [
        Row(
            name=f"{samplers} samplers, {groups * IMAGES:,} samples",
            unit="s a step",
            figures=tuple(seconds),
            limits=(sleeps(samplers, groups),) * repeats,
            limit="the simulated work itself: sampling by all samplers, one group scored, the batch learned",
        )
        for (samplers, groups), seconds in found.items()
    ]


def sleeps(samplers: int, groups: int) -> float:
    """Return the seconds that a step would take if only the work took any."""
    turns = -(-groups // samplers)
    network = simulated.Sampling
    return (
        turns * IMAGES * simulated.STEPS * network.sample + SCORING + groups * IMAGES * simulated.STEPS * network.learn
    )


def _resize(loop: Loop, samplers: int) -> None:
    """Resize to so many samplers and wait for them."""
    loop.stages.resize(samplers=samplers)
    settled(loop.stages, samplers)
