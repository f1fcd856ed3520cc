"""Checks of the files and names in a config before torch is loaded, which takes seconds."""

import dataclasses
import importlib.machinery
import importlib.util
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pcpo_ray import config, models
from pcpo_ray.config import fetch
from pcpo_ray.data import prompt_files
from pcpo_ray.errors import ConfigError, PcpoError, nearest
from pcpo_ray.models import hub


def check(run: config.Run) -> None:
    """Check that the model, prompt files, published rewards and own modules are there.

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
    if not hub.is_id(run.model.path):  # whose folder may have to be fetched
        yield partial(models.located, run.model)
    for reward in (*run.rewards, *run.evaluation.rewards):
        yield partial(fetch.check, reward)
    for asked in (run.prompts, run.evaluation.prompts):
        if isinstance(asked, config.PromptFile):
            yield partial(prompt_files.read, asked.file, asked.column)
    for key, name in _own(dataclasses.asdict(run)):
        yield partial(_check_module, key, name)


def _own(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield each key that names something of the user's own, and the name: `package.module:name`."""
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, part in parts:
        path = f"{key}.{name}" if key else str(name)
        if name in ("kind", "denoiser") and isinstance(part, str) and ":" in part:
            yield path, part
        elif name != "options":
            yield from _own(part, path)


def _check_module(key: str, name: str) -> None:
    """Check that the module of `package.module:name` is there, without importing it. Raises ConfigError."""
    top = name.partition(":")[0].partition(".")[0]
    here = Path.cwd()
    if not top.isidentifier() or importlib.machinery.PathFinder.find_spec(top, [str(here)]) is not None:
        return
    try:
        found = importlib.util.find_spec(top)
    except ValueError:  # a module without a spec, which is there
        return
    if found is None:
        guess = nearest(top, sorted(path.stem for path in here.glob("*.py")))
        raise ConfigError(
            f"{key}: got {name!r}, and there is no module {top!r} in {here} or installed{guess}; expected an "
            "importable package.module:name"
        )
