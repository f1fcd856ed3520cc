"""A study's table.md and report.html, from the runs' folders alone: the same folders give the same bytes."""

import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from pcpo_ray import __version__, config
from pcpo_ray.commands.report.images import image_path, prompts, thumbnail
from pcpo_ray.commands.report.page import template
from pcpo_ray.commands.study import charts, table, verdict
from pcpo_ray.commands.study.results import ArmRuns, StudyResults
from pcpo_ray.config import files
from pcpo_ray.runs.disk import writing

IMAGES = 6
"""Prompts shown of each arm."""

SAME = 0.1
"""Relative difference of arms' times up to which a chart by seconds would be the one by updates again."""


@dataclass(frozen=True)
class ImageRow:
    """One arm's images of the shown prompts, as data addresses, at one step of the first seed's run."""

    arm: str
    step: int
    images: list[str]


def write(results: StudyResults, path: Path) -> list[Path]:
    """Write table.md and report.html into the study's folder; `path` is the study's file, for the commands shown."""
    prompts, rows = _images(results)
    again = ["pcpo-ray", "study", str(path)]
    page = template("study/page.html.j2").render(
        study=results.study,
        first=results.first,
        version=__version__,
        looks=charts.looks(results),
        verdict=verdict.verdict(results),
        outcome=table.tables(results)[0],
        tables=table.tables(results)[1:],
        sections=_sections(results),
        prompts=prompts,
        images=rows,
        surroundings=results.surroundings,
        config=files.dump(results.study),
        commands=[shlex.join(again), shlex.join([*again, "--report-only"])],
    )
    written = []
    for name, text in (("table.md", table.markdown(results)), ("report.html", page)):
        written.append(results.folder / name)
        with writing(written[-1]):
            written[-1].write_text(text, encoding="utf-8")
    return written


Figure = tuple[str, str, list[Markup]]
"""Title, what is shown, and the charts: several where arms have other timesteps."""


def _sections(results: StudyResults) -> list[tuple[str, str, list[Figure]]]:
    """Title, text, and figures."""
    against, history, by_timestep = charts.reward, charts.history, charts.by_timestep
    objective = results.first.run.objective
    if isinstance(objective, config.DivergenceMask):
        clipped = f"Fraction of (image, step) pairs with a divergence from {objective.threshold:g} nats a dimension on."
    else:
        clipped = f"Fraction of (image, step) pairs with |log ratio| above {objective.clip_range:g}."
    return [
        (
            f"Evaluated on {results.first.run.of_evaluation('prompts')}",
            "Mean over seeds. Bars at the ends of curves are one standard error over seeds, and 95% t-intervals where "
            "arms are compared. Seeds differ in their prompts and noise, which all arms of a seed share: differences "
            "are surer than levels.",
            [
                (
                    "Against the arm compared with",
                    "Reward less that of the other arm at the same seed and update. Clear of 0, the arms differ there.",
                    [charts.differences(results)],
                ),
                (
                    "By updates",
                    "Each is one batch of samples.",
                    [against(results, "updates", "updates", lambda arm: arm.evaluated)],
                ),
                *_by_cost(results),
            ],
        ),
        (
            "Update by update",
            "",
            [
                (
                    "Training reward",
                    "Of the batch that was learned: other prompts at every update.",
                    [history(results, "reward_mean", "Training reward", "reward", zero=False)],
                ),
                (
                    "Std within groups",
                    "Of the reward, over the images of a prompt: what advantages are made from.",
                    [history(results, "group_deviation", "Std within groups", "reward")],
                ),
                (
                    "Clip fraction",
                    clipped,
                    [history(results, "clip_fraction", "Clip fraction", "fraction of pairs", percent=True)],
                ),
                (
                    "Gradient norm",
                    "Before it is cut to optimizer.max_gradient_norm.",
                    [history(results, "gradient_norm", "Gradient norm", "norm")],
                ),
            ],
        ),
        (
            "Timestep by timestep",
            "Means over updates and seeds; arms with other timesteps have a chart of their own.",
            [
                (
                    "Credit weight",
                    "What multiplies a step's log-ratio in the loss.",
                    by_timestep(results, "credit_weight", "Credit weight", "weight w"),
                ),
                (
                    "Fraction of the gradient",
                    "Of all gradient norms, those of this step.",
                    by_timestep(results, "gradient_share", "Fraction of the gradient", "fraction", percent=True),
                ),
                (
                    "Clip fraction",
                    "As above.",
                    by_timestep(results, "clip_fraction", "Clip fraction", "fraction of pairs", percent=True),
                ),
                (
                    "Std of the ratio",
                    "Root mean square of ratio - 1.",
                    by_timestep(results, "ratio_std", "Std of the ratio", "rms of ratio - 1"),
                ),
            ],
        ),
    ]


def _by_cost(results: StudyResults) -> list[Figure]:
    """The evaluated reward by samples and by seconds, each only where it is another chart than by updates."""
    arms, found = list(results.arms.values()), []
    if len({tuple(arm.samples) for arm in arms}) > 1:
        drawn = charts.reward(results, "samples", "samples", lambda arm: arm.samples)
        found.append(("By samples", "Images trained on.", [drawn]))
    spent = [float(arm.seconds[:, -1].mean()) for arm in arms]
    if max(spent) > (1 + SAME) * min(spent):
        drawn = charts.reward(results, "seconds", "seconds", lambda arm: arm.seconds.mean(0).tolist())
        text = (
            "Spent on updates, mean over seeds, with as many runs at a time as the study had; evaluations are not "
            "counted."
        )
        found.append(("By seconds", text, [drawn]))
    return found


def _images(results: StudyResults) -> tuple[list[str], list[ImageRow]]:
    """The shown prompts, and of each arm a row before training and one after it."""
    first = results.first.records[0]
    count = len(next(iter(first.scores[0].values())))
    shown = np.unique(np.linspace(0, count - 1, min(IMAGES, count)).round().astype(int)).tolist()
    texts = prompts(first, 0)
    rows = [row for arm in results.arms.values() for step in (0, arm.run.steps) for row in _row(arm, step, shown)]
    return [texts[place] for place in shown], rows


def _row(arm: ArmRuns, step: int, shown: list[int]) -> list[ImageRow]:
    paths = [image_path(arm.records[0], step, place, 0) for place in shown]
    if not all(path.is_file() for path in paths):
        return []  # images may be deleted to save space; the numbers are in the table
    return [ImageRow(arm.name, step, [thumbnail(path)[0] for path in paths])]
