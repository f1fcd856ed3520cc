"""The tokens that a run's judges read and wrote, for the report."""

from typing import Any

from pcpo_ray.runs.records import Record


def tokens(record: Record) -> list[dict[str, Any]]:
    """Return each judge's tokens over the run: those read (prompt), written (completion), and both a training step."""
    found: dict[str, dict[str, int]] = {}
    for row in (*record.steps, *record.evaluated):
        for reward, used in (row.get("tokens") or {}).items():
            kinds = found.setdefault(reward, {"prompt": 0, "completion": 0, "step": 0})
            for kind, count in used.items():
                kinds[kind] += count
                kinds["step"] += count if row["kind"] == "train" else 0
    steps = max(1, len(record.steps))
    return [
        {"reward": reward, "read": used["prompt"], "written": used["completion"], "step": used["step"] / steps}
        for reward, used in found.items()
    ]
