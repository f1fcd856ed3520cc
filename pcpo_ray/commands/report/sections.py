"""The sections of report.html, each made from a run's record."""

import base64
import io
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pcpo_ray.commands.report import charts
from pcpo_ray.config import TOTAL
from pcpo_ray.config.rewards import OWN_SCALE
from pcpo_ray.runs.records import Record

PAIRS = 16
"""Image pairs shown, before and after training."""
SIDE = 256
"""Largest width and height of a shown image, in pixels."""
QUALITY = {
    "frechet": ("Fréchet distance", "how far all pictures together are from the reference: less is better"),
    "precision": ("precision", "share of pictures that look like one of the reference"),
    "recall": ("recall", "share of the reference that looks like one of the pictures"),
    "density": ("density", "how much of the reference is near a picture; about 1 for the reference's own kind"),
    "coverage": ("coverage", "share of the reference that has a picture near it"),
    "vendi": ("Vendi score", "how many different pictures a prompt has: 1 where all are the same"),
    "pairwise": ("pairwise distance", "1 - cosine between the pictures of a prompt, in mean"),
    "lpips": ("LPIPS", "perceptual distance between the pictures of a prompt, in mean"),
}
"""Titles and meanings of the measures in rewards/quality/."""
PHASES = {
    "sample_and_score": ("sampling and scoring", "waiting for a batch's pictures and their scores"),
    "learn": ("learning", "the update of the weights"),
    "publish": ("publishing", "handing the new weights to the samplers"),
    "rest": ("the rest of a step", "advantages, and recording the samples"),
    "evaluation": ("evaluation", "its pictures and their scores"),
}


def state(record: Record) -> str:
    """Say how the run ended, as far as the folder knows."""
    done = f"after step {record.done} of {record.run.steps}"
    endings = record.named("finished", "stopped", "rolled_back", "failed", "resumed")
    match endings[-1] if endings else None:
        case {"alarm": alarm}:
            return f"The run was ended {done} by its monitors: {alarm}."
        case {"kind": "finished"}:
            return f"The run finished all of its {record.run.steps} steps."
        case {"kind": "stopped"}:
            return f"The run was stopped {done}; it can go on with --resume."
        case {"kind": "failed", "error": error}:
            return f"The run failed {done}: {error}"
    return f"The run has not finished: the record ends {done}. It is still going on, or it was killed."


def started(record: Record) -> str:
    """Return when the run started, in UTC."""
    times = [row["time"] for row in (*record.events, *record.evaluated, *record.steps)]
    return f"{datetime.fromtimestamp(min(times), UTC):%Y-%m-%d %H:%M} UTC" if times else "not on record"


def rewards(record: Record) -> list[dict[str, Any]]:
    """Return each evaluated reward with its charts and change: the trained total first, untrained ones last."""
    if not record.evaluated:
        return []
    weights = {reward.name: reward.weight for reward in record.run.rewards}
    scales = {reward.name: reward.scale for reward in (*record.run.rewards, *record.run.evaluation.rewards)}
    watched = [name for name in record.evaluated[0]["rewards"] if name not in weights and name != TOTAL]
    batches = {
        max(0, row["step"] - 1 - record.run.rollout.max_staleness): row["reward_mean"] for row in record.steps
    }  # by the weights that drew them
    found = []
    for place, key in enumerate([TOTAL, *([] if record.sole else weights), *watched]):
        name = next(iter(weights)) if key == TOTAL and record.sole else key
        if name == TOTAL:
            terms = " + ".join(f"{weight:g} * {term}" for term, weight in weights.items())
            name, unit, meaning = "total", "weighted sum", f"what was trained on: {terms}"
        else:
            scale = scales.get(name, OWN_SCALE)  # for a name that the run's config does not have
            unit, meaning = scale.unit, scale.meaning
        levels = record.levels(key)
        compared = len(levels) > 1
        changes = record.changes(key) if compared else {}
        found.append(
            {
                "name": name,
                "unit": unit,
                "meaning": meaning,
                "trained": key == TOTAL or key in weights,
                "before": levels[min(levels)].mean,
                "after": levels[max(levels)].mean if compared else math.nan,
                "change": changes[max(levels)] if compared else None,
                "level": charts.reward(
                    f"reward-{place}",
                    name,
                    unit,
                    levels,
                    batches if key == TOTAL else None,
                    prompts=record.run.of_evaluation("prompts"),
                ),
                "changes": charts.change("change", name, unit, changes) if compared and key == TOTAL else None,
            }
        )
    return found


