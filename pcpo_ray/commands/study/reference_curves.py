"""`pcpo-ray study --reference`: the reference curves of recipes, from a study of one arm each.

The runs lie in RUNS/references/<recipe>/, each an ordinary run. The same command again keeps those that are whole, and
goes on with the rest. The file of a recipe is written once all of its runs are whole.
"""

import json
import os
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from pcpo_ray.commands import wrapped
from pcpo_ray.commands.report import reference_curves
from pcpo_ray.commands.report.reference_curves import FEWEST_SEEDS, ReferenceCurves
from pcpo_ray.commands.study import plan, results, running
from pcpo_ray.commands.study.plan import Arm, Study
from pcpo_ray.config import files, recipes
from pcpo_ray.data import worlds
from pcpo_ray.errors import ConfigError, StudyError, nearest
from pcpo_ray.process.signals import ended
from pcpo_ray.runs import disk
from pcpo_ray.training import inputs

SEEDS = "1,2,3,4,5"
"""The seeds of reference curves. A recipe's own, 0, is none of them, so that a user's run is one more."""

ARM = "reference"
BELOW = "references"


def seeds_in(text: str) -> tuple[int, ...]:
    """Read seeds that are written as `1,2,3`. Raises ConfigError for other texts, and for too few."""
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise ConfigError(f"--seeds {text}: expected whole numbers from 0, as in --seeds {SEEDS}")
    seeds = tuple(int(word) for word in words)
    if len(set(seeds)) != len(seeds):
        raise ConfigError(f"--seeds {text} names a seed twice; each would be the same run again")
    if len(seeds) < FEWEST_SEEDS:
        raise ConfigError(
            f"--seeds {text}: got {len(seeds)}; expected at least {FEWEST_SEEDS}, as in --seeds {SEEDS}: a band over "
            "fewer would be too wide to say anything"
        )
    return seeds


def study_of(recipe: str, seeds: tuple[int, ...]) -> Study:
    """Make the study whose runs are a recipe's at some seeds. Raises ConfigError for a recipe that cannot have curves.

    That is one whose model does not come with the package: other weights would be other curves.
    """
    embedded = [name for name in recipes.names() if _is_embedded(name)]
    if recipe not in recipes.names():
        raise ConfigError(
            f"--reference {recipe}: no recipe of that name{nearest(recipe, embedded)}; expected names, of "
            f"{', '.join(embedded)}"
        )
    if recipe not in embedded:
        raise ConfigError(
            f"--reference {recipe}: its model, {files.load(recipe).model.path}, does not come with the package, so its "
            f"curves would hold for this machine's copy; expected names of {', '.join(embedded)}"
        )
    return Study(name=recipe, base=files.read(recipe), arms={ARM: Arm()}, seeds=seeds)


def _is_embedded(recipe: str) -> bool:
    return worlds.of_model(files.load(recipe).model.path) is not None


def curves(study: Study, folder: Path) -> ReferenceCurves:
    """Read the curves of a study's runs. Raises StudyError for runs that are missing, and for one without a score."""
    found = results.read(study, folder)
    arm = found.first
    rewards = {name: arm.held_out(name).T for name in arm.watched}
    for name, table in rewards.items():
        for column, seed in zip(table.T, study.seeds, strict=True):
            if not np.isfinite(column).all():
                raise StudyError(
                    f"{folder}: {name} at seed {seed} has no score at some evaluation: {column.tolist()}; see why in "
                    f"logs/, delete that run's folder, and start again"
                )
    return ReferenceCurves(
        recipe=study.name,
        baseline=recipes.BASELINES.get(study.name),
        surroundings={key: tuple(values) for key, values in found.surroundings.items()},
        seeds=tuple(study.seeds),
        steps=tuple(arm.evaluated),
        rewards={name: tuple(map(tuple, table.tolist())) for name, table in rewards.items()},
        inputs=inputs.read(arm.records[0].folder) or {},  # of all runs the same, as `results.read` has seen
        resolved=json.loads(json.dumps(files.plain(files.load(study.name)))),  # lists, as a file gives them back
    )


def place(out: Path | None) -> Path:
    """Return the folder for the files: the one given, or the package's in a checkout. Raises ConfigError elsewhere."""
    if out is not None:
        return out
    if not (recipes.PACKAGE.parent / "pyproject.toml").is_file():
        raise ConfigError(
            f"{recipes.PACKAGE} is an installation, where curves would be lost with the next one; say where to write "
            "them, as in --out curves"
        )
    return reference_curves.FOLDER


def command(
    names: Sequence[str],
    runs: Path,
    *,
    seeds: tuple[int, ...],
    local: bool,
    jobs: int | None,
    report_only: bool,
    out: Path | None,
    console: Console,
) -> None:
    """Make the curves of one recipe after the other, and say what to commit.

    Raises the PcpoError of any recipe before the first begins.
    """

    say = partial(wrapped.say, console)
    folder = place(out)
    studies = [study_of(name, seeds) for name in dict.fromkeys(names)]
    for study in studies:
        plan.check(study)
    written = []
    for study in studies:
        home = runs / BELOW / study.name
        if not report_only:
            count = jobs or running.default_jobs(study, local=local)
            say(f"{study.name}: {len(seeds)} seeds, {count} runs at a time, in {home}")
            try:
                with ended(say):
                    running.Runner(study, home, local=local, jobs=count, say=say).run()
            except KeyboardInterrupt:
                say("stopped; the same command keeps the runs that are whole and goes on with the others")
                raise
        written.append(_write(curves(study, home), folder))
        say(f"written: {written[-1]}")
        say(f"  {_said(reference_curves.read(written[-1]))}")
    if out is None:
        say("commit these, which a wheel takes along and `pcpo-ray report` draws runs over:")
        say("  " + shlex.join(["git", "add", *(os.path.relpath(path) for path in written)]))


def _write(found: ReferenceCurves, folder: Path) -> Path:
    with disk.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{found.recipe}.json"
    disk.replace(path, reference_curves.dumped(found))
    return path


def _said(found: ReferenceCurves) -> str:
    """Say what a file holds."""
    last, total = max(found.steps), next(iter(found.rewards))
    change = found.changes(total)[last]
    beside = f", beside its baseline {found.baseline}" if found.baseline else ""
    return (
        f"{len(found.seeds)} seeds of {found.recipe}{beside}: in 95 of 100 further runs the {total} changes by "
        f"{change.low:+.3g} to {change.high:+.3g} until step {last}; "
        f"{len(found.rewards)} rewards at {len(found.steps)} evaluations"
    )
