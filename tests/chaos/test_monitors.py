"""Real runs of the embedded world: one made to collapse and one made to hack are caught, a healthy one is not."""

import pytest

from pcpo_ray.commands import session
from pcpo_ray.config import files
from pcpo_ray.runs import records
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training.loop import Loop
from pcpo_ray.training.recorder import Recorder
from tests.support import ROOT
from tests.support.part import MORE

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

DEMO = ROOT / "configs" / "shapes_pcpo.yaml"
SMALL = ("evaluation.count=16", "rollout.prompts=4", "rollout.images=8")


def trained(folder, *overrides):
    """The loop of a run in this process, over, and the lines of its evaluations."""
    run = files.load(DEMO, [f"name={folder.name}", *overrides])
    recorder = Recorder.create(LocalFolder(local=folder), run)
    prompts, held_out = session.sources(run)
    loop = Loop(
        run, session.stages(run, local=True, say=print), recorder, prompts=prompts, held_out=held_out, say=print
    )
    loop.train()
    return loop, [row for row in recorder.metrics() if row["kind"] == "evaluation"]


@MORE
def test_a_run_that_trains_on_file_size_alone_is_stopped_as_a_hack(tmp_path):
    loop, evaluated = trained(
        tmp_path / "hack",
        *SMALL,
        "rewards=[{kind: jpeg_compressibility}]",
        "evaluation.rewards=[{kind: clip_score}, {kind: shapes_oracle}]",
        "evaluation.every=2",
        "steps=20",
        "monitors.action=stop",
    )
    assert loop.progress.state == "stopped" and len(evaluated) - 1 <= 10
    assert "hacking" in evaluated[-1]["alarms"]
    assert "clip_score fell" in loop.progress.error and "shapes_oracle fell" in loop.progress.error
    assert evaluated[-1]["quality"]["frechet"] > evaluated[0]["quality"]["frechet"]
    assert evaluated[-1]["quality"]["coverage"] < evaluated[0]["quality"]["coverage"]


def test_a_run_of_a_huge_learning_rate_is_rolled_back_as_collapsed(tmp_path):
    loop, evaluated = trained(
        tmp_path / "collapse",
        *SMALL,
        "optimizer.learning_rate=0.1",
        "evaluation.every=1",
        "checkpoints.every=1",
        "checkpoints.keep=1",
        "steps=10",
        "monitors.action=roll_back",
    )
    assert loop.progress.state == "stopped" and len(evaluated) - 1 <= 10
    assert evaluated[-1]["alarms"].keys() & {"reward", "diversity"}
    assert records.newest_checkpoint(tmp_path / "collapse", print).name == "step-000000"
    assert evaluated[-1]["quality"]["recall"] < 0.1 < evaluated[0]["quality"]["recall"]


@MORE
def test_a_healthy_run_raises_no_alarm(tmp_path):
    loop, evaluated = trained(
        tmp_path / "healthy",
        "evaluation.count=24",
        "rollout.images=8",
        "evaluation.every=2",
        "steps=16",
        "monitors.action=stop",
    )
    assert loop.progress.state == "finished" and len(evaluated) == 9
    assert not any(row["alarms"] for row in evaluated)
