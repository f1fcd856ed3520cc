"""`pcpo-ray evaluate`: evaluate a run's newest checkpoint, as it was trained or with overrides."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pcpo_ray import config
from pcpo_ray.commands import opening, session
from pcpo_ray.errors import ConfigError, RunError
from pcpo_ray.rewards import quality
from pcpo_ray.runs import records
from pcpo_ray.runs.lines import shown
from pcpo_ray.runs.places import folder_at
from pcpo_ray.runs.records import read
from pcpo_ray.training import inputs
from pcpo_ray.training.dispatcher import Dispatcher, trouble
from pcpo_ray.training.evaluation import evaluation_summary, run_evaluation


def evaluate(place: str, overrides: Sequence[str], *, local: bool) -> None:
    """Evaluate the newest checkpoint of the run at a path or URL, and print the results. Raises a PcpoError."""
    console = Console(markup=False, highlight=False, soft_wrap=True)
    with contextlib.ExitStack() as ending:
        home = ending.enter_context(folder_at(place).fetched(records=True))
        run = read_to_evaluate(home.local, overrides)
        saved = records.newest_step(home, console.print)
        ending.enter_context(session.begun(run, local=local, say=console.print))
        _note_changes(home.local, run, console)
        assessor = quality.assessor(run, home.local, console.print)
        stages = session.stages(run, local=local, say=console.print)
        ending.callback(stages.close)
        step = stages.learner.restore(home, saved).step

        def event(kind: str, **details: object) -> None:
            if line := trouble(kind, details):
                console.print(line, markup=False, highlight=False)

        dispatcher = Dispatcher(run, stages, event=event, say=console.print)
        dispatcher.publish(oldest=step)
        prompts, held_out = session.sources(run)
        scored, trained_on = run_evaluation(run, dispatcher, held_out, step, oldest=step, prompts=prompts)
        summary = evaluation_summary(run, scored, trained_on, assessor)
    _print(console, run, step, summary, prompts=len(scored), trained_on=len(trained_on))


def read_to_evaluate(folder: Path, overrides: Sequence[str]) -> config.Run:
    """Read the config of a run, overridden in how it is evaluated.

    Raises what `read` raises, and ConfigError for an override that would change nothing or mix in training prompts.
    """
    old, new = read(folder), read(folder, overrides)
    moved = new.prompts
    if isinstance(moved, config.PromptFile) and isinstance(old.prompts, config.PromptFile):
        moved = dataclasses.replace(moved, path=old.prompts.path)
    if moved != old.prompts:
        raise ConfigError(
            "got other prompts than the run was trained on, which say what is held out; override evaluation.prompts"
        )
    own = new.evaluation.sampling
    if own is not None:
        given = {"steps": own.steps, "guidance_scale": own.guidance_scale, "process": own.deterministic or None}
        for name, value in given.items():
            if value is not None and getattr(new.sampling, name) != getattr(old.sampling, name):
                key = "deterministic" if name == "process" else name
                raise ConfigError(
                    f"sampling.{name} has no part in evaluations, which have evaluation.sampling.{key}={value}; "
                    "override that"
                )
    return new


def _note_changes(folder: Path, run: config.Run, console: Console) -> None:
    """Print which files are not what the run began with. Raises RunError if its prompts are among them."""
    for line in opening.changed_inputs(folder, inputs.of_run(run)):
        if line.startswith("prompts."):
            raise RunError(f"{line}, and it says what is held out; give it back")
        console.print(f"note: {line}", markup=False, highlight=False, soft_wrap=True)


def _print(
    console: Console, run: config.Run, step: int, summary: Mapping[str, Any], *, prompts: int, trained_on: int
) -> None:
    console.print(f"{run.name}, step {step}, {prompts} {run.of_evaluation('prompts')}:")
    _print_estimates(console, summary["rewards"])
    if trained_on:
        console.print(f"{trained_on} training prompts:")
        _print_estimates(console, summary["train_rewards"])
    if "quality" in summary:
        console.print(f"quality, of {prompts * run.evaluation.images} {run.of_evaluation('pictures')}:")
        for name, value in summary["quality"].items():
            console.print(f"  {name}: {shown(value, '.4f')}")


def _print_estimates(console: Console, estimates: Mapping[str, Mapping[str, float | None]]) -> None:
    for name, estimate in estimates.items():
        mean, low, high = (shown(estimate[key], ".4f") for key in ("mean", "low", "high"))
        interval = "no interval, from so few prompts" if estimate["low"] is None else f"{low} to {high}"
        console.print(f"  {name}: {mean} ({interval})")
