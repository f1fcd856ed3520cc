"""Switches: settings that make a role smaller, gentlest first; whether one is enough, planning with it finds out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from pcpo_ray.commands.plan import sizes
from pcpo_ray.config import Full, Run, files
from pcpo_ray.errors import ConfigError
from pcpo_ray.workers.learner import mini_batches

Overrides = tuple[str, ...]
"""Overrides as they are typed: a.b.c=value."""

PARK: Overrides = ("workers.park=true",)
OFFLOAD: Overrides = ("workers.learner.offload=true",)

MOST_RANKS = 8
ENOUGH = 3
"""Switches that fit, after which no more are looked for: each takes seconds to plan with."""


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """Overrides with which it fits, and the bytes that are then needed."""

    overrides: Overrides
    needed: int


def remedies(
    run: Run, candidates: Iterable[Overrides], measured: Callable[[Run], tuple[int, float]]
) -> tuple[Remedy, ...]:
    """Single switches that make it fit; where none does alone, as many as it takes, gentlest first.

    `measured` gives the bytes that a config needs and those that it may have. Empty where all are not enough.
    """
    found: list[Remedy] = []
    tried = list(candidates)
    for overrides in tried:
        if (outcome := _with(run, overrides, measured)) is not None and outcome[0] <= outcome[1]:
            found.append(Remedy(overrides=overrides, needed=outcome[0]))
            if len(found) == ENOUGH:
                break
    if found:
        return tuple(found)
    least, taken = measured(run)[0], merged(())
    for overrides in tried:
        both = merged((*taken, *overrides))
        if (outcome := _with(run, both, measured)) is not None and outcome[0] < least:
            least, taken = outcome[0], both
            if outcome[0] <= outcome[1]:
                return (Remedy(overrides=both, needed=least),)
    return ()


def merged(overrides: Iterable[str]) -> Overrides:
    """Each key once: of two values for one, the later."""
    return tuple({override.partition("=")[0]: override for override in overrides}.values())


def _with(run: Run, overrides: Overrides, measured: Callable[[Run], tuple[int, float]]) -> tuple[int, float] | None:
    try:
        other = changed(run, overrides)
    except ConfigError:  # the switch contradicts another setting, so it is none
        return None
    return measured(other)


def changed(run: Run, overrides: Sequence[str]) -> Run:
    """The config with overrides. Raises ConfigError where they contradict it."""
    data = files.plain(run)
    for override in overrides:
        files.set_key(data, override)
    return files.parse(data)


def for_learner(run: Run) -> Iterator[Overrides]:
    """Copies and more time for less memory first, then another precision, fewer trained weights, more processes."""
    yield from _parked(run, run.workers.learner.gpus)
    if run.workers.learner.samples:
        yield from _decoding(run)
    if not run.model.gradient_checkpointing:
        yield ("model.gradient_checkpointing=true",)
    more = sizes.micro_batch_of(run) > sizes.rows_of(run)
    as_sampled = ("optimizer.micro_batch=null",) if more or isinstance(run.optimizer.micro_batch, int) else ()
    if more:
        yield as_sampled
    yield from ((*smaller, *as_sampled) for smaller in _smaller_batches(run))
    yield from _half(run)
    if isinstance(run.model.train, Full):
        yield ("model.train={kind: lora}",)
    role = run.workers.learner
    ranks = 2 * role.ranks if role.strategy == "fsdp2" else 2
    most = min(MOST_RANKS, mini_batches.fewest_blocks(run, sizes.trained_steps(run)))
    sharded = []
    while ranks <= most:
        sharded.append((f"workers.learner.ranks={ranks}", "workers.learner.strategy=fsdp2"))
        ranks *= 2
    yield from sharded
    if role.gpus and not role.offload:
        if role.strategy == "fsdp2" and role.ranks > 1:
            yield OFFLOAD
        yield from ((*overrides, *OFFLOAD) for overrides in sharded)
    yield from _whole_gpu("learner", run.workers.learner.gpus)


def for_sampler(run: Run) -> Iterator[Overrides]:
    yield from _parked(run, run.workers.samplers.gpus)
    yield from _decoding(run)
    yield from _smaller_batches(run)
    yield from _half(run)
    yield from _whole_gpu("samplers", run.workers.samplers.gpus)


def for_scorer(run: Run) -> Iterator[Overrides]:
    yield from _parked(run, run.workers.scorers.gpus)
    yield from _whole_gpu("scorers", run.workers.scorers.gpus)


def for_one_process(run: Run) -> Iterator[Overrides]:
    """Switches of the learner and the sampler, but for those that use more GPUs."""
    both = dict.fromkeys((*for_learner(run), *for_sampler(run)))
    yield from (one for one in both if one == PARK or not any(override.startswith("workers.") for override in one))


def for_store(run: Run) -> Iterator[Overrides]:
    """Less ahead, fewer steps of each trajectory, fewer prompts a batch."""
    for staleness in range(run.rollout.max_staleness - 1, -1, -1):
        yield (f"rollout.max_staleness={staleness}",)
    if run.sampling.subset is None:
        steps = sizes.trained_steps(run)
        yield from ((f"sampling.subset={{kind: window, size: {steps // part}}}",) for part in (2, 4) if steps >= part)
    prompts = run.rollout.prompts // 2
    while prompts >= run.optimizer.minibatches:
        yield (f"rollout.prompts={prompts}",)
        prompts //= 2


def _parked(run: Run, gpus: float) -> Iterator[Overrides]:
    if gpus and not run.workers.park:
        yield PARK


def _decoding(run: Run) -> Iterator[Overrides]:
    if not run.model.vae_slicing:
        yield ("model.vae_slicing=true",)
    if not run.model.vae_tiling:
        yield ("model.vae_tiling=true",)


def _smaller_batches(run: Run) -> Iterator[Overrides]:
    rows = sizes.rows_of(run) // 2
    while rows >= 1:
        yield (f"sampling.batch={rows}",)
        rows //= 2


def _half(run: Run) -> Iterator[Overrides]:
    if run.model.dtype == "float32":
        yield ("model.dtype=bfloat16",)


def _whole_gpu(role: str, share: float) -> Iterator[Overrides]:
    if 0 < share < 1:
        yield (f"workers.{role}.gpus=1",)
