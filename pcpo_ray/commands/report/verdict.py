"""The verdict on a run: whether the trained total rose on the evaluated prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pcpo_ray import config
from pcpo_ray.commands.report import numbers
from pcpo_ray.commands.report.reference_curves import Beside
from pcpo_ray.config import TOTAL
from pcpo_ray.runs import intervals
from pcpo_ray.runs.intervals import Estimate
from pcpo_ray.runs.records import Record


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A sentence on whether a run's reward rose, and the limits of that statement.

    `tone` is "rose", "fell", "unclear", or "none" where two evaluations cannot be compared. `change` is what was
    measured, from `images` images, and `headline` the sentence without its numbers.
    """

    tone: str
    text: str
    headline: str = ""
    notes: Sequence[str] = ()
    change: Estimate | None = None
    images: int = 0


def verdict(record: Record, beside: Beside | None) -> Verdict:
    """Judge whether the trained total rose between the first evaluation and the last.

    A note says where it lies beside the recipe's other seeds, if it was evaluated and these are on record.
    """
    judged = _judged(record)
    placed = beside.sentence(TOTAL) if record.evaluated and beside is not None else None
    if placed is None:
        return judged
    note = f"Beside other seeds, the change of the {record.run.of_evaluation('reward')} is {placed}."
    return replace(judged, notes=[*judged.notes, note])


def _judged(record: Record) -> Verdict:
    if len(record.scores) < 2:
        missing = "only the one before training" if record.scores else "none"
        text = f"No verdict: it compares two evaluations, and there is {missing}."
        return Verdict(tone="none", text=text)
    if record.run.only_pairwise:
        text = (
            "No verdict: the trained reward compares the images of one prompt, so its mean is the same whatever was "
            "learned."
        )
        return Verdict(tone="none", text=text)
    first, last = min(record.scores), max(record.scores)
    before, after = (record.scores[step][TOTAL] for step in (first, last))
    both = np.isfinite(after - before)
    prompts, images = int(both.any(1).sum()), int(both.sum())
    changed = intervals.paired(before, after)
    notes = [f"From step {first} to step {last}, at the same prompts and seeds."]
    if images < both.size:
        notes.append(f"{both.size - images} of {both.size} images miss a score and are left out.")
    if not images:
        return Verdict(tone="none", text="No verdict: no image has a score before and after.", notes=notes)
    if record.run.combine == "advantages" and not record.sole:
        notes.append(
            "It is about the weighted sum of the rewards; trained on was the sum of each reward's own advantages."
        )
    if not record.run.evaluation.held_out:
        notes.append("Training may have seen these prompts, so it says nothing about prompts that it has not seen.")
    if not changed.bounded:
        reward, on = record.run.of_evaluation("reward"), "1 prompt" if prompts == 1 else f"{prompts} prompts"
        text = f"The {reward} changed by {numbers.signed(changed.mean)} on {on}: no verdict."
        notes.append(f"Fewer than {config.FEWEST} prompts give no interval: this says nothing about other prompts.")
        headline = text.replace(f" by {numbers.signed(changed.mean)}", "")
        return Verdict(tone="unclear", text=text, headline=headline, notes=notes, change=changed, images=images)
    tone = "rose" if changed.low > 0 else "fell" if changed.high < 0 else "unclear"
    notes.append(
        f"The interval is for other prompts like these {prompts}; it says nothing about another training seed."
    )
    if prompts < 10:
        notes.append("With so few prompts the interval is too narrow.")
    text = sentence(record.run, changed, images)
    headline = text.partition(":")[0] + "."
    return Verdict(tone=tone, text=text, headline=headline, notes=notes, change=changed, images=images)


def sentence(run: config.Run, gained: Estimate, images: int) -> str:
    """Say in one sentence whether the evaluated reward rose, given a gain that has an interval."""
    mean = numbers.signed(gained.mean, numbers.places_of(gained))
    interval = f"{mean}, 95% interval {numbers.interval(gained)}, {images} images"
    reward = f"The {run.of_evaluation('reward')}"
    if gained.low > 0:
        return f"{reward} rose: {interval}."
    if gained.high < 0:
        return f"{reward} FELL: {interval}."
    return f"{reward} did NOT clearly change: {interval}."
