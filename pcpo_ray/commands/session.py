"""A run's session: checks before anything is loaded, then the backend, its workers and their metrics."""

import gc
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from pcpo_ray import config, models, rewards
from pcpo_ray.commands import early
from pcpo_ray.data import prompts
from pcpo_ray.errors import ClusterError, ConfigError, PromptError, RunError
from pcpo_ray.metrics.reporter import ExportingReporter, MetricsReporter, NoReporter
from pcpo_ray.models import image_sizes, kernels, lora_place, steps
from pcpo_ray.process.ray_address import OWN, ray_address
from pcpo_ray.rewards import quality
from pcpo_ray.shapes import captions as shapes
from pcpo_ray.training import notifier, own_advantage
from pcpo_ray.training.stages import Stages
from pcpo_ray.words import captions as words
from pcpo_ray.workers.learner import learning_rate, mini_batches, optimizers, own_objective

ORACLES = (
    ("shapes", config.ShapesOracle, config.ShapesPrompts, shapes.is_caption),
    ("words", config.WordsOracle, config.WordsPrompts, words.is_caption),
)
"""Worlds with rewards that read captions of theirs only: these rewards, their captions, and the test of a caption."""


def check(run: config.Run) -> None:
    """Check that a run can start, without loading a model. Raises a PcpoError that says what is wrong."""
    check_files(run)
    check_steps(run)


def check_files(run: config.Run) -> None:
    """Check that every file the run reads exists. Raises a PcpoError, which names all that is wrong at once."""
    early.raise_all(file_checks(run))


def file_checks(run: config.Run) -> list[Callable[[], object]]:
    """List the checks of the files and of the user's own code that the run needs, each of which raises a PcpoError."""
    start = run.model.train.start if isinstance(run.model.train, config.Lora) else None
    return [
        partial(models.folder_of, run.model),
        *([partial(lora_place.check, Path(start))] if start is not None else []),
        *(partial(rewards.check, reward) for reward in (*run.rewards, *run.evaluation.rewards)),
        partial(check_groups, run),
        partial(quality.check, run),
        *(partial(prompts.check_own, asked) for asked in (run.prompts, run.evaluation.prompts)),
        partial(check_prompts, run),
        *([partial(notifier.url_of, run.notify)] if run.notify is not None else []),
        partial(check_own_code, run),
    ]


def check_groups(run: config.Run) -> None:
    """Refuse groups of one image to rewards of the user's own that compare images. Raises RewardError."""
    for reward in run.rewards:
        rewards.check_group(reward, run.rollout.images, "rollout.images")
    for reward in (*run.rewards, *run.evaluation.rewards):
        rewards.check_group(reward, run.evaluation.images, "evaluation.images")


def check_prompts(run: config.Run) -> None:
    """Check the prompts, and that each reward can score those that it will meet. Raises a PcpoError."""
    training, evaluated = prompts.sources(run)
    trained = {reward.name for reward in run.rewards}
    for reward in (*run.rewards, *run.evaluation.rewards):
        rewards.check_prompts(reward, evaluated.texts, evaluated.origin)
        if reward.name in trained or run.evaluation.train_count:
            rewards.check_prompts(reward, training.texts, training.origin)
    if strange := _unread(run, run.rewards):
        raise PromptError(f"{strange}, so that there is nothing to train on; give another reward, or fix the prompts")


def _unread(run: config.Run, asked: Sequence[config.Reward]) -> str:
    """Say which prompts the oracles among these rewards do not read; empty if they read all. Raises PromptError."""
    return "; ".join(filter(None, (_unread_in(run, asked, *world) for world in ORACLES)))


def _unread_in(
    run: config.Run, asked: Sequence[config.Reward], world: str, oracle: type, own: type, reads: Callable[[str], bool]
) -> str:
    """Say which prompts a world's oracles among these rewards do not read; empty if they read all."""
    oracles = [one.name for one in asked if isinstance(one, oracle)]
    both = [one for one in (run.prompts, run.evaluation.prompts) if one is not None]
    if not oracles or all(isinstance(one, own) for one in both):
        return ""
    texts = sorted({text for source in prompts.sources(run) for text in source.texts})
    strange = [text for text in texts if not reads(text)]
    if not strange:
        return ""
    return (
        f"{' and '.join(oracles)} read captions of the {world} world only, and "
        f"{len(strange)} of {len(texts)} prompts are none, such as {strange[0]!r}: their images get no such score"
    )


def warnings(run: config.Run) -> list[str]:
    """Describe settings that are allowed and may spoil what is learned or measured. Raises PromptError."""
    found = []
    if run.model.vae_tiling and not any(reward.name == "grid" for reward in run.evaluation.rewards):
        found.append(
            "warning: model.vae_tiling decodes images in tiles: rewards see their seams, and training may learn them; "
            "watch them with evaluation.rewards=[{kind: grid}], or leave vae_tiling out"
        )
    if strange := _unread(run, run.evaluation.rewards):
        found.append(f"warning: {strange}; leave them out of evaluation.rewards, or fix the prompts")
    if run.only_pairwise:
        found.append(
            f"warning: {run.rewards[0].name} compares the images of one prompt, so its mean is the same whatever is "
            "learned: watch a reward of single images in evaluation.rewards"
        )
    return found


