"""The sections of report.html, each made from a run's record."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, assert_never

import numpy as np

from pcpo_ray import config
from pcpo_ray.commands.report import charts
from pcpo_ray.commands.report.reference_curves import Beside
from pcpo_ray.commands.report.titles import PHASES, QUALITY, title
from pcpo_ray.config import TOTAL
from pcpo_ray.config.rewards import OWN_SCALE
from pcpo_ray.runs.lines import counted
from pcpo_ray.runs.records import Record

ENDINGS = ("finished", "stopped", "rolled_back", "failed")
"""The kinds of events with which a run ends."""

APART = (
    "trained on was the sum of each reward's own advantages (combine: advantages), where a reward with large numbers "
    "counts no more than one with small ones"
)
"""The difference between the weighted total and what is trained on where each reward has its own advantages."""


def ended(record: Record) -> bool:
    """Return whether the run's last start has ended, as far as the folder knows: one that was killed says nothing."""
    found = record.named(*ENDINGS, "resumed", "started")
    return bool(found) and found[-1]["kind"] in ENDINGS


def state(record: Record) -> str:
    """Say how the run ended, as far as the folder knows."""
    done = f"after step {record.done} of {record.run.steps}"
    endings = record.named(*ENDINGS, "resumed")
    match endings[-1] if endings else None:
        case {"alarm": alarm}:
            return f"The run was ended {done} by its monitors: {alarm}."
        case {"kind": "finished"}:
            return f"The run finished all of its {counted(record.run.steps, 'step')}."
        case {"kind": "stopped"}:
            return f"The run was stopped {done}; it can go on with --resume."
        case {"kind": "failed", "error": error}:
            return f"The run failed {done}: {error}"
    return f"The run has not finished: the record ends {done}. It is still going on, or it was killed."


def subset(run: config.Run) -> str:
    """Say which of the trained steps a group is trained on, if that is a part of them."""
    match run.sampling.subset:
        case None:
            return ""
        case config.ShareOfSteps(share=share):
            return f" (each group on a random {share:.0%} of these)"
        case config.Window(size=size, order="per_prompt"):
            return f" (each group on a window of {size} of its own)"
        case config.Window(size=size, order=order):
            return f" (each batch on a {order} window of {size})"
        case unknown:
            assert_never(unknown)


def started(record: Record) -> str:
    """Return when the run started, in UTC."""
    times = [row["time"] for row in (*record.events, *record.evaluated, *record.steps)]
    return f"{datetime.fromtimestamp(min(times), UTC):%Y-%m-%d %H:%M} UTC" if times else "not on record"


def rewards(record: Record, beside: Beside | None = None) -> list[dict[str, Any]]:
    """Return each evaluated reward with its charts and change: the trained total first, untrained ones last.

    `beside` has the bands of other seeds, which take the place of the interval over prompts but in the first chart.
    """
    if not record.evaluated:
        return []
    weights = {reward.name: reward.weight for reward in record.run.rewards}
    scales = {reward.name: reward.scale for reward in (*record.run.rewards, *record.run.evaluation.rewards)}
    watched = [name for name in record.evaluated[0]["rewards"] if name not in weights and name != TOTAL]
    batches = {
        row["step"] - 1 - row.get("oldest_sample", 0): row["reward_mean"] for row in record.steps
    }  # by the oldest weights that drew them
    apart = record.run.combine == "advantages" and not record.sole
    found = []
    for place, key in enumerate([TOTAL, *([] if record.sole else weights), *watched]):
        name = next(iter(weights)) if key == TOTAL and record.sole else key
        shown = title(name)
        if name == TOTAL:
            shown = "weighted total"
            terms = " + ".join(f"{weight:g} * {term}" for term, weight in weights.items())
            name, unit, meaning = "total", "weighted sum", f"what was trained on: {terms}"
            if apart:
                meaning = f"{terms}; {APART}"
        else:
            scale = scales.get(name, OWN_SCALE)  # for a name that the run's config does not have
            unit, meaning = scale.unit, scale.meaning
        last = record.scores[max(record.scores)][key]
        if missing := int(np.isnan(last).sum()):
            meaning += f"; {missing} of {last.size} images have no score at the last evaluation"
        levels = record.levels(key)
        compared = len(levels) > 1
        changes = record.changes(key) if compared else {}
        over = None if beside is None else beside.chart(f"beside-{place}", key, shown, unit)
        found.append(
            {
                "name": name,
                "title": shown,
                "unit": unit,
                "meaning": meaning,
                "trained": (trained := key == TOTAL or key in weights),
                "tag": "sum of scores" if key == TOTAL and apart else "trained on" if trained else "not trained on",
                "before": levels[min(levels)].mean,
                "after": levels[max(levels)].mean if compared else math.nan,
                "change": changes[max(levels)] if compared else None,
                "beside": over,
                "bounded": any(one.bounded for one in levels.values()),
                "placed": None if beside is None else beside.sentence(key),
                "level": charts.reward(
                    f"reward-{place}",
                    shown,
                    unit,
                    levels,
                    batches if key == TOTAL else None,
                    prompts=record.run.of_evaluation("prompts"),
                    until=record.run.steps,
                ),
                "changes": charts.change("change", shown, unit, changes, until=record.run.steps)
                if compared and key == TOTAL
                else None,
            }
        )
    return found


