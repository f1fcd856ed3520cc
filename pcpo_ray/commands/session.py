"""A run's session: checks before anything is loaded, then the backend, its workers and their metrics."""

import gc
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from pcpo_ray import config, models, rewards
from pcpo_ray.data import prompts
from pcpo_ray.errors import ClusterError, RunError
from pcpo_ray.metrics.reporter import ExportingReporter, MetricsReporter, NoReporter
from pcpo_ray.models import lora_file, steps
from pcpo_ray.rewards import quality
from pcpo_ray.training.stages import Stages
from pcpo_ray.workers.learner import mini_batches


def check(run: config.Run) -> None:
    """Check that a run can start, without loading a model. Raises a PcpoError that says what is wrong."""
    check_files(run)
    check_steps(run)


def check_files(run: config.Run) -> None:
    """Check that every file the run reads exists. Raises a PcpoError."""
    models.folder_of(run.model)
    if isinstance(run.model.train, config.Lora) and run.model.train.start is not None:
        lora_file.find(Path(run.model.train.start))
    for reward in (*run.rewards, *run.evaluation.rewards):
        rewards.check(reward)
    quality.check(run)
    prompts.sources(run)


def check_steps(run: config.Run) -> None:
    """Check that the sampler's steps can carry the credit, and that every learner rank has steps to train.

    The first call takes seconds, as it imports diffusers.
    """
    folder = models.folder_of(run.model)
    mini_batches.check_ranks(run, steps.trained_steps(run))
    if run.evaluation.sampling is not None:
        steps.evaluation_credit(run, models.schedule_of(folder, run.model, run.evaluated))


@contextmanager
def frozen() -> Iterator[None]:
    """Keep the garbage collector from visiting the objects that exist now, until the block ends.

    They are some 200,000, mostly of modules. With 10,000 tasks in flight, visiting them took up to a third of the
    driver's time.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def begun(run: config.Run, *, local: bool, say: Callable[[str], None]) -> Iterator[None]:
    """Check that a run can start, and connect to Ray unless `local`; what this starts ends with the block.

    Raises what `check` raises, and ClusterError.
    """
    check_files(run)
    if local:
        check_steps(run)
        yield
        return
    from pcpo_ray.cluster import groups
    from pcpo_ray.cluster.connect import joined_cluster

    with ExitStack() as ending:
        with groups.own_process_group():
            ending.enter_context(joined_cluster(run, say, meanwhile=lambda: check_steps(run)))
        yield


def sources(run: config.Run) -> tuple[prompts.PromptSource, prompts.PromptSource]:
    """Return the training prompts and the evaluation prompts."""
    return prompts.sources(run)


def stages(run: config.Run, *, local: bool, say: Callable[[str], None], announced: bool = False) -> Stages:
    """Start the run's workers, in this process or on Ray; an `announced` run can be found there by its name."""
    if local:
        if run.workers.learner.ranks > 1:
            raise ClusterError(
                f"workers.learner.ranks is {run.workers.learner.ranks}, and one process has one rank; train on Ray "
                "(without --local), or set workers.learner.ranks=1"
            )
        from pcpo_ray.training.local import LocalStages

        return LocalStages(run)
    from pcpo_ray.cluster.connect import connect

    return connect(run, say, announced=announced)


def meter(run: config.Run, *, local: bool, port: int | None, say: Callable[[str], None]) -> MetricsReporter:
    """Return what exports the run's metrics to Prometheus: Ray, or with `local` a port, if one is given.

    Raises RunError for a port that is taken, and for a port given on Ray.
    """
    if not local:
        if port is not None:
            raise RunError(f"--metrics-port {port} is for --local; on Ray, scrape the nodes' metrics ports, as for Ray")
        from pcpo_ray.cluster.exporter import RayExporter

        return ExportingReporter(run.name, RayExporter())
    if port is None:
        return NoReporter()
    from pcpo_ray.metrics.prometheus import HOST, Endpoint

    endpoint = Endpoint(port)
    say(f"metrics: http://{HOST}:{endpoint.port}/metrics")
    return ExportingReporter(run.name, endpoint)


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
