"""The health of a run: what went wrong, and what did not."""

from typing import Any

from pcpo_ray.runs.records import Record


def health(record: Record) -> dict[str, Any]:
    """Return what went wrong, and what did not: lines with a count each."""
    groups = record.done * record.run.rollout.prompts

    def total(name: str) -> int:
        return sum(row.get(name) or 0 for row in record.steps)

    faults = record.named("fault", "missing_scores", "failed")
    alarms = record.named("alarm")

    def counted(count: int, one: str, more: str, rest: str) -> tuple[int, str, str]:
        return count, one if count == 1 else more, rest

    of_groups = f"of {groups} groups"
    lines = [
        counted(len(record.named("fault")), "fault", "faults", "of workers, fixed under way"),
        counted(len(record.named("resumed")), "resume", "resumes", "from a checkpoint"),
        counted(len(record.named("failed")), "failure", "failures", "that ended the command"),
        counted(len(record.named("missing_scores")), "group", "groups", "with images that a reward gave no score"),
        counted(
            total("dropped_groups"), of_groups, of_groups, "dropped, as an image had no score (never counted as 0)"
        ),
        counted(
            total("skipped_gradients"), "optimizer step", "optimizer steps", "skipped, as a gradient was not finite"
        ),
        counted(
            total("degenerate_groups"), of_groups, of_groups, "taught nothing, as all their images scored the same"
        ),
        counted(total("rounding_groups"), of_groups, of_groups, "had scores that differ by rounding only"),
    ]
    serious = lines[:6]  # groups that teach nothing belong to any run
    wrong = [f"{len(alarms)} alarm{'s' if len(alarms) > 1 else ''}"] if alarms else []
    wrong += [f"{count} {what}" + (" dropped" if what == of_groups else "") for count, what, _ in serious if count]
    return {
        "title": ", ".join(wrong) or "nothing went wrong",
        "alarms": alarms,
        "lines": [line for line in lines if line[0]],
        "zeros": [line for line in lines if not line[0]],
        "faults": faults,
    }
