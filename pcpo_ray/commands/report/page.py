"""report.html: one self-contained page on a run, for a reader who was not there.

Made from the run folder alone, so it can be written again at any time, of a run that was cut short too; the same folder
gives the same bytes.
"""

import base64
import io
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pcpo_ray import __version__, config
from pcpo_ray.commands import session
from pcpo_ray.commands.report import charts
from pcpo_ray.config import TOTAL, files
from pcpo_ray.config.rewards import OWN_SCALE
from pcpo_ray.runs import intervals, lines, records
from pcpo_ray.runs.disk import replace
from pcpo_ray.runs.intervals import Estimate

if TYPE_CHECKING:
    import jinja2

PAIRS = 16
"""Pictures shown before and after."""
SIDE = 256
"""Pixels to which larger pictures are reduced."""
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
"""Title and meaning of the measures of quality/."""
PHASES = {
    "sample_and_score": ("sampling and scoring", "waiting for a batch's pictures and their scores"),
    "learn": ("learning", "the update of the weights"),
    "publish": ("publishing", "handing the new weights to the samplers"),
    "rest": ("the rest of a step", "advantages, and recording the samples"),
    "evaluation": ("evaluation", "its pictures and their scores"),
}


@dataclass(frozen=True)
class Record:
    """What a run's folder says; `steps` and `evaluated` are the lines of metrics.jsonl."""

    folder: Path
    run: config.Run
    steps: Sequence[dict[str, Any]]
    evaluated: Sequence[dict[str, Any]]
    events: Sequence[dict[str, Any]]
    damaged: Sequence[str]
    """Which lines could not be read, in words."""

    @cached_property
    def scores(self) -> dict[int, dict[str, np.ndarray]]:
        """By step evaluated and reward, the scores, (P, N)."""
        return {row["step"]: records.evaluations(self.folder, row["step"]) for row in self.evaluated}

    @property
    def prompts(self) -> int:
        """How many are evaluated: no more than there are."""
        return next((len(found[TOTAL]) for found in self.scores.values()), self.run.evaluation.count)

    @property
    def done(self) -> int:
        """Updates made."""
        return int(self.steps[-1]["step"]) if self.steps else 0

    @property
    def sole(self) -> bool:
        """Whether the trained total is one reward's own value."""
        return len(self.run.rewards) == 1 and self.run.rewards[0].weight == 1

    def levels(self, name: str) -> dict[int, Estimate]:
        """A reward's mean by step evaluated."""
        return {row["step"]: Estimate.of(row["rewards"][name]) for row in self.evaluated}

    def changes(self, name: str) -> dict[int, Estimate]:
        """By step evaluated, how much a reward differs from the first evaluation's at the same prompts and seeds."""
        first = min(self.scores)
        return {step: intervals.paired(self.scores[first][name], now[name]) for step, now in self.scores.items()}

    def named(self, *kinds: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] in kinds]


def read(folder: Path) -> Record:
    """What a run's folder says. Raises RunError where there is no run."""
    run = records.read(folder)
    metrics, events = lines.metrics(folder / "metrics.jsonl"), lines.events(folder / "events.jsonl")
    return Record(
        folder=folder,
        run=run,
        steps=[row for row in metrics.rows if row["kind"] == "train"],
        evaluated=[row for row in metrics.rows if row["kind"] == "evaluation"],
        events=events.rows,
        damaged=[str(read) for read in (metrics, events) if read.damaged],
    )