def quality(record: Record) -> dict[str, Any] | None:
    """Return each quality measure at the first and last evaluation, and the charts of two of them."""
    rows = [{"step": row["step"], **row["quality"]} for row in record.evaluated if row.get("quality")]
    if not rows:
        return None
    measures = [name for name in QUALITY if name in rows[0]]
    table = [(*QUALITY[name], rows[0][name], rows[-1].get(name, math.nan)) for name in measures]
    drawn = [
        (*QUALITY[name], charts.history(name, QUALITY[name][0], "", [row for row in rows if name in row]))
        for name in ("frechet", "pairwise")
        if name in measures and len(rows) > 1
    ]
    return {"table": table, "charts": drawn, "several": len(rows) > 1}


def examples(record: Record) -> dict[str, Any] | None:
    """Return evenly spaced pairs of images before and after training; single ones if no later images were kept."""
    kept = [step for step in record.scores if image_path(record, step, 0, 0).is_file()]
    if not kept:
        return None
    first, last = min(kept), max(kept)
    texts = prompts(record, first)
    before, after = (record.scores[step][TOTAL] for step in (first, last))
    count = min(PAIRS, before.size)
    pairs = []
    for flat in (n * before.size // count for n in range(count)):
        position, sample = divmod(flat, before.shape[1])
        shown = [(first, before[position, sample]), (last, after[position, sample])][: 1 + (last > first)]
        found = [(step, score, *thumbnail(image_path(record, step, position, sample))) for step, score in shown]
        pairs.append({"prompt": texts[position], "shown": found})
    return {"first": first, "last": last, "pairs": pairs, "of": before.size}


def prompts(record: Record, step: int) -> list[str]:
    """Read the texts of an evaluation's P prompts."""
    from pyarrow import parquet

    path = record.folder / "evaluations.parquet" / f"step-{step:06d}.parquet"
    table = parquet.read_table(path, columns=["prompt", "sample"])
    return [row["prompt"] for row in table.to_pylist() if row["sample"] == 0]


def image_path(record: Record, step: int, position: int, sample: int) -> Path:
    """Return the path of one evaluation image."""
    return record.folder / "images" / f"step-{step:06d}" / f"{position:03d}-{sample:02d}.png"


def thumbnail(path: Path) -> tuple[str, int]:
    """Return an image as a data URL, reduced to SIDE pixels, and its width."""
    from PIL import Image

    with Image.open(path) as image:
        image.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        image.save(file, format="PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode(), image.width


def timesteps(record: Record) -> dict[str, Any] | None:
    """Return the charts by timestep and of the updates; None before the first step."""
    if not record.steps:
        return None
    steps, drawn = record.steps, charts.by_timestep
    return {
        "weights": charts.weights(steps[-1]["per_timestep"]),
        "gradient": drawn("gradient_share", "Share of the gradient", "share", steps, percent=True, even=True),
        "clip": drawn("clip_fraction", "Clip fraction", "share of pairs", steps, percent=True),
        "inactive": drawn("inactive_fraction", "Inactive fraction", "share of pairs", steps, percent=True),
        "ratio": drawn("ratio_std", "Deviation of the ratio", "rms of ratio - 1", steps, percent=False),
        "history": charts.history("clip_fraction", "Clip fraction", "share of pairs", steps, percent=True)
        if any(row["clip_fraction"] for row in steps)
        else None,
        "moved": charts.history("moved_fraction", "Weights that moved", "fraction", steps, percent=True),
        "update_size": charts.history("update_ratio", "Size of an update", "|update| / |weights|", steps),
        "skipped": sum(row["skipped_gradients"] for row in steps),
        "kl": charts.history("kl", "KL divergence", "nats a dimension", steps) if "kl" in steps[0] else None,
    }


def times(record: Record) -> list[tuple[str, str, float]]:
    """Return each phase with its title, meaning and total seconds."""
    spent = {name: math.fsum(row["phase_seconds"].get(name, 0.0) for row in record.steps) for name in PHASES}
    spent["rest"] = max(0.0, math.fsum(row["seconds"] for row in record.steps) - math.fsum(spent.values()))
    spent["evaluation"] = math.fsum(row["seconds"] for row in record.evaluated)
    return [(*text, spent[name]) for name, text in PHASES.items()]


def idle(record: Record) -> list[tuple[str, float]]:
    """Return the fraction of the run that each role spent waiting."""
    total = math.fsum(row["seconds"] for row in record.steps)
    roles = record.steps[0]["idle"] if total else {}
    return [(role, math.fsum(row["idle"][role] * row["seconds"] for row in record.steps) / total) for role in roles]
