"""Checks of the files and names in a config before torch is loaded, which takes seconds."""

import dataclasses
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pcpo_ray import config, models
from pcpo_ray.config import fetch
from pcpo_ray.data import prompt_files
from pcpo_ray.errors import ConfigError, PcpoError
from pcpo_ray.models import lora_place
from pcpo_ray.process import unimported


def check(run: config.Run) -> None:
    """Check that the model, its adapter, prompt files, published rewards and the user's own code are there.

    Raises a PcpoError, which names all that is missing at once. `session.check` looks closer, and needs torch.
    """
    raise_all(_checks(run))


def raise_all(checks: Iterable[Callable[[], object]]) -> None:
    """Make all checks. Raises the PcpoError of one that fails, or a ConfigError with those of several."""
    wrong = faults(checks)
    if len(wrong) > 1:
        raise ConfigError("\n".join([f"{len(wrong)} wrong", *(textwrap.indent(str(error), "  ") for error in wrong)]))
    if wrong:
        raise wrong[0]


def faults(checks: Iterable[Callable[[], object]]) -> list[PcpoError]:
    """Make all checks, and return the errors that they raise, each once."""
    found: dict[str, PcpoError] = {}
    for check in checks:
        try:
            check()
        except PcpoError as error:
            found.setdefault(str(error), error)
    return list(found.values())


def _checks(run: config.Run) -> Iterator[Callable[[], object]]:
    yield partial(models.located, run.model)
    if isinstance(run.model.train, config.Lora) and run.model.train.start is not None:
        yield partial(lora_place.check, Path(run.model.train.start))
    for reward in (*run.rewards, *run.evaluation.rewards):
        yield partial(fetch.check, reward)
    for asked in (run.prompts, run.evaluation.prompts):
        if isinstance(asked, config.PromptFile):
            yield partial(prompt_files.read, asked.file, asked.column)
    for key, name in _own(dataclasses.asdict(run)):
        yield partial(unimported.check, key, name)


def _own(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield each key that names something of the user's own, and the name: `package.module:name`."""
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, part in parts:
        path = f"{key}.{name}" if key else str(name)
        if name in ("kind", "denoiser") and isinstance(part, str) and ":" in part:
            yield path, part
        elif name != "options":
            yield from _own(part, path)