def template(name: str) -> "jinja2.Template":
    """A page's template, of the package's; whatever it is given to show is escaped."""
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("pcpo_ray.commands", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(number=number, duration=duration)
    return templates.get_template(name)


def write(folder: Path) -> Path:
    """Write folder/report.html and return its path. Raises RunError where there is no run, or its scores are gone."""
    record = read(folder)
    run = record.run
    page = template("report/page.html.j2").render(
        record=record,
        run=run,
        version=__version__,
        state=" ".join([_state(record), *(f"Left out are {text}." for text in record.damaged)]),
        evaluated=record.prompts,
        started=_started(record),
        verdict=verdict(record),
        pictures=_pictures(record),
        rewards=_rewards(record),
        quality=_quality(record),
        timesteps=_timesteps(record),
        first_update=record.named("first_update")[:1],
        times=_times(record),
        idle=_idle(record),
        config=files.dump(run),
        command=shlex.join(["pcpo-ray", "train", f"runs/{run.name}/config.yaml", f"name={run.name}-again"]),
    )
    path = folder / "report.html"
    replace(path, page)
    return path


def _state(record: Record) -> str:
    """How the run ended, as far as the folder knows."""
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


def _started(record: Record) -> str:
    times = [row["time"] for row in (*record.events, *record.evaluated, *record.steps)]
    return f"{datetime.fromtimestamp(min(times), UTC):%Y-%m-%d %H:%M} UTC" if times else "not on record"


def verdict(record: Record) -> dict[str, Any]:
    """Did the trained total rise on the evaluated prompts: `tone` for the colour, the sentence, what limits it."""
    if len(record.scores) < 2:
        missing = "only the one before training" if record.scores else "none"
        text = f"No verdict: it compares two evaluations, and there is {missing}."
        return {"tone": "none", "text": text, "notes": []}
    first, last = min(record.scores), max(record.scores)
    before, after = (record.scores[step][TOTAL] for step in (first, last))
    both = np.isfinite(after - before)
    prompts, pictures = int(both.any(1).sum()), int(both.sum())
    changed = intervals.paired(before, after)
    notes = [f"From step {first} to step {last}, at the same prompts and seeds."]
    if pictures < both.size:
        notes.append(f"{both.size - pictures} of {both.size} pictures miss a score and are left out.")
    if not pictures:
        return {"tone": "none", "text": "No verdict: no picture has a score before and after.", "notes": notes}
    if not record.run.evaluation.held_out:
        notes.append("Training may have seen these prompts, so it says nothing about prompts that it has not seen.")
    if not changed.bounded:
        reward, on = record.run.of_evaluation("reward"), "1 prompt" if prompts == 1 else f"{prompts} prompts"
        text = f"The {reward} changed by {changed.mean:+.4f} on {on}: no verdict."
        notes.append(f"Fewer than {config.FEWEST} prompts give no interval: this says nothing about other prompts.")
        return {"tone": "unclear", "text": text, "notes": notes}
    tone = "rose" if changed.low > 0 else "fell" if changed.high < 0 else "unclear"
    notes.append(
        f"The interval is for other prompts like these {prompts}; it says nothing about another training seed."
    )
    if prompts < 10:
        notes.append("From so few prompts it comes out too narrow.")
    return {"tone": tone, "text": session.verdict(record.run, changed, pictures), "notes": notes}


def _rewards(record: Record) -> list[dict[str, Any]]:
    """Each reward evaluated, the trained total first and the untrained last, with its charts and its change."""
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


def _quality(record: Record) -> dict[str, Any] | None:
    """What quality/ measured: a row a measure, at the first evaluation and the last, and the charts of two."""
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


def _pictures(record: Record) -> dict[str, Any] | None:
    """Pairs at even spacing; only the pictures before training where no later ones were kept."""
    kept = [step for step in record.scores if picture(record, step, 0, 0).is_file()]
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
        found = [(step, score, *thumbnail(picture(record, step, position, sample))) for step, score in shown]
        pairs.append({"prompt": texts[position], "shown": found})
    return {"first": first, "last": last, "pairs": pairs, "of": before.size}


def prompts(record: Record, step: int) -> list[str]:
    """The texts of an evaluation's P prompts."""
    from pyarrow import parquet

    path = record.folder / "evaluations.parquet" / f"step-{step:06d}.parquet"
    table = parquet.read_table(path, columns=["prompt", "sample"])
    return [row["prompt"] for row in table.to_pylist() if row["sample"] == 0]


def picture(record: Record, step: int, position: int, sample: int) -> Path:
    return record.folder / "images" / f"step-{step:06d}" / f"{position:03d}-{sample:02d}.png"


def thumbnail(path: Path) -> tuple[str, int]:
    """A picture as a data address, and its width, at most SIDE pixels."""
    from PIL import Image

    with Image.open(path) as image:
        image.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        image.save(file, format="PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode(), image.width


def _timesteps(record: Record) -> dict[str, Any] | None:
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


def _times(record: Record) -> list[tuple[str, str, float]]:
    """Each phase, what it is, and its seconds over the run."""
    spent = {name: math.fsum(row["phase_seconds"].get(name, 0.0) for row in record.steps) for name in PHASES}
    spent["rest"] = max(0.0, math.fsum(row["seconds"] for row in record.steps) - math.fsum(spent.values()))
    spent["evaluation"] = math.fsum(row["seconds"] for row in record.evaluated)
    return [(*text, spent[name]) for name, text in PHASES.items()]


def _idle(record: Record) -> list[tuple[str, float]]:
    """Each role's share of waiting over the run's steps, long steps counting more."""
    total = math.fsum(row["seconds"] for row in record.steps)
    roles = record.steps[0]["idle"] if total else {}
    return [(role, math.fsum(row["idle"][role] * row["seconds"] for row in record.steps) / total) for role in roles]


def number(value: float | None, sign: str = "") -> str:
    """Four significant digits, or a dash for what is not there; `sign` "+" shows the plus too."""
    return "-" if value is None or not math.isfinite(value) else f"{value:{sign}#.4g}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