def lead(record: Record) -> dict[str, Any] | None:
    """Return what a reader is told first of a run whose first reward is a fraction: the fraction before and after.

    `points` is its change in percentage points. None for another reward, and where an evaluation has no scores of it.
    """
    first = record.run.rewards[0]
    if not first.scale.is_fraction or first.weight <= 0 or not record.evaluated:
        return None
    levels = record.levels(first.name)
    if not all(math.isfinite(one.mean) for one in levels.values()):
        return None
    several = len(levels) > 1
    changed = record.changes(first.name)[max(levels)] if several else None
    return {
        "title": title(first.name),
        "before": levels[min(levels)],
        "after": levels[max(levels)] if several else None,
        "points": None if changed is None else changed.scaled(100),
    }


def quality(record: Record) -> dict[str, Any] | None:
    """Return each quality measure at the first and last evaluation, and the charts of two of them."""
    rows = [{"step": row["step"], **row["quality"]} for row in record.evaluated if row.get("quality")]
    if not rows:
        return None
    measures = [name for name in QUALITY if name in rows[0]]
    table = [(*QUALITY[name], rows[0][name], rows[-1].get(name, math.nan)) for name in measures]
    drawn = [
        (*QUALITY[name], charts.history(name, QUALITY[name][0], "", known, until=record.run.steps, from_zero=False))
        for name in ("frechet", "pairwise")
        if name in measures and len(known := [row for row in rows if name in row]) > 1
    ]
    return {"table": table, "charts": drawn, "several": len(rows) > 1}


def timesteps(record: Record) -> dict[str, Any] | None:
    """Return the charts by timestep; None before the first step."""
    if not record.steps:
        return None
    steps, drawn = record.steps, charts.by_timestep
    return {
        "weights": charts.weights(steps[-1]["per_timestep"]),
        "factors": charts.factors(steps[-1]["per_timestep"]),
        "gradient": drawn("gradient_share", "Fraction of the gradient", "fraction", steps, percent=True, even=True),
        "clip": drawn("clip_fraction", "Clip fraction", "fraction of pairs", steps, percent=True),
        "inactive": drawn("inactive_fraction", "Inactive fraction", "fraction of pairs", steps, percent=True),
        "ratio": drawn("ratio_std", "Std of the ratio", "rms of ratio - 1", steps, percent=False),
        "ratio_means": charts.ratio_means(steps),
        "mismatch": charts.mismatch(steps),
        "clipped": _clipped(record.run.objective),
    }


def _clipped(objective: config.Objective) -> str:
    """Say which pairs count as clipped."""
    if isinstance(objective, config.DivergenceMask):
        return (
            "Fraction of (image, step) pairs whose divergence from the weights that sampled has reached "
            f"{objective.threshold:g} nats a dimension: how often an update went further than it is trusted to."
        )
    scaled = "" if objective.clip_scale == "constant" else ", scaled by each step's credit weight"
    return (
        f"Fraction of (image, step) pairs whose log-ratio, new policy to old, strayed beyond "
        f"±{objective.clip_range:g}, the clip range{scaled}: how often an update went further than it is trusted to."
    )