def notes(run: config.Run, *, local: bool) -> list[str]:
    """Describe the work that the run's processes cannot share evenly; one process shares none."""
    uneven = [] if local else mini_batches.uneven_shares(run, steps.trained_steps(run))
    return [f"note: {line}" for line in uneven]


def check_own_code(run: config.Run) -> None:
    """Check the user's own credit, advantage, objective and optimizer, each on a few numbers. Raises a PcpoError."""
    if isinstance(run.credit, config.CustomCredit):
        steps.CREDIT.find(run.credit.kind, run.credit.options)  # its weights follow from the schedule: check_steps
    own_advantage.check(run)
    own_objective.check(run)
    optimizers.check(run)


def check_steps(run: config.Run) -> None:
    """Check that the sampler's steps can carry the credit, and that every learner rank has steps to train.

    The same is checked at the prompts' own sizes.
    The first call takes seconds, as it imports diffusers.
    """
    learning_rate.check(run)
    folder = models.folder_of(run.model)
    models.warn_of_few_steps(folder, run.model)
    compiled = "sampling.compile" if run.sampling.compile else "optimizer.compile" if run.optimizer.compile else ""
    kernels.check(run.model, folder, models.class_of(run.model).part, compiled=compiled)
    mini_batches.check_ranks(run, steps.trained_steps(run))
    if run.evaluation.sampling is not None:
        steps.evaluation_credit(run, models.schedule_of(folder, run.model, run.evaluated))
    image_sizes.check(run)


@contextmanager
def frozen() -> Iterator[None]:
    """Keep the garbage collector from visiting the objects that exist now, until the block ends.

    They are some 200,000, mostly of modules. With 10,000 tasks in flight, visiting them took up to a third of the
    driver's time. A process that has frozen objects of its own keeps them so: to unfreeze would free these too.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def begun(
    run: config.Run, *, local: bool, say: Callable[[str], None], phase: Callable[[str], None] = lambda text: None
) -> Iterator[None]:
    """Check that a run can start, and connect to Ray unless `local`; what this starts ends with the block.

    Raises what `check` raises, and ClusterError.
    """
    phase("checking the model, the rewards and the prompts")
    check_files(run)
    if local:
        check_steps(run)
        yield
        return
    phase("joining the cluster" if ray_address() != OWN else "starting Ray")
    from pcpo_ray.cluster import groups
    from pcpo_ray.cluster.connect import joined_cluster

    with ExitStack() as ending:
        with groups.own_process_group():
            ending.enter_context(joined_cluster(run, say, meanwhile=lambda: check_steps(run)))
        yield


def sources(run: config.Run) -> tuple[prompts.PromptSource, prompts.PromptSource]:
    """Return the training prompts and the evaluation prompts."""
    return prompts.sources(run)


def stages(
    run: config.Run,
    *,
    local: bool,
    say: Callable[[str], None],
    phase: Callable[[str], None] = lambda text: None,
    announced: bool = False,
) -> Stages:
    """Start the run's workers, in this process or on Ray; an `announced` run can be found there by its name."""
    if local:
        if run.workers.learner.ranks > 1:
            raise ClusterError(
                f"workers.learner.ranks is {run.workers.learner.ranks}, and one process has one rank; train on Ray "
                "(without --local), or set workers.learner.ranks=1"
            )
        if run.sampling.compile != run.optimizer.compile:
            sampled, learned = (str(part.compile).lower() for part in (run.sampling, run.optimizer))
            raise ConfigError(
                f"sampling.compile is {sampled} and optimizer.compile is {learned}, and one process has one network "
                "for both; set both alike, or train on Ray (without --local)"
            )
        from pcpo_ray.training.local import LocalStages

        return LocalStages(run, phase)
    from pcpo_ray.cluster.connect import connect

    return connect(run, say, phase=phase, announced=announced)


def meter(run: config.Run, *, local: bool, port: int | None, say: Callable[[str], None]) -> MetricsReporter:
    """Return what exports the run's metrics to Prometheus: Ray, or with `local` a port, if one is given.

    Raises RunError for a port that is taken, and for a port given on Ray.
    """
    if not local:
        if port is not None:
            raise RunError(f"--metrics-port {port} is for --local; on Ray, scrape the nodes' metrics ports, as for Ray")
        from pcpo_ray.cluster.exporter import RayExporter

        return ExportingReporter(run.name, RayExporter(), say=say)
    if port is None:
        return NoReporter()
    from pcpo_ray.metrics.prometheus import HOST, Endpoint

    endpoint = Endpoint(port)
    say(f"metrics: http://{HOST}:{endpoint.port}/metrics")
    return ExportingReporter(run.name, endpoint, say=say)


def surroundings(local: bool) -> dict[str, Any]:
    """Describe what a run's speed and bits depend on besides its config: backend, this machine, versions."""
    import torch

    packages = ("pcpo_ray", "torch", "diffusers", "transformers", "peft", *(() if local else ("ray",)))
    versions = [f"{name} {metadata.version(name)}" for name in packages]
    return {
        "backend": "in-process" if local else "Ray",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "cores": os.cpu_count(),
        "versions": [f"Python {platform.python_version()}", *versions],
    }
