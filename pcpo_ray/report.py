"""report.html: one self-contained page on a run, for a reader who was not there. Made from the run folder alone."""

import base64
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from pcpo_ray import __version__, config, runs
from pcpo_ray.evaluation import TOTAL
from pcpo_ray.figures import Axes, Colour, Curve, chart
from pcpo_ray.recorder import Recorder

PAIRS = 16
THUMBNAIL = 256
LABELS = {
    "clip_score": "CLIP score",
    "shapes_oracle": "facts of the caption shown (oracle)",
    "shapes_oracle_all": "pictures right in all facts (oracle)",
    "jpeg_compressibility": "negative JPEG size, kB",
    "jpeg_incompressibility": "JPEG size, kB",
    "diversity": "diversity inside a prompt",
}


def write(folder: Path) -> Path:
    """Write folder/report.html from what the folder holds, also of a run that is not finished. Raises RunError."""
    import jinja2

    run = runs.read(folder)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pcpo_ray", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    page = environment.get_template("report.html.j2").render(**contents(folder, run))
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def contents(folder: Path, run: config.Run) -> dict[str, Any]:
    """Everything the template shows."""
    rows = Recorder(folder, run).metrics()
    steps = [row for row in rows if row["kind"] == "train"]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    first, last = (evaluations[0]["step"], evaluations[-1]["step"]) if evaluations else (0, 0)
    gained = runs.gains(folder, first, last) if last > first else {}
    total = gained.get(TOTAL)
    return {
        "version": __version__,
        "run": run,
        "rewards": ", ".join(f"{reward.weight:g} x {label(reward.name)}" for reward in run.rewards),
        "done": steps[-1]["step"] if steps else 0,
        "samples": steps[-1]["samples"] if steps else 0,
        "seconds": rows[-1]["time"] - rows[0]["time"] if rows else 0.0,
        "verdict": runs.verdict(total, evaluations[-1]["images"]) if total is not None else None,
        "rose": total is not None and total.low > 0,
        "fell": total is not None and total.high < 0,
        "last_evaluation": last,
        "pairs": pairs(folder, run, first, last) if last > first else [],
        "gains": gain_table(run, evaluations, gained),
        "curves": reward_curves(run, evaluations, steps),
        "timesteps": timestep_charts(steps),
        "ratio": [row["max_log_ratio"] for row in _events(folder) if row["kind"] == "first_update"],
        "phases": phase_table(steps, evaluations),
        "idle": idle_table(steps),
        "faults": [row for row in _events(folder) if row["kind"] in ("fault", "missing_scores", "failed")],
        "dropped": sum(row["dropped_groups"] for row in steps),
        "degenerate": sum(row["degenerate_groups"] for row in steps),
        "config": config.dump(run),
    }


def label(name: str) -> str:
    """A reward's name for a reader."""
    return LABELS.get(name, name.replace("_", " "))


def pairs(folder: Path, run: config.Run, first: int, last: int) -> list[dict[str, Any]]:
    """Up to PAIRS pictures before and after, evenly spaced over the prompts and not chosen by result."""
    from pyarrow import parquet

    tables = [
        parquet.read_table(folder / "evaluations.parquet" / f"step-{step:06d}.parquet").to_pylist()
        for step in (first, last)
    ]
    after = {(row["position"], row["sample"]): row for row in tables[1]}
    ones = [row for row in tables[0] if row["sample"] == 0]
    chosen = [ones[index] for index in np.unique(np.linspace(0, len(ones) - 1, min(PAIRS, len(ones))).astype(int))]
    found = []
    for row in chosen:
        name = f"{row['position']:03d}-{row['sample']:02d}.png"
        files = [folder / "images" / f"step-{step:06d}" / name for step in (first, last)]
        if all(file.is_file() for file in files):
            later = after[row["position"], row["sample"]][TOTAL]
            images = [_inline(file) for file in files]
            found.append({"prompt": row["prompt"], "images": images, "scores": [row[TOTAL], later]})
    return found


def gain_table(run: config.Run, evaluations: Sequence[dict], gained: dict) -> list[dict[str, Any]]:
    """A row a reward: before, after, paired change with its interval, and whether it was trained on."""
    if not gained:
        return []
    trained = {reward.name for reward in run.rewards}
    before, after = evaluations[0]["rewards"], evaluations[-1]["rewards"]
    names = [name for name in gained if name != TOTAL]
    return [
        {
            "name": label(name),
            "trained": name in trained,
            "before": before[name]["mean"],
            "after": after[name]["mean"],
            "change": gained[name],
        }
        for name in sorted(names, key=lambda name: name not in trained)
    ]


