"""Control: a run says of itself what it records, does what it is asked, and sizes its pools by what a step took."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pcpo_ray.commands import session
from pcpo_ray.data.records import PoolStatus
from pcpo_ray.data.requests import Request
from pcpo_ray.errors import RewardError
from pcpo_ray.runs import checkpoints
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training import control
from pcpo_ray.training.dispatcher import Phases
from pcpo_ray.training.local import LocalStages
from pcpo_ray.training.loop import Loop
from pcpo_ray.training.recorder import Recorder
from tests.support import small


class Watched(LocalStages):
    """Stages of one process that remember what the run said, and ask something of it when it has said so much."""

    def __init__(self, run, asks=None):
        super().__init__(run)
        self.said, self.last, self.asks = [], None, asks or {}

    def exchange(self, status):
        self.said.append(json.loads(json.dumps(status.row())))
        return [self.asks.pop(step) for step in list(self.asks) if step <= status.step]

    def end(self, status):
        self.last = json.loads(json.dumps(status.row()))


def go(run, folder, asks=None, stages=None):
    stages, recorder = (
        Watched(run, asks) if stages is None else stages(run),
        Recorder.create(LocalFolder(local=folder), run),
    )
    prompts, held_out = session.sources(run)
    loop = Loop(run, stages, recorder, prompts=prompts, held_out=held_out)
    return stages, recorder, loop


def test_a_staleness_that_nothing_corrects_is_refused_and_the_run_goes_on(small_sd, tmp_path):
    run = small.run(small_sd, steps=3, objective__old_predictions="recomputed")
    stages, _, loop = go(run, tmp_path / "run", {1: Request(max_staleness=1)})
    loop.train()
    (event,) = (event for event in stages.last["events"] if event["kind"] == "refused")
    assert "rollout.max_staleness is 1" in event["why"] and "set objective.correction" in event["why"]
    assert stages.last["max_staleness"] == 0 and stages.last["state"] == "finished"


def test_a_status_is_plain_data_and_agrees_with_the_record(small_sd, tmp_path):
    run = small.run(small_sd, steps=3, rollout__max_staleness=1)
    stages, recorder, loop = go(run, tmp_path / "run")
    loop.train()
    rows = recorder.metrics()
    last, held_out = ([row for row in rows if row["kind"] == kind][-1] for kind in ("train", "evaluation"))
    found = stages.last
    assert (found["run"], found["state"], found["step"], found["steps"]) == ("small", "finished", 3, 3)
    for name, key in (
        ("reward", "reward_mean"),
        ("reward_std", "reward_std"),
        ("seconds", "seconds"),
        ("idle", "idle"),
    ):
        assert found[name] == last[key]
    assert found["evaluated"]["jpeg_compressibility"] == held_out["rewards"]["jpeg_compressibility"]["mean"]
    assert found["evaluated_step"] == 3 and found["change"]["mean"] == held_out["changes"]["reward"]["mean"]
    assert found["checkpoint"] == str(checkpoints.folder_for(tmp_path / "run", 3))
    assert found["samplers"]["versions"] == {"sampler-0": 3}  # the last evaluation's
    assert found["in_flight"] == 0 and found["ages"] == {}
    assert {event["kind"] for event in found["events"]} >= {"first_update", "checkpoint", "finished"}
    assert "published" not in {event["kind"] for event in found["events"]}

    states = [said["state"] for said in stages.said]
    assert {"evaluating", "training"} == set(states)
    assert any(said["waiting"].startswith("sampling step 2: ") for said in stages.said)
    assert {"1": 3} in [said["ages"] for said in stages.said]  # begun one version behind
    first = stages.said[0]
    assert first["reward"] is None and first["samplers"]["versions"] == {"sampler-0": None}


@pytest.mark.parametrize(("samplers", "seconds"), [(1, 0.002), (499, 0.5), (5_000, 1.0)])
def test_the_more_workers_a_status_names_the_more_seldom_it_is_told(small_sd, tmp_path, monkeypatch, samplers, seconds):
    run = small.run(small_sd)
    stages, _, loop = go(run, tmp_path / "run")
    pools = stages.pool_status()
    crowd = {**pools, "samplers": replace(pools["samplers"], wanted=samplers)}
    monkeypatch.setattr(stages, "pool_status", lambda: crowd)
    clock = [50.0]
    monkeypatch.setattr(control, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    told = []
    for moment in (0.0, 0.99 * seconds, 1.01 * seconds, 1.5 * seconds, 2.02 * seconds):
        clock[0] = 50.0 + moment
        before = len(stages.said)
        loop.control.serve()
        told.append(len(stages.said) > before)
    assert told == [True, False, True, False, True]


def test_a_run_that_fails_says_why_at_last(small_sd, tmp_path):
    run = small.run(small_sd, rewards="[{kind: 'tests.support.custom:Exhausted', options: {after: 2}}]")
    stages, _, loop = go(run, tmp_path / "run")
    with pytest.raises(RewardError):
        loop.train()
    assert stages.last["state"] == "failed" and "the scorer hung up" in stages.last["error"]


def test_a_run_says_which_requests_it_has_carried_out_and_where_it_stopped(small_sd, tmp_path):
    paced, stop = Request(max_staleness=1), Request(stop=True)
    run = small.run(small_sd, steps=9, rollout__max_staleness=2)
    stages, recorder, loop = go(run, tmp_path / "run", {1: paced, 3: stop})
    loop.train()
    assert stages.last["state"] == "stopped" and 3 <= stages.last["step"] < 9
    assert stages.last["done"] == [paced.id, stop.id]
    assert stages.last["max_staleness"] == 1
    assert stages.last["checkpoint"] == str(checkpoints.newest(recorder.folder, pytest.fail))
    assert "stopping" in [said["state"] for said in stages.said]


def test_ctrl_c_is_a_stop_too(small_sd, tmp_path):
    stages, _, loop = go(small.run(small_sd, steps=9), tmp_path / "run")

    def interrupt(seen):
        if seen.step == 2:
            raise KeyboardInterrupt
        return []

    stages.exchange = interrupt
    with pytest.raises(KeyboardInterrupt):
        loop.train()
    assert (stages.last["state"], stages.last["checkpoint"]) == (
        "stopped",
        str(checkpoints.folder_for(tmp_path / "run", stages.last["step"])),
    )


class Elastic(Watched):
    """Stages that only count the workers they are asked to have; what is sampled takes as long as it is told to."""

    def __init__(self, run):
        super().__init__(run)
        self.counts = {"samplers": 1, "scorers": 1}
        collect = self.samplers.collect
        self.samplers.collect = lambda: [replace(rollout, seconds=1e6) for rollout in collect()]

    def resize(self, **counts):
        self.counts |= counts

    def pool_status(self):
        return {role: PoolStatus(wanted=count, ready=count) for role, count in self.counts.items()}


def resized(recorder):
    return [event.details for event in recorder.recent if event.kind == "resized"]


def test_a_run_grows_by_itself_while_its_learner_waits(small_sd, tmp_path):
    run = small.run(small_sd, steps=3, workers__samplers="{min: 1, max: 2}")
    stages, recorder, loop = go(run, tmp_path / "run", stages=Elastic)
    loop.train()
    assert stages.counts["samplers"] == 2 and resized(recorder)[0]["why"] == "to keep nobody waiting"


def test_two_steps_must_agree_before_a_pool_is_resized(small_sd, tmp_path):
    run = small.run(small_sd, workers__samplers="{min: 1, max: 4}")
    stages, recorder, loop = go(run, tmp_path / "run", stages=Elastic)
    waiting = Phases(wall={"sample_and_score": 9.0, "learn": 1.0}, busy={"samplers": 9.0, "scorers": 0.1})
    fitting = Phases(wall={"sample_and_score": 1.0, "learn": 9.0}, busy={"samplers": 0.1, "scorers": 0.1})
    for phases in (waiting, fitting, waiting):
        loop.control.fit(phases, 10.0)
    assert stages.counts["samplers"] == 1 and not resized(recorder)
    loop.control.fit(waiting, 10.0)
    assert stages.counts["samplers"] == 2 and len(resized(recorder)) == 1