HISTORIES: Mapping[str, tuple[str, str, bool, str]] = {
    "reward_std": ("Spread of the reward", "std", True, "Std of the reward over a whole training batch."),
    "group_deviation": (
        "Std within groups",
        "std",
        True,
        "Std of the reward over the images of one prompt, in mean: what advantages are made of. At 0 there is nothing "
        "to learn.",
    ),
    "loss": ("Loss", "loss", False, "It is a surrogate whose gradient counts: its value says little by itself."),
    "gradient_norm": ("Gradient norm", "L2 norm", True, "Before it is clipped to optimizer.max_gradient_norm."),
    "clip_fraction": ("Clip fraction over the run", "fraction of pairs", True, "All timesteps together."),
    "moved_fraction": (
        "Weights that moved",
        "fraction",
        True,
        "Fraction of the trained weights whose bits an update changed. Near 0, nothing is trained.",
    ),
    "update_ratio": (
        "Size of an update",
        "|update| / |weights|",
        True,
        "The length of an update over the length of the weights, all trained weights together.",
    ),
    "mismatch": (
        "Mismatch of sampler and learner",
        "rms log-ratio",
        True,
        "Log-ratio of the learner's predictions to the sampler's where both have the same weights, all timesteps "
        "together: what another kernel, batch or dtype of the sampler does.",
    ),
    "kl": (
        "KL divergence",
        "nats a dimension",
        True,
        "Divergence from the model under the adapter: how far the policy's steps are from those of the base model.",
    ),
}
"""The charts by training step: title, unit, whether the axis begins at 0, and the caption."""

PERCENT = ("clip_fraction", "moved_fraction")


def histories(record: Record) -> list[tuple[str, str, Any]]:
    """Return title, text and chart of each value that training recorded."""
    found = []
    rows = [{**row, "mismatch": (row.get("mismatch") or {}).get("rms")} for row in record.steps]
    for name, (shown, unit, from_zero, text) in HISTORIES.items():
        if not any(row.get(name) is not None for row in rows):
            continue
        drawn = charts.history(
            name,
            shown,
            unit,
            rows,
            until=record.run.steps,
            percent=name in PERCENT,
            from_zero=from_zero,
        )
        if name == "clip_fraction" and not any(row[name] for row in record.steps):
            drawn = None
        if name == "kl":
            text += f" {record.run.objective.kl:g} times it is part of the loss."
        found.append((shown, text, drawn))
    return found


def facts_of_prompts(record: Record) -> list[str]:
    """Say where prompts come from, and whether the evaluated ones are trained on."""
    event = next(iter(record.named("started")[-1:]), {})
    run = record.run
    told = list(event.get("prompts", []))
    if not told:
        told.append(f"training prompts: {_source(run.prompts)}")
        told.append(f"evaluations: {_source(run.evaluation.prompts or run.prompts)}")
    if run.evaluation.held_out:
        told.append("held out: none of the evaluated prompts is trained on")
    elif run.evaluation.prompts in (None, run.prompts):
        told.append("NOT held out: evaluations use the same prompts as training")
    else:
        told.append("not held out: evaluated prompts may be trained on")
    return told


def _source(prompts: Any) -> str:
    return str(prompts.path) if prompts.kind == "file" else f"{prompts.kind}, {prompts.split}"


def in_turn(record: Record) -> bool:
    """Return whether one process had all roles, when the run was last started."""
    return any(event.get("backend") == "in-process" for event in record.named("started")[-1:])


def workers(record: Record) -> str:
    """Say who did the work."""
    if in_turn(record):
        return "one process that samples, scores and learns in turn (--local)"
    asked = record.run.workers
    learning = f"{asked.learner.ranks} learning" + " and sampling" * asked.learner.samples
    return f"{asked.samplers.workers} sampling, {asked.scorers.workers} scoring, {learning}"


def times(record: Record) -> list[tuple[str, str, float]]:
    """Return each phase with its title, meaning and total seconds."""
    spent = {name: math.fsum(row["phase_seconds"].get(name, 0.0) for row in record.steps) for name in PHASES}
    spent["rest"] = max(0.0, math.fsum(row["seconds"] for row in record.steps) - math.fsum(spent.values()))
    spent["evaluation"] = math.fsum(row["seconds"] for row in record.evaluated)
    return [(*text, spent[name]) for name, text in PHASES.items()]


def idle(record: Record) -> list[tuple[str, float]]:
    """Return the fraction of the run that each role spent waiting; nothing of roles that work in turn."""
    if in_turn(record):
        return []
    total = math.fsum(row["seconds"] for row in record.steps)
    roles = record.steps[0]["idle"] if total else {}
    return [(role, math.fsum(row["idle"][role] * row["seconds"] for row in record.steps) / total) for role in roles]
