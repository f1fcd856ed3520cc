"""The object store: a batch of FLUX-sized samples passes through 8 GB of it, on simulated work."""

import dataclasses
from collections.abc import Sequence

from pcpo_ray import config
from pcpo_ray.commands.bench import simulated
from pcpo_ray.commands.bench.rows import Goal, Row, Say
from pcpo_ray.errors import BenchError

STORE = 8 * 10**9
"""The object store's size in bytes."""

PROMPTS = 32
"""The number of groups, each of 16 images: 512 samples."""

STEPS = 16
PIXELS = 512
LATENTS = (16, 64, 64)


class FluxSized(simulated.Sleeping):
    """A model with the latents of FLUX's 512 x 512 images and a network that takes no time."""

    sample = learn = 0.0

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return LATENTS


def measured_on(run: config.Run) -> config.Run:
    """Replace the config by simulated work."""
    made = simulated.run(FluxSized, samplers=1, prompts=PROMPTS, scoring=0.0)
    return dataclasses.replace(
        made, sampling=dataclasses.replace(made.sampling, steps=STEPS, height=PIXELS, width=PIXELS)
    )


def measure(run: config.Run, repeats: int, say: Say) -> Sequence[Row]:
    """Count the bytes of one step of a run; every repeat would give the same."""
    import ray

    if ray.is_initialized():
        raise BenchError("Ray goes on in this process already, with a store of its own; measure in another process")
    say(f"starting Ray with an object store of {STORE / 10**9:g} GB")
    ray.init(address="local", object_store_memory=STORE, log_to_driver=False, logging_level="ERROR")
    try:
        with simulated.looped(run, say) as loop:
            (seconds,) = simulated.steps(loop, 1, staleness=0, prompts=PROMPTS)
            row = loop.progress.last_step
            assert row is not None
            spilled = _spilled()
    finally:
        ray.shutdown()
    samples = PROMPTS * run.rollout.images
    found = Row(
        name=f"spilled, {samples} samples of FLUX's size",
        unit="MB",
        figures=(spilled / 1e6,),
        goal=Goal(bound="at most", value=0.0, of="figure"),
        facts={
            "object store, MB": STORE / 1e6,
            "of it taken by the batch at most, MB": row.buffer_bytes / 1e6,
            "latents": " x ".join(map(str, LATENTS)),
            "trained steps": len(row.per_timestep["timestep"]),
            "seconds of the step": seconds,
        },
    )
    return [found]


def _spilled() -> int:
    """Return the bytes that the object store has spilled since it started. Ray has no public call for it."""
    import ray
    from ray._private import internal_api

    state = internal_api.get_state_from_address(ray.get_runtime_context().gcs_address)
    return int(internal_api.get_memory_info_reply(state).store_stats.spilled_bytes_total)