def reward_curves(run: config.Run, evaluations: Sequence[dict], steps: Sequence[dict]) -> list[dict[str, Any]]:
    """A chart a reward, the trained ones first, with the 95% interval of its mean over held-out prompts."""
    if not evaluations:
        return []
    trained = {reward.name for reward in run.rewards}
    found: list[dict[str, Any]] = []
    for name in sorted(evaluations[0]["rewards"], key=lambda name: name not in trained):
        if name == TOTAL and len(trained) == 1:
            continue  # the same numbers as the one reward
        values = [row["rewards"][name] for row in evaluations]
        curves = [
            Curve(
                label="held-out prompts, 95% interval",
                x=[row["step"] for row in evaluations],
                y=[value["mean"] for value in values],
                low=[value["low"] for value in values],
                high=[value["high"] for value in values],
            )
        ]
        if steps and (name in trained or name == TOTAL):
            batch = [row["reward_mean"] if name == TOTAL else row["rewards"][name] for row in steps]
            where = [row["step"] for row in steps]
            curves.append(Curve(label="training batch", x=where, y=batch, colour="orange", thin=True))
        title = "weighted sum of the trained rewards" if name == TOTAL else label(name)
        drawn = chart(f"reward-{len(found)}", f"{title} against steps", curves, Axes(x="step", y=title))
        found.append({"title": title, "trained": name in trained or name == TOTAL, "svg": drawn})
    return found


def timestep_charts(steps: Sequence[dict]) -> list[dict[str, Any]]:
    """What each denoising step was credited with and what became of it: means over the run's updates."""
    if not steps:
        return []
    names = [f"{timestep:.0f}" for timestep in steps[0]["per_timestep"]["timestep"]]
    where = list(range(len(names)))

    def mean(column: str) -> list[float]:
        values = np.array([row["per_timestep"][column] for row in steps], np.float64)
        return [float(value) for value in np.nanmean(values, axis=0)] if np.isfinite(values).any() else []

    def drawn(
        name: str, title: str, text: str, curves: Sequence[tuple[str, str, Colour]], **axes: Any
    ) -> dict[str, Any]:
        made = [
            Curve(label=key, x=where, y=mean(column), colour=paint) for key, column, paint in curves if mean(column)
        ]
        svg = chart(name, title, made, Axes(x="timestep, noisiest first", y=title, ticks=names, **axes)) if made else ""
        return {"title": title, "text": text, "svg": svg}

    return [
        drawn(
            "weight",
            "weight of the log-ratio",
            "How strongly one unit of change in the network's prediction counts at each step. The sampler's own "
            "weights are uneven for reasons of the noise schedule alone; proportionate credit evens them out.",
            [("credit", "credit_weight", "blue"), ("sampler's own", "native_weight", "orange")],
            from_zero=True,
        ),
        drawn(
            "gradient",
            "share of the gradient",
            "How much of all the learning signal each step received.",
            [("share", "gradient_share", "blue")],
            from_zero=True,
            percent=True,
            reference=1 / len(names),
        ),
        drawn(
            "clip",
            "clip fraction",
            "The share of (image, step) pairs whose log-ratio left the clip range on either side; for the inactive "
            "ones the gradient was cut off.",
            [("left the range", "clip_fraction", "blue"), ("inactive", "inactive_fraction", "orange")],
            from_zero=True,
            percent=True,
        ),
        drawn(
            "ratio",
            "deviation of the ratio",
            "How far the policy had moved from the one that sampled, within one batch.",
            [("standard deviation", "ratio_std", "blue")],
            from_zero=True,
        ),
    ]


def phase_table(steps: Sequence[dict], evaluations: Sequence[dict]) -> list[tuple[str, float]]:
    """Seconds by phase, over the whole run."""
    names = {"sample_and_score": "sampling and scoring", "learn": "learning", "publish": "publishing weights"}
    table = [(text, sum(row["phase_seconds"].get(name, 0.0) for row in steps)) for name, text in names.items()]
    return [*table, ("evaluation", sum(row["seconds"] for row in evaluations))]


def idle_table(steps: Sequence[dict]) -> list[tuple[str, float]]:
    """Each role's mean share of waiting."""
    roles = steps[0]["idle"] if steps else {}
    return [(role, float(np.mean([row["idle"][role] for row in steps]))) for role in roles]


def number(value: float) -> str:
    """Four significant digits, or a dash for what is not there."""
    return f"{value:.4g}" if math.isfinite(value) else "-"


def _events(folder: Path) -> list[dict[str, Any]]:
    path = folder / "events.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def _inline(path: Path) -> Markup:
    """A picture as a data address, at most THUMBNAIL pixels a side."""
    from PIL import Image

    with Image.open(path) as image:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        image.save(file, format="PNG")
    return Markup("data:image/png;base64," + base64.b64encode(file.getvalue()).decode())
