"""The package from Python: train, evaluate, sample and load_run, for scripts and notebooks (docs/api.md).

The command line is a shell on the same functions.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pcpo_ray.commands import begin, evaluate_options, sample_options
from pcpo_ray.commands.progress import Display
from pcpo_ray.commands.results import EvaluationResult, RunResult, SampleResult, load_run
from pcpo_ray.commands.waiting import Waiting
from pcpo_ray.config import Run, files, paths
from pcpo_ray.errors import AlarmError, ConfigError, nearest_name
from pcpo_ray.process import borrowed
from pcpo_ray.runs import look
from pcpo_ray.runs.stored import StoredFolder
from pcpo_ray.training.callbacks import Callback

__all__ = ["evaluate", "load_run", "sample", "train"]

Config = str | Path | Run | Mapping[str, Any]
"""A YAML file, the name of a recipe, or a config that is read already or as plain data."""

Override = str | Mapping[str, Any]
"""`"a.b.c=value"`, as on the command line, or several as a mapping: `{"a.b.c": value}`."""

Place = str | Path | RunResult
"""A run: its folder, its URL, or what `train` or `load_run` returned."""

Strength = float | Sequence[float]


def train(
    config: Config,
    *overrides: Override,
    local: bool = False,
    resume: bool | str = False,
    runs: str | Path = "runs",
    callbacks: Callback | Sequence[Callback] = (),
    metrics_port: int | None = None,
    quiet: bool = False,
    **keys: Any,
) -> RunResult:
    """Train a model to the end of its run, and return all that the run left.

    `keys` are keys of the config, such as `steps=30, name="mine"`; `overrides` reach deeper ones. `local` trains in
    this process; else Ray does: in the session that this process has, at RAY_ADDRESS, or in one of its own. `runs` is
    where run folders are: a path, or a URL such as s3://bucket/runs. `resume` continues the run of that name;
    "if_started" starts it where there is none.

    Each callback gets every StepRecord and EvaluationRecord, in this process, once it is on record; one that returns
    `pcpo_ray.STOP` ends the run with a checkpoint. An error of a callback ends it so too, and is raised.

    An interrupt (Ctrl-C, a notebook's stop button) ends the run after the step under way, with a checkpoint, and is
    raised. In another thread than the main one, only callbacks stop a run. Afterwards the process is as it was.

    Raises a PcpoError that says what is wrong, AlarmError for a run that its monitors ended; `load_run` opens what such
    a run left.
    """
    if resume not in (True, False, "if_started"):
        raise ConfigError(f"got resume={resume!r}; expected True, False or 'if_started'")
    called = (callbacks,) if callable(callbacks) else tuple(callbacks)
    if wrong := [one for one in called if not callable(one)]:
        raise ConfigError(f"got the callback {wrong[0]!r}; expected a function of a record, or a list of some")
    given = [*_texts(overrides), *_keys(keys, train)]
    order = begin.Order(
        run=paths.absolute(_read(config, given)),
        local=local,
        resume=resume,  # type: ignore[arg-type]  # checked above
        runs=str(runs),
        metrics_port=metrics_port,
        callbacks=called,
        continuing="the same call with resume=True",
    )
    with borrowed.process():
        found = begin.train(order, Display(order.run, Console(quiet=quiet), runs=order.runs, local=order.local))
        if found.alarm:
            raise AlarmError(found.alarm)
    return found


def evaluate(
    run: Place, *overrides: Override, local: bool = False, quiet: bool = False, **keys: Any
) -> EvaluationResult:
    """Evaluate a run's newest checkpoint, as it was trained or with overrides such as `"evaluation.count=256"`.

    Overrides change how it is evaluated, not the run. Raises a PcpoError.
    """
    given = [*_texts(overrides), *_keys(keys, evaluate)]
    look.there(_place(run))
    evaluate_options.check(_place(run), given)
    with borrowed.process(), Waiting("loading torch and diffusers", quiet=quiet) as waiting:
        from pcpo_ray.commands.evaluate import evaluate as evaluated

        return evaluated(_place(run), given, local=local, say=waiting.say, waiting=waiting)


def sample(
    run: Place,
    prompt: str,
    *,
    images: int = 4,
    seed: int = 0,
    base: bool = False,
    compare: bool = False,
    strength: Strength = 1.0,
    also: Mapping[str | Path | RunResult, Strength] | None = None,
    quiet: bool = False,
) -> SampleResult:
    """Sample images of a prompt in this process, with a run's newest checkpoint; `base`: the model before training.

    `compare` samples a row before training and a row after it, from the same noise.
    `strength` applies the run's adapter at one or several strengths, and `also` adds those of other runs:
    base + sum of strength x (adapter - base). Raises a PcpoError.
    """
    look.there(_place(run))
    sample_options.check_values(prompt, images=images, seed=seed)
    strengths = _strengths(strength)
    with borrowed.process(), Waiting("loading torch and diffusers", quiet=quiet) as waiting:
        from pcpo_ray.commands.sample import sample as sampled

        return sampled(
            _place(run),
            prompt,
            images=images,
            seed=seed,
            base=base,
            compare=compare,
            strength=strengths,
            also=[f"{_place(other)}={_strengths(values)}" for other, values in (also or {}).items()],
            say=waiting.say,
            waiting=waiting,
        )


def _read(config: Config, overrides: Sequence[str]) -> Run:
    if isinstance(config, str | Path):
        return files.load(config, overrides)
    return files.changed(config, overrides)


def _texts(overrides: Sequence[Override]) -> list[str]:
    return [
        text
        for override in overrides
        for text in ([override] if isinstance(override, str) else files.as_overrides(override))
    ]


def _keys(keys: Mapping[str, Any], function: Callable[..., Any]) -> list[str]:
    """Write keys of the config as overrides. Raises ConfigError for one that an option was meant by, or a function."""
    known = [field.name for field in dataclasses.fields(Run)]
    found = inspect.signature(function).parameters.values()
    options = [one.name for one in found if one.kind is inspect.Parameter.KEYWORD_ONLY]
    for name, value in keys.items():
        meant = nearest_name(name, [*options, *known])
        if name not in known and (meant in options or callable(value)):
            guess = f" (did you mean {meant}=?)" if meant in options else ""
            raise ConfigError(
                f"{name}: unknown key{guess}; expected an option, of {', '.join(options)}, or a key of the config"
            )
    return files.as_overrides(keys)


def _place(run: Place) -> str:
    if not isinstance(run, RunResult):
        return str(run)
    return run.home.url if isinstance(run.home, StoredFolder) else run.home.address


def _strengths(value: Strength) -> str:
    """Write strengths as the command line takes them. Raises ConfigError for what are no numbers."""
    values = [value] if isinstance(value, int | float) else value
    if isinstance(value, str) or not all(isinstance(one, int | float) for one in values):
        raise ConfigError(f"got the strength {value!r}; expected a number, or a list of numbers such as [0, 0.5, 1]")
    return ",".join(f"{one:.17g}" for one in values)
