"""An event reads as a sentence, and `logs --events` shows those of a run in a folder as in a cluster."""

import json

import pytest

from pcpo_ray.commands.event_text import line
from pcpo_ray.config import files
from tests.support import small

EVENTS = [
    (
        {"kind": "started", "backend": "in-process", "device": "CPU", "cores": 2, "prompts": ["training prompts: 5"]},
        "started: in-process, on CPU with 2 cores; training prompts: 5",
    ),
    (
        {"kind": "published", "version": 3, "averaged": False, "bytes": 2**20, "seconds": 0.125, "received": 0},
        "published: version 3 of the weights, 1.0 MiB in 0.12 s",
    ),
    ({"kind": "checkpoint", "step": 2, "seconds": 0.0525}, "checkpoint: step 2, written in 0.052 s"),
    (
        {"kind": "micro_batch", "step": 1, "pairs": 8, "seconds_a_pair": {"4": 0.0158, "16": None}},
        "micro batch: 8 (image, timestep) pairs at once from step 1 on; seconds a pair by size, 4: 0.016, 16: -",
    ),
    (
        {"kind": "missing_scores", "step": 1, "prompt": "a ring", "causes": {"ocr": "timed out"}},
        "missing scores: step 1, 'a ring': ocr: timed out",
    ),
    ({"kind": "stopped", "step": 4}, "stopped: after step 4"),
    ({"kind": "stopped", "step": 4, "alarm": "it fell"}, "stopped: after step 4: it fell"),
    ({"kind": "resized", "why": "asked for", "samplers": 3}, "resized: asked for: samplers 3"),
    ({"kind": "fault", "message": "it is gone", "seconds": 0.076469}, "fault: it is gone, seconds 0.07647"),
    ({"kind": "asked", "samplers": 3}, "asked: samplers 3"),
    ({"kind": "new", "sizes": {"a": 1.5, "b": [2]}}, "new: sizes (a 1.5, b (2))"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "said"), EVENTS)
def test_an_event_is_a_line_that_a_person_reads(row, said):
    found = line({"time": 0.0, **row})
    assert found[20:] == said and "{" not in found


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run in runs/ that has ended, with its events; no cluster is named."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(files.dump(small.run("model")))
    rows = [
        {"time": 1.0, "kind": "checkpoint", "step": 2, "seconds": 0.5},
        {"time": 1.0, "kind": "finished", "step": 2},  # in the same moment
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_the_events_of_a_run_in_a_folder_need_no_cluster(command, run):
    status, said, errors = command("logs", "small", "--events", "--follow")
    assert (status, errors) == (0, "")
    assert [row[20:] for row in said.splitlines()] == ["checkpoint: step 2, written in 0.5 s", "finished: after step 2"]
    status, said, _ = command("logs", "runs/small", "--events", "--json")
    assert status == 0 and [json.loads(row) for row in said.splitlines()] == run


def test_in_a_narrow_terminal_an_event_breaks_between_words(command, run, monkeypatch):
    whole = command("logs", "small", "--events")[1]
    as_json = command("logs", "small", "--events", "--json")[1]
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "40"}.items():
        monkeypatch.setenv(name, value)
    status, said, errors = command("logs", "small", "--events")
    assert (status, errors) == (0, "") and said != whole and said.split() == whole.split()
    assert all(len(row) <= 40 for row in said.splitlines())
    assert command("logs", "small", "--events", "--json") == (0, as_json, "")


def test_a_jobs_log_is_no_json(command, run):
    status, _, errors = command("logs", "small", "--json")
    assert status == 1 and "got --json without --events" in errors
