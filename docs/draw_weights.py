"""Draw docs/weights.svg: the native weight of each denoising step of the embedded model beside PCPO's constant one.

Run it from the repository's root: `python docs/draw_weights.py`.
"""

from pathlib import Path

import matplotlib

from pcpo_ray import config, models
from pcpo_ray.config import files
from pcpo_ray.models import steps

OVERRIDES = ["sampling.trained_steps=null"]


def weights() -> tuple[list[int], list[float], list[float]]:
    """Compute the timesteps of `shapes_pcpo`'s eight steps, their native weights and those of credit `reweight`."""
    run = files.load("configs/shapes_pcpo.yaml", OVERRIDES)
    schedule = models.schedule_of(models.folder_of(run.model, weights=False), run.model, run.sampling)
    native, reweight = (steps.plan(credit, run.sampling, schedule) for credit in (config.Native(), config.Reweight()))
    return [round(t) for t in schedule.timesteps], list(native.weights), list(reweight.weights)


def draw(path: Path) -> None:
    """Draw both as bars, so that they can be read on a light page and on a dark one."""
    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.hashsalt": "weights", "svg.fonttype": "none", "font.size": 10})
    timesteps, native, reweight = weights()
    figure, axes = pyplot.subplots(figsize=(6.4, 2.4), layout="constrained")
    places = range(len(timesteps))
    grey, blue = "#8a8f98", "#3b7dd8"
    for values, shift, colour, label in ((native, -0.2, grey, "as sampled"), (reweight, 0.2, blue, "PCPO")):
        bars = axes.bar([place + shift for place in places], values, 0.38, color=colour, label=label)
        axes.bar_label(bars, fmt="%.1f", color=colour, fontsize=8)
    axes.set_xticks(list(places), [f"t = {t}" for t in timesteps])
    axes.set_ylabel("weight", color=grey)
    axes.tick_params(colors=grey)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(grey)
    axes.legend(frameon=False, labelcolor="linecolor", loc="upper left")
    figure.savefig(path, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path("docs/weights.svg"))
