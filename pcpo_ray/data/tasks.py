"""The tasks of a run: the groups that its steps and its evaluations sample."""

from collections.abc import Sequence

from pcpo_ray import config
from pcpo_ray.data.prompts import PromptSource
from pcpo_ray.data.types import Prompt, Task


def training_tasks(run: config.Run, source: PromptSource, step: int, version: int) -> list[Task]:
    """Make the tasks of a step's batch, to be sampled with one version of the weights."""
    images = run.rollout.images
    return [
        Task(step=step, position=n, prompt=prompt, images=images, version=version, purpose="train")
        for n, prompt in enumerate(source.batch(step, run.rollout.prompts))
    ]


def evaluation_tasks(run: config.Run, source: PromptSource, version: int) -> list[Task]:
    """Make the tasks of an evaluation: the same prompts, positions, noise and tasks at every version.

    A task has as many prompts as make no more images than a training group, so it fits wherever training fits. They
    follow each other and have one size.
    """
    return _tasks(run, source.distinct(run.evaluation.count), version, first=0)


def watched_training_tasks(run: config.Run, source: PromptSource, version: int) -> list[Task]:
    """Make the tasks of the training prompts that are evaluated too, at positions after all others."""
    return _tasks(run, source.distinct(run.evaluation.train_count), version, first=run.evaluation.count)


def _tasks(run: config.Run, prompts: Sequence[Prompt], version: int, *, first: int) -> list[Task]:
    found = []
    most = max(1, run.rollout.images // run.evaluation.images)
    begin = 0
    while begin < len(prompts):
        end = begin + 1
        while end < min(begin + most, len(prompts)) and prompts[end].size == prompts[begin].size:
            end += 1
        together = prompts[begin:end]
        task = Task(
            step=0,
            position=first + begin,
            prompt=together[0],
            images=run.evaluation.images,
            version=version,
            purpose="evaluate",
            averaged=run.optimizer.average is not None,
            more=tuple(together[1:]),
        )
        found.append(task)
        begin = end
    return found
