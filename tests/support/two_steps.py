"""Recipes made small, and trained for two steps."""

import json

import pytest

from pcpo_ray.commands import session
from pcpo_ray.runs import checkpoints
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training.loop import Loop
from pcpo_ray.training.recorder import Recorder

SMALLER = [
    "steps=2",
    "checkpoints.every=2",
    "evaluation.every=2",
    "evaluation.count=2",
    "evaluation.prompts={kind: shapes, split: held_out}",
    "evaluation.held_out=true",
    "prompts={kind: shapes}",
    "rollout.prompts=2",
    "rollout.images=3",
    "workers={samplers: {cpus: 0.1}, scorers: {cpus: 0.1}, learner: {cpus: 0.1}}",
]


def two_steps(run, folder, *, local):
    """Train for two steps; the rows of metrics.jsonl, checked for what holds for any recipe."""
    session.check(run)
    recorder = Recorder.create(LocalFolder(local=folder), run)
    stages = session.stages(run, local=local, say=lambda line: None)
    try:
        prompts, held_out = session.sources(run)
        Loop(run, stages, recorder, prompts=prompts, held_out=held_out).train()
    finally:
        stages.close()
    rows = [row for row in recorder.metrics() if row["kind"] == "train"]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["gradient_norm"] > 0 for row in rows)
    assert next(event for event in events if event["kind"] == "first_update")["max_log_ratio"] == 0
    assert checkpoints.newest(folder, pytest.fail) == checkpoints.folder_for(folder, 2)
    return rows
