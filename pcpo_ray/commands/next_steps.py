"""Commands for what to do next when a run has ended: open its report, draw with it, load it, train on."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from pcpo_ray import config
from pcpo_ray.commands import resuming
from pcpo_ray.commands.results import RunResult
from pcpo_ray.data import prompts
from pcpo_ray.errors import PcpoError
from pcpo_ray.runs.folder import RunFolder
from pcpo_ray.runs.lines import counted
from pcpo_ray.runs.stored import StoredFolder

MORE = 2
"""The factor of steps in the command that trains on."""


def after(found: RunResult, continuing: str) -> list[str]:
    """Return the lines on what to do next with a run that has ended; `continuing` is the command that continues it."""
    run, home = found.config, found.home
    place = home.url if isinstance(home, StoredFolder) else found.place
    lines = {
        "see the report": (found.folder / "report.html").as_uri(),
        "draw before and after": f"pcpo-ray sample {shlex.quote(place)} {shlex.quote(_prompt(run))} --compare",
    }
    if (step := max(home.steps(), default=None)) is not None:
        lines["use it in diffusers (the report has the whole program)"] = _loading(run, home, step)
    if found.ending == "stopped" and not found.alarm:
        lines[f"go on to step {run.steps}"] = continuing
    elif "steps" in resuming.free_to_change(run):
        lines[f"train {counted(run.steps, 'more step')}"] = _with(
            shlex.split(continuing), [f"steps={MORE * run.steps}"]
        )
    if not any(isinstance(reward, config.CustomReward) for reward in run.rewards):
        lines["train for a reward of yours, a class with score(images, prompts) in my_rewards.py"] = _with(
            [word for word in shlex.split(continuing) if word != "--resume"],
            [f"name={run.name}-own-reward", "rewards=my_rewards:MyReward"],
        )
    return [f"next{_activation()}:", *(line for what, how in lines.items() for line in (f"  {what}:", f"    {how}"))]


def _activation() -> str:
    """Say how a shell comes to find pcpo-ray, where it does not: `make demo` runs it by its path."""
    script = Path(sys.prefix) / "bin" / "activate"
    if shutil.which("pcpo-ray") is not None or not script.is_file():
        return ""
    shown = os.path.relpath(script) if script.is_relative_to(Path.cwd()) else script
    return f" (first, once in a shell: . {shlex.quote(str(shown))})"


def _loading(run: config.Run, home: RunFolder, step: int) -> str:
    """Return the calls that load a step's checkpoint with diffusers, which reads folders of this machine only."""
    lora = isinstance(run.model.train, config.Lora)
    if isinstance(home, StoredFolder):
        fetch = f'run = pcpo_ray.load_run("{home.url}"); '  # the copy lasts as long as the result
        folder = "run.checkpoint" if lora else 'run.checkpoint / "model"'
    else:
        fetch = ""
        folder = f'"{home.checkpoint_place(step)}{"" if lora else "/model"}"'
    return fetch + (f"pipe.load_lora_weights({folder})" if lora else f"DiffusionPipeline.from_pretrained({folder})")


def _prompt(run: config.Run) -> str:
    """Return a prompt of the evaluation, as one that the reward is about."""
    try:
        _, held_out = prompts.sources(run)
        return held_out.distinct(1)[0].text
    except PcpoError:
        return "a photo of a cat"


def _with(command: list[str], overrides: list[str]) -> str:
    """Write a command with other overrides in place of its own of the same keys."""
    keys = tuple(override.partition("=")[0] + "=" for override in overrides)
    kept = [word for word in command if not word.startswith(keys)]
    at = next((place for place, word in enumerate(kept) if word.startswith("--")), len(kept))
    return shlex.join([*kept[:at], *overrides, *kept[at:]])
