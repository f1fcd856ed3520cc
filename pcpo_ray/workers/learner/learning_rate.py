"""The learning rate of each training step, by a schedule of transformers' and a warm-up.

It is a function of the step alone, so that a run that resumes, or goes back to a checkpoint with a new learner, has the
rates of an undisturbed one. All optimizer steps of a training step have the same rate.
"""

from collections.abc import Callable

import torch
from torch import nn

from pcpo_ray import config
from pcpo_ray.errors import ConfigError


class LearningRate:
    """The learning rate at each step of a run. Raises ConfigError for options that the schedule does not have."""

    def __init__(self, run: config.Run) -> None:
        self.settings = run.optimizer
        self.factor = _factor(run) if run.optimizer.scheduled else None

    def at(self, step: int) -> float:
        """Return the rate at training step `step`, counted from 1."""
        highest = self.settings.learning_rate
        return highest if self.factor is None else highest * self.factor(step)

    def set(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Have the optimizer step with the rate of `step`, and return the rate; without a schedule nothing is set."""
        if self.factor is None:
            found: float = float(optimizer.param_groups[0]["lr"])
            return found
        rate = self.at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        return rate


def _factor(run: config.Run) -> Callable[[int], float]:
    """Make the function from a step to the part of the full rate.

    transformers count steps from 0, at which a warm-up has the rate 0 and would waste a batch. Here step 1 is at their
    count of 1, with one step of warm-up more, so that w steps of warm-up have the rates 1/(w + 1) to w/(w + 1). Without
    warm-up the rates are theirs.
    """
    from transformers import get_scheduler

    settings, options = run.optimizer, dict(run.optimizer.schedule_options)
    name = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
    if name == "inverse_sqrt":  # whose own default would follow from the step of warm-up more
        options.setdefault("timescale", settings.warmup or 10_000)
    if name == "warmup_stable_decay" and "num_stable_steps" not in options:
        options.setdefault("num_decay_steps", max(1, (run.steps - settings.warmup) // 2))
    alone = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings.learning_rate)
    try:
        made = get_scheduler(
            name,
            optimizer=alone,
            num_warmup_steps=settings.warmup + 1,
            num_training_steps=run.steps + 1,
            scheduler_specific_kwargs=options,
        )
        factor: Callable[[int], float] = made.lr_lambdas[0]
        rates = [factor(step) for step in range(1, run.steps + 1)]
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise ConfigError(
            f"optimizer.schedule={settings.schedule} with schedule_options {dict(settings.schedule_options)}: {error}; "
            "give the options of transformers' schedule of this name, or leave them out"
        ) from error
    wrong = next((step for step, rate in enumerate(rates, 1) if not 0 <= rate <= 1), None)
    if wrong is not None or not any(rates):
        raise ConfigError(
            f"optimizer.schedule={settings.schedule} with schedule_options {dict(settings.schedule_options)} gives "
            f"{rates[(wrong or 1) - 1]:g} times the learning rate at step {wrong or 1}; expected factors from 0 to 1, "
            "not all 0"
        )
    return factor


def check(run: config.Run) -> None:
    """Check that the schedule can be made. Raises ConfigError."""
    LearningRate(run)
