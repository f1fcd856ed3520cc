"""`pcpo-ray evaluate`: evaluate a run's newest checkpoint, as it was trained or with overrides."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from pcpo_ray import config
from pcpo_ray.commands import opening, session
from pcpo_ray.commands.evaluate_options import read_to_evaluate
from pcpo_ray.commands.results import EvaluationResult
from pcpo_ray.commands.waiting import Waiting
from pcpo_ray.errors import RunError
from pcpo_ray.rewards import quality
from pcpo_ray.runs import records
from pcpo_ray.runs.intervals import Estimate
from pcpo_ray.runs.lines import shown
from pcpo_ray.runs.places import folder_at
from pcpo_ray.training import inputs
from pcpo_ray.training.dispatcher import Dispatcher, trouble
from pcpo_ray.training.evaluation import evaluation_summary, run_evaluation

Say = Callable[[str], None]


def evaluate(place: str, overrides: Sequence[str], *, local: bool, say: Say, waiting: Waiting) -> EvaluationResult:
    """Evaluate the newest checkpoint of the run at a path or URL; `waiting` shows what goes on. Raises a PcpoError."""
    with contextlib.ExitStack() as ending:
        home = ending.enter_context(folder_at(place).fetched(records=True))
        run = read_to_evaluate(home.local, overrides)
        saved = records.newest_step(home, say)
        silent = dataclasses.replace(run, notify=None)  # an evaluation sends no messages, and needs no URL for them
        ending.enter_context(session.begun(silent, local=local, say=say, phase=waiting))
        _note_changes(home.local, run, say)
        assessor = quality.assessor(run, home.local, say)
        stages = session.stages(run, local=local, say=say, phase=waiting)
        ending.callback(stages.close)
        step = stages.learner.restore(home, saved).step

        def event(kind: str, **details: object) -> None:
            if line := trouble(kind, details):
                say(line)

        dispatcher = Dispatcher(run, stages, event=event, say=say, watch=waiting.watch)
        dispatcher.publish(oldest=step)
        prompts, held_out = session.sources(run)
        scored, trained_on = run_evaluation(run, dispatcher, held_out, step, oldest=step, prompts=prompts)
        summary = evaluation_summary(run, scored, trained_on, assessor)
    return EvaluationResult(
        config=run,
        step=step,
        prompts=len(scored),
        images=len(scored) * run.evaluation.images,
        rewards=_estimates(summary["rewards"]),
        train_prompts=len(trained_on),
        train_rewards=_estimates(summary.get("train_rewards", {})),
        quality=summary.get("quality", {}),
    )


def _estimates(rows: Mapping[str, Mapping[str, float | None]]) -> Mapping[str, Estimate]:
    return {name: Estimate.of(row) for name, row in rows.items()}


def _note_changes(folder: Path, run: config.Run, say: Say) -> None:
    """Say which files are not what the run began with. Raises RunError if its prompts are among them."""
    for line in opening.changed_inputs(folder, inputs.of_run(run)):
        if line.startswith("prompts."):
            raise RunError(f"{line}, and it says what is held out; put that file back")
        say(f"note: {line}")


def lines(found: EvaluationResult) -> list[str]:
    """Describe an evaluation's results in lines."""
    run = found.config
    said = [f"{run.name}, step {found.step}, {found.prompts} {run.of_evaluation('prompts')}:"]
    said += _said(found.rewards)
    if found.train_prompts:
        said += [f"{found.train_prompts} training prompts:", *_said(found.train_rewards)]
    if found.quality:
        said.append(f"quality, of {found.images} {run.of_evaluation('images')}:")
        width = _width(found.quality)
        said += [f"  {name + ':':<{width}} {shown(value, '.4f'):>8}" for name, value in found.quality.items()]
    return said


def _said(estimates: Mapping[str, Estimate]) -> list[str]:
    said = []
    width = _width(estimates)
    for name, one in estimates.items():
        mean, low, high = (shown(value, ".4f") for value in (one.mean, one.low, one.high))
        interval = f"{low} to {high}" if one.bounded else "no interval, from so few prompts"
        said.append(f"  {name + ':':<{width}} {mean:>8} ({interval})")
    return said


def _width(names: Iterable[str]) -> int:
    return 1 + max(map(len, names), default=0)
