"""Admission: which batches may be sampled with the weights as they are now."""

from collections.abc import Callable

from pcpo_ray import config
from pcpo_ray.data.prompts import PromptSource
from pcpo_ray.data.tasks import training_tasks
from pcpo_ray.training.dispatcher import Dispatcher
from pcpo_ray.training.progress import Progress
from pcpo_ray.training.scheduling.staleness import capacity
from pcpo_ray.training.stages import Stages


class Admission:
    """Begins batches, as many ahead of the learner as staleness and the object store allow."""

    def __init__(
        self,
        run: config.Run,
        stages: Stages,
        dispatcher: Dispatcher,
        progress: Progress,
        prompts: PromptSource,
        event: Callable[..., None],
    ) -> None:
        self.run, self.stages, self.dispatcher, self.progress = run, stages, dispatcher, progress
        self.prompts, self.event = prompts, event
        self.full = False
        """True once the user was told that the object store holds fewer batches than staleness allows."""

    def admit(self) -> None:
        """Set the samplers to work on every batch that may begin with the weights as they are now.

        Batches after the last step are kept account of and not sampled: a run that is made longer goes on with them.
        """
        while self.run.rollout.prompts <= self._capacity():
            self.begin(self.progress.step + len(self.progress.begun) + 1, self.progress.step)

    def begin(self, step: int, version: int) -> None:
        """Sample the batch of a step with a version of the weights."""
        tasks = training_tasks(self.run, self.prompts, step, version)
        self.progress.begun[step] = tasks
        if step <= self.run.steps:
            self.dispatcher.submit(tasks)

    def _capacity(self) -> int:
        """Count the groups that may begin now, by their age once learned and by the bytes that they will take."""
        size, running = self.run.rollout.prompts, len(self.progress.begun)
        fresh = capacity(
            max_staleness=self.progress.max_staleness,
            version=self.progress.step,
            batch=size,
            accepted=self.progress.step * size,
            running=running * size,
        )
        needed, budget = (running + 1) * size * self.dispatcher.counters.largest, self.stages.rollout_budget()
        if fresh < size or running == 0 or needed <= budget:
            return fresh
        if not self.full:
            self.full = True
            self.event("full", needed=needed, room=budget)
            self.dispatcher.say(
                f"{running + 1} batches would take {needed / 2**30:.2f} GiB of the object store, rollouts may take "
                f"{budget / 2**30:.2f}: fewer are sampled ahead than rollout.max_staleness="
                f"{self.progress.max_staleness} allows"
            )
        return 0
