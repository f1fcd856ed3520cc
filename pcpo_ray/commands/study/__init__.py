"""Arms compared on the same seeds: which runs a study has, making them, and what they say together.

plan        the study's file: arms, seeds, targets, the search for a learning rate; axes: what must be equal
running     its runs, several at a time, each a `pcpo-ray train`
results     the stored runs, checked and read        statistics  intervals and tests for few seeds
table       the result in a terminal and in Markdown  page, charts  the result as one self-contained page
reference_curves  the curves of a recipe over seeds, from a study of one arm, for the report to draw runs over
"""

from pathlib import Path
from typing import Annotated

import typer


def study(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY", help="Studies, such as studies/diffusion, or files of them; recipes with --reference."
        ),
    ],
    local: Annotated[bool, typer.Option("--local", help="Run in this process, without Ray.")] = False,
    runs: Annotated[Path, typer.Option(help="A study's folder is RUNS/<name>.")] = Path("runs"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; by default as many as the machine has cores for.")
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Only the table and the page, from the runs that are there.")
    ] = False,
    reference: Annotated[
        bool, typer.Option("--reference", help="Make the reference curves of recipes, which reports draw runs over.")
    ] = False,
    seeds: Annotated[
        str | None, typer.Option(help="With --reference: the seeds, 1,2,3,4,5 by default.", metavar="1,2,...")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="With --reference: the folder for the files; in a checkout, the package's own by default."),
    ] = None,
) -> None:
    """Compare arms on the same seeds; the same again keeps the runs that are whole and goes on with the others.

    With --reference, train recipes at several seeds, and write the curves that reports draw other runs over.
    """
    from rich.console import Console

    from pcpo_ray.commands.study import reference_curves, running
    from pcpo_ray.errors import ConfigError

    console = Console()
    if reference:
        chosen = reference_curves.seeds_in(reference_curves.SEEDS if seeds is None else seeds)
        reference_curves.command(
            places, runs, seeds=chosen, local=local, jobs=jobs, report_only=report_only, out=out, console=console
        )
        return
    if seeds is not None or out is not None:
        raise ConfigError("got --seeds or --out without --reference; a study's seeds stand in its file")
    running.command(
        [Path(one) for one in places], runs, local=local, jobs=jobs, report_only=report_only, console=console
    )
