"""Commands for what comes with the package: `recipes` lists recipes, `init` writes one, `dashboards` dashboards."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pcpo_ray.commands import free_names
from pcpo_ray.errors import ConfigError, RunError


def recipes() -> None:
    """List the recipes that come along: what each trains, with which credit, on how many GPUs, what it downloads."""
    from rich.console import Console

    from pcpo_ray.config import recipes as shipped

    console = Console(markup=False, highlight=False)
    console.print(_table())
    console.print(f"studies: {', '.join(shipped.studies())}")
    console.print(f"lists of prompts: {', '.join(shipped.prompt_lists())}")
    console.print("reward: a + means that it is the first of several")
    console.print("fetch: whether it needs files of others; the commands that fetch them are at the head of its file")
    console.print("next:")
    for line in ("init NAME", "plan NAME --gpu 4090", "train NAME"):
        console.print(f"  pcpo-ray {line}")


def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A recipe or a study, as pcpo-ray recipes lists them.")],
    path: Annotated[
        Path | None, typer.Argument(metavar="PATH", help="The file to write: NAME.yaml if left out.")
    ] = None,
) -> None:
    """Write a recipe's file, to be edited and trained."""
    from pcpo_ray.config import recipes as shipped

    if name not in (*shipped.names(), *shipped.studies()):
        raise ConfigError(f"no recipe is called {name!r}{shipped.nearest(name)}; pcpo-ray recipes lists them")
    into = Path(f"{Path(name).name}.yaml") if path is None else path
    if not _write(into, shipped.text(name)):
        raise free_names.taken(into, ", with other content")
    typer.echo(f"wrote {into}")
    for words in shipped.downloads(name):
        typer.echo(f"  {words}")
    if name in shipped.studies():
        typer.echo(f"  pcpo-ray study {into} --local")
        return
    gpu, switches = shipped.on_one_card(name)
    if gpu:
        typer.echo(f"  pcpo-ray plan {into} --gpu {gpu} --local")
    typer.echo(f"  {shlex.join(['pcpo-ray', 'train', str(into), *switches, '--local'])}")


def dashboards(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write into; it is made if need be.")],
) -> None:
    """Write Grafana dashboards, and Prometheus alert rules with the metrics that they are about."""
    from rich.console import Console

    from pcpo_ray.commands import wrapped
    from pcpo_ray.metrics.dashboards import files

    made = {folder / Path(name).relative_to("deploy"): text for name, text in files().items()}
    edited = [path for path, text in made.items() if not _write(path, text)]
    for path in made:
        typer.echo(f"{path}{' (left as it is here)' if path in edited else ''}")
    wrapped.say(
        Console(),
        "Grafana: import the dashboards, or provision their folder; Prometheus: name the rules under rule_files",
    )
    if edited:
        raise RunError(
            f"{len(edited)} of {len(made)} files were there with other content and are left as they are: "
            f"{', '.join(map(str, edited))}; to get those of this version, move them away and give the same command "
            "again, or give another folder and compare"
        )


COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "recipes": (recipes, "pcpo-ray recipes"),
    "init": (init, "pcpo-ray init shapes_pcpo mine.yaml"),
    "dashboards": (dashboards, "pcpo-ray dashboards monitoring"),
}
"""The commands and an example of each, in the order in which --help lists them."""


def _write(path: Path, text: str) -> bool:
    """Write a file; return False, with nothing written, if one of other content is there. Raises RunError."""
    try:
        if path.exists():
            return path.read_text(encoding="utf-8") == text
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
        return True
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be written: {error}") from None


SHORT = {"stable-diffusion": "SD", "FLUX.2-klein": "klein", "_1024px_diffusers": ""}
"""Shorter words for parts of models' names, so that the listing fits 80 columns."""


def _short(name: str) -> str:
    for part, written in SHORT.items():
        name = name.replace(part, written)
    return name


@dataclass(frozen=True)
class Row:
    """A recipe in a few words, as the listing shows it."""

    name: str
    model: str
    reward: str
    credit: str
    gpus: str
    fetch: str


def rows() -> list[Row]:
    """Describe all recipes. Raises ConfigError for a recipe that is none."""
    from pcpo_ray.config import Run, files
    from pcpo_ray.config import recipes as shipped

    def gpus(run: Run) -> float:
        workers = run.workers
        sharing = workers.samplers.workers * workers.samplers.gpus + workers.scorers.workers * workers.scorers.gpus
        return sharing + workers.learner.ranks * workers.learner.gpus

    loaded: Mapping[str, Run] = {name: files.load(name) for name in shipped.names()}
    return [
        Row(
            name=name,
            model=_short(run.model.path.rpartition("/")[2]),
            reward=run.rewards[0].name + ("+" if len(run.rewards) > 1 else ""),
            credit=run.credit.kind,
            gpus=f"{gpus(run):g}",
            fetch="yes" if shipped.downloads(name) else "no",
        )
        for name, run in loaded.items()
    ]


def _table() -> object:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")  # 80 columns
    for title in ("recipe", "model", "reward", "credit", "GPU", "fetch"):
        table.add_column(title, no_wrap=title == "recipe", justify="right" if title == "GPU" else "left")
    for row in rows():
        table.add_row(row.name, row.model, row.reward, row.credit, row.gpus, row.fetch)
    return table
