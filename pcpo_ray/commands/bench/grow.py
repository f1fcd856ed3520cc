"""How a step's seconds grow with samplers and with samples, on simulated work, one batch at a time."""

from collections.abc import Sequence

from pcpo_ray import config
from pcpo_ray.commands.bench import simulated
from pcpo_ray.commands.bench.rows import Row, Say
from pcpo_ray.commands.bench.simulated import IMAGES
from pcpo_ray.commands.bench.waiting import settled
from pcpo_ray.training.loop import Loop

SAMPLERS = (1, 2, 4, 8)
GROUPS = (4, 16, 64)
"""Of 16 pictures: 64 to 1,024 samples."""

SAMPLERS_OF_GROUPS = 4
GROUPS_OF_SAMPLERS = 16
SCORING = 0.01


def measured_on(run: config.Run) -> config.Run:
    """Simulated work, whatever the config: 16 ms of a sampler and 2 ms of the learner a picture."""
    return simulated.run(simulated.Sampling, samplers=max(SAMPLERS), prompts=GROUPS_OF_SAMPLERS, scoring=SCORING)


def measure(run: config.Run, repeats: int, say: Say) -> Sequence[Row]:
    """A repeat is one step at each number of samplers, then one at each number of samples."""
    points = [(samplers, GROUPS_OF_SAMPLERS) for samplers in SAMPLERS]
    points += [(SAMPLERS_OF_GROUPS, groups) for groups in GROUPS if groups != GROUPS_OF_SAMPLERS]
    found: dict[tuple[int, int], list[float]] = {point: [] for point in points}
    with simulated.looped(run, say) as loop:
        _resize(loop, max(SAMPLERS))
        simulated.steps(loop, 1, staleness=0, prompts=max(SAMPLERS))  # each sampler has its weights then
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
    """Seconds that a step would take if nothing but the work took any."""
    turns = -(-groups // samplers)
    network = simulated.Sampling
    return (
        turns * IMAGES * simulated.STEPS * network.sample + SCORING + groups * IMAGES * simulated.STEPS * network.learn
    )


def _resize(loop: Loop, samplers: int) -> None:
    """Have so many samplers at work."""
    loop.stages.resize(samplers=samplers)
    settled(loop.stages, samplers)
