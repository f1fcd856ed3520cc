"""`pcpo-ray check`: try a run's files, model and rewards on this machine, before a run that costs more."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcpo_ray.commands.check.finding import MARGIN, Finding, failures

if TYPE_CHECKING:
    import numpy as np

    from pcpo_ray.config import Run


def check(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A YAML config, or a recipe's name, such as shapes_pcpo.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="Overrides of the config, each a.b.c=value.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object.")] = False,
) -> None:
    """Check a run before it starts: its files, two images, one update, and each reward on images that are known.

    Ends with 1 where something failed.
    """
    from pcpo_ray.commands.waiting import Waiting
    from pcpo_ray.config import files, paths
    from pcpo_ray.runs.lines import text

    run = paths.absolute(files.load(config, overrides or []))
    with Waiting("loading torch and diffusers", quiet=as_json, lines=False) as waiting:
        found = findings(run, lambda finding: waiting.say(finding.line, hang=MARGIN), phase=waiting)
    failed = failures(found)
    if as_json:
        print(text({"failed": failed, "findings": [dataclasses.asdict(finding) for finding in found]}))
    else:
        print(f"{failed} failed" if failed else "nothing failed")
    if failed:
        raise typer.Exit(1)


def findings(
    run: "Run", say: Callable[[Finding], None], phase: Callable[[str], None] = lambda text: None
) -> list[Finding]:
    """Try everything, each part even where another one fails; every finding is told as it is made.

    `phase` is told what goes on between them.
    """
    found = []
    for finding in _findings(run, phase):
        say(finding)
        found.append(finding)
    return found


def _findings(run: "Run", phase: Callable[[str], None]) -> Iterator[Finding]:
    from pcpo_ray.commands.check import of_model, of_rewards
    from pcpo_ray.data import prompts
    from pcpo_ray.data.tensors import device_here
    from pcpo_ray.errors import PcpoError
    from pcpo_ray.process.plugins import explained

    sampled: dict[str, np.ndarray] = {}
    phase("checking the model, the rewards and the prompts")
    checked = list(of_model.files(run))
    yield from checked
    if failures(checked):
        return  # nothing else could be loaded
    phase("drawing two images, and making one update")
    yield of_model.adapter(run)
    try:
        yield from of_model.trained(run, sampled.__setitem__)
    except Exception as error:  # a model's libraries may raise anything, such as a lack of memory
        told = str(error) if isinstance(error, PcpoError) else explained(error)
        yield Finding(part="model", tried="two images and one update", verdict="failed", detail=told)
    own = [prompt.text for prompt in prompts.sources(run)[0].distinct(4)]
    for reward in {reward.name: reward for reward in (*run.rewards, *run.evaluation.rewards)}.values():
        phase(f"trying the reward {reward.name}")
        yield from of_rewards.tried(run, reward, own, device_here(), sampled)
