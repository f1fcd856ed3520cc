"""Sizes of images that prompts bring along: checked before anything is loaded, and kept apart in a denoiser."""

import dataclasses
from collections.abc import Callable
from typing import Any

from pcpo_ray import config, models
from pcpo_ray.data import prompts
from pcpo_ray.data.types import Size
from pcpo_ray.errors import ConfigError, CreditError, ModelError, PromptError, QualityError, ScheduleError
from pcpo_ray.models import steps


def cached_by_size(make: Callable[[Any], Any]) -> property:
    """Make a property of a denoiser that is computed once for each `height` and `width`."""
    name = f"{make.__name__} by size"

    def get(denoiser: Any) -> Any:
        known = denoiser.__dict__.setdefault(name, {})
        size = denoiser.height, denoiser.width
        if size not in known:
            known[size] = make(denoiser)
        return known[size]

    return property(get, doc=make.__doc__)


def sized(sampling: config.Sampling, size: Size | None) -> config.Sampling:
    """Return the settings for images of a prompt's size (None: the settings' own)."""
    if size is None:
        return sampling
    height, width = size
    return dataclasses.replace(sampling, height=height, width=width)


def at_largest(run: config.Run) -> tuple[config.Run, Size | None]:
    """Return the run as if all images had the prompts' largest size, and that size; None if prompts have none.

    Prompt files that are not at hand count as without sizes. Raises PromptError for one that cannot be read.
    """
    asked = (run.prompts, run.evaluation.prompts)
    files = [one for one in asked if isinstance(one, config.PromptFile) and one.file.is_file()]
    found = {size for file in files for size in prompts.load(file, seed=run.seed).places}
    if not found:
        return run, None
    largest = max(found, key=lambda size: (size[0] * size[1], size))
    return dataclasses.replace(run, sampling=sized(run.sampling, largest)), largest


def check(run: config.Run) -> None:
    """Check that the run can sample and train its prompts' sizes, without loading a model.

    Raises PromptError for a size, and ModelError, ConfigError and QualityError for what takes one size only.
    """
    if not any(isinstance(one, config.PromptFile) for one in (run.prompts, run.evaluation.prompts)):
        return
    training, evaluated = prompts.sources(run)
    found = {**evaluated.places, **training.places}
    if not found:
        return
    _check_settings(run, next(iter(found.values())), evaluated=bool(evaluated.places))
    kind = models.class_of(run.model)
    description = kind.described(models.folder_of(run.model, weights=False))
    expected = steps.plan(run.credit, run.sampling, kind.schedule_in(description, run.sampling)).trained
    for size, where in found.items():
        asked = f"{where}: height is {size[0]} and width {size[1]}"
        own = sized(run.sampling, size)
        try:
            trained = steps.plan(run.credit, own, kind.schedule_in(description, own)).trained
            if run.evaluation.sampling is not None:
                steps.evaluation_credit(run, kind.schedule_in(description, sized(run.evaluated, size)))
        except (ModelError, ScheduleError, CreditError) as error:
            raise PromptError(f"{asked}, and with these as sampling.height and width: {error}") from None
        if trained != expected:
            raise PromptError(
                f"{asked}, where the steps {list(trained)} are trained; at sampling.height and width they are "
                f"{list(expected)}, and all groups of a batch need the same. Set sampling.shift, which makes the times "
                "the same at every size, or leave the size out"
            )


def _check_settings(run: config.Run, where: str, *, evaluated: bool) -> None:
    """Raise for settings that take images of one size only."""
    kind = models.class_of(run.model)
    if not kind.several_sizes:
        raise ModelError(
            f"{where} has a size, and {kind.__module__}:{kind.__qualname__} makes images of one size a run; leave out "
            "the columns height and width, or set several_sizes = True in the class once nothing but cached_by_size "
            "keeps what depends on the size (pcpo_ray/models/README.md)"
        )
    for key, value, tried in (
        ("optimizer.micro_batch", run.optimizer.micro_batch, "the first batch"),
        ("sampling.batch", run.sampling.batch, "a sampler's first task"),
    ):
        if value == "auto":
            raise ConfigError(
                f"{key} is auto, which tries the sizes of {tried} only, and {where} has a size of its own; set "
                f"{key}=null, or a number"
            )
    quality = run.evaluation.quality
    if evaluated and quality is not None and quality.reference is not None:
        raise QualityError(
            f"evaluation.quality.reference is set, whose images have one size, and {where} has a size of its own; give "
            "evaluation.prompts without sizes, or leave the reference out"
        )
