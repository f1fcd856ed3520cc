"""A learner that is lost in a recovery, one that is lost each time, and one that is whole when its run ends; on Ray."""

import dataclasses
import json
import os
import signal
import time

import pytest
import ray

from pcpo_ray.cluster import ranks as ranks_module
from pcpo_ray.errors import ClusterError, LearnerLostError, TrainingError
from pcpo_ray.runs import checkpoints
from tests.support import faults, part, small
from tests.support.disturbed import CHEAP, before, cut_off, messages
from tests.support.on_ray import on_ray, ranks, undisturbed
from tests.support.running import parameters, same

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("cluster")]

CHAOS = pytest.mark.chaos
MORE = (CHAOS, part.MORE)


@pytest.mark.parametrize(
    ("method", "kind", "count", "strategy", "index"),
    [
        ("load", "kill", 1, "ddp", None),
        pytest.param("load", "refuse", 2, "ddp", 1, marks=CHAOS),
        pytest.param("load", "raise", 2, "fsdp2", 0, marks=MORE),
        pytest.param("load", "kill", 2, "fsdp2", 1, marks=MORE),
        pytest.param("restore", "kill", 1, "ddp", None, marks=MORE),
        pytest.param("restore", "raise", 2, "fsdp2", 1, marks=MORE),
        pytest.param("older", "kill", 1, "ddp", None, marks=MORE),
        pytest.param("older", "exit", 2, "ddp", 0, marks=MORE),
    ],
)
def test_a_learner_lost_in_a_recovery_is_recovered_from_once_more(
    small_sd, tmp_path, faulty_workers, method, kind, count, strategy, index
):
    name = f"again-{method}-{kind}-{count}"
    role = ranks(count, strategy, timeout=15)
    run = small.run(small_sd, **CHEAP, name=name, rollout__max_staleness=2, workers__learner=role)
    made = []

    def disturb(stages):
        start = stages.learner._start

        def starting():
            made.append(method)
            start()

        def lose(_, attempt):
            if attempt == 1:
                faults.plan(name, "learner", method, kind, index=index)
                faults.plan(name, "learner", "update", "kill", index=index)

        stages.learner._start = starting
        before(stages, lose, 3)

    on_ray(run, tmp_path / "run", disturb=disturb)
    assert faults.left(name) == [] and len(made) == 2
    assert messages(tmp_path / "run").count("a new learner goes on after step 2") == 1
    undisturbed(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 4), parameters(tmp_path / "run", 4))


@ray.remote
class Occupant:
    """Takes a place, and answers once it has it."""

    def there(self):
        return True


@pytest.mark.parametrize("role", ["samplers", "scorers"])
def test_a_worker_that_got_the_place_of_a_lost_learner_gives_it_back(small_sd, tmp_path, role):
    run = small.run(
        small_sd,
        **CHEAP,
        name=f"crowded-{role}",
        workers__learner={"cpus": ray.cluster_resources()["CPU"] - 2},
        workers__samplers={"workers": 1, "cpus": 1},
        workers__scorers={"workers": 1, "cpus": 1},
        workers__task_timeout=120,
    )
    found = []

    def disturb(stages):
        found.append(stages)

        def crowd(_, attempt):
            if attempt > 1:
                return
            stages.resize(**{role: 2})
            time.sleep(2)  # it is in Ray's queue then
            assert stages.pool_status()[role].unplaced == 1
            os.kill(ray.get(stages.learner.actors[0].alive.remote(0.0), timeout=60)[0], signal.SIGKILL)

        before(stages, crowd, 3)

    on_ray(run, tmp_path / "run", disturb=disturb)
    assert "a new learner goes on after step 2" in messages(tmp_path / "run")
    assert found[0].pool_status()[role].wanted == 2
    undisturbed(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 4), parameters(tmp_path / "run", 4))


class Clock:
    """The time as the ranks see it, which a test moves on."""

    def __init__(self):
        self.ahead = 0.0

    def monotonic(self):
        return time.monotonic() + self.ahead


class Taken:
    """Stages on which the place of a learner killed at step 3 is taken, for so many looks of whoever waits for it."""

    def __init__(self, stages, monkeypatch, looks):
        self.stages, self.looks, self.clock, self.occupant = stages, looks, Clock(), None
        monkeypatch.setattr(ranks_module, "time", self.clock)
        self.start, stages.learner._start = stages.learner._start, self.starting
        self.recover, stages.learner.recover = stages.learner.recover, self.recovering
        workers = stages.run.workers
        self.cpus = ray.cluster_resources()["CPU"] - workers.samplers.cpus - workers.scorers.cpus
        before(stages, self.kill, 3)

    def kill(self, _, attempt):
        if attempt == 1:
            os.kill(ray.get(self.stages.learner.actors[0].alive.remote(0.0), timeout=60)[0], signal.SIGKILL)

    def starting(self):
        if self.occupant is None:
            self.occupant = Occupant.options(num_cpus=self.cpus).remote()  # type: ignore[attr-defined]
            assert ray.get(self.occupant.there.remote(), timeout=120)
        self.start()

    def recovering(self, serve):
        def serving():
            serve()
            if self.looks == 0:
                return
            self.looks -= 1
            for _ in range(3):
                self.clock.ahead += 9.0  # a longer jump would be our own sleep
                self.stages.learner.listen()
            if self.looks == 0:
                ray.kill(self.occupant)

        self.recover(serving)


def test_a_learner_may_wait_longer_for_its_place_than_for_its_start(small_sd, tmp_path, monkeypatch):
    run = small.run(small_sd, **CHEAP, workers__learner="{cpus: 1}", workers__task_timeout=900)
    found = []

    def disturb(stages):
        found.append(Taken(stages, monkeypatch, looks=8))
        stages.learner.say = found.append

    on_ray(run, tmp_path / "run", disturb=disturb)
    taken, *said = found
    assert taken.looks == 0 and taken.clock.ahead > run.workers.start_timeout
    assert len(said) == 1 and "a new learner waits for a place: 1 rank of {'CPU': 1.0, 'GPU': 0.0} each" in said[0]
    assert messages(tmp_path / "run").count("a new learner goes on after step 2") == 1
    undisturbed(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 4), parameters(tmp_path / "run", 4))


def test_a_cluster_without_a_place_for_a_learner_ends_the_run_by_name(small_sd, tmp_path, monkeypatch):
    run = small.run(small_sd, **CHEAP, workers__learner="{cpus: 1}", workers__task_timeout=90)
    found = []

    def disturb(stages):
        found.append(Taken(stages, monkeypatch, looks=1000))

    try:
        with pytest.raises(
            ClusterError, match=r"no place for a new learner in \d+ s \(workers\.task_timeout=90\): 1 rank"
        ):
            on_ray(run, tmp_path / "run", disturb=disturb)
    finally:
        ray.kill(found[0].occupant)
    assert checkpoints.newest(tmp_path / "run", pytest.fail) == checkpoints.folder_for(tmp_path / "run", 2)


@pytest.mark.parametrize("count", [pytest.param(1, marks=MORE), pytest.param(2, marks=CHAOS)])
def test_ranks_out_of_reach_while_they_start_meet_once(small_sd, tmp_path, count):
    run = small.run(small_sd, **CHEAP, workers__learner=ranks(count, "ddp", timeout=15))
    cut, made = [], []

    def disturb(stages):
        start = stages.learner._start

        def starting():
            made.append(count)
            start()
            while not stages.learner.ranks.starts:  # each has a place, and loads
                ray.wait(stages.learner.references(), timeout=1.0)
                stages.learner.listen()
            pids = [ray.get(actor.alive.remote(0.0), timeout=60)[0] for actor in stages.learner.actors]
            cut.extend(cut_off(pid) for pid in pids)

        stages.learner._start = starting

        def kill(_, attempt):
            if attempt == 1:
                os.kill(ray.get(stages.learner.actors[-1].alive.remote(0.0), timeout=60)[0], signal.SIGKILL)

        before(stages, kill, 3)

    on_ray(run, tmp_path / "run", disturb=disturb)
    assert len(cut) == count and min(cut) >= 1 and len(made) == 1
    undisturbed(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 4), parameters(tmp_path / "run", 4))


@pytest.mark.parametrize(
    ("method", "kind", "count", "strategy", "said"),
    [
        ("update", "raise", 1, "ddp", "RuntimeError: CUDA error: an illegal memory access"),
        pytest.param("save", "kill", 1, "ddp", "ActorDiedError", marks=MORE),
        pytest.param("update", "raise", 2, "fsdp2", "RuntimeError: CUDA error: an illegal memory", marks=MORE),
        pytest.param("hold", "exit", 2, "ddp", "ActorDiedError", marks=MORE),
    ],
)
def test_a_loss_that_comes_back_at_one_step_ends_the_run_with_its_cause(
    small_sd, tmp_path, faulty_workers, method, kind, count, strategy, said
):
    name = f"back-{method}-{count}"
    run = small.run(small_sd, **CHEAP, name=name, workers__learner=ranks(count, strategy, timeout=15))
    at = 4 if method == "save" else 3  # what is saved there is lost each time; all else comes back at its own step
    begun: list[int] = []

    def disturb(stages):
        nonlocal begun
        begun = before(stages, lambda *_: faults.plan(name, "learner", method, kind, index=count - 1), at)

    with pytest.raises(LearnerLostError, match=rf"(?s){said}.*3 times at step {at + (method == 'save')}.*of step 2"):
        on_ray(run, tmp_path / "run", disturb=disturb)
    assert begun.count(at) == 3 and faults.left(name) == []
    assert checkpoints.newest(tmp_path / "run", pytest.fail) == checkpoints.folder_for(tmp_path / "run", 2)
    on_ray(run, tmp_path / "run", found=2)
    undisturbed(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 4), parameters(tmp_path / "run", 4))


@pytest.mark.parametrize(
    ("count", "strategy"),
    [(1, "ddp"), pytest.param(2, "fsdp2", marks=CHAOS), pytest.param(2, "ddp", marks=MORE)],
)
def test_an_error_that_leaves_the_learner_whole_leaves_a_checkpoint(small_sd, tmp_path, count, strategy):
    changes = {**CHEAP, "checkpoints__every": 100, "sampling__batch": 2}
    run = small.run(small_sd, **changes, rollout__max_staleness=2, workers__learner=ranks(count, strategy))

    def spoil(batch, _):
        rollout = batch[0].rollout
        packed = ray.get(rollout.trajectory.reference)
        spoilt = ray.put(dataclasses.replace(packed, digests=("",) * len(packed.digests)))
        rollout = dataclasses.replace(rollout, trajectory=dataclasses.replace(rollout.trajectory, reference=spoilt))
        batch[0] = dataclasses.replace(batch[0], rollout=rollout)

    with pytest.raises(TrainingError, match="the group at place 0 of step 3 has other noise or latents"):
        on_ray(run, tmp_path / "run", disturb=lambda stages: before(stages, spoil, 3))
    assert checkpoints.newest(tmp_path / "run", pytest.fail) == checkpoints.folder_for(tmp_path / "run", 2)
    recorder = on_ray(run, tmp_path / "run", found=2)
    rows = [json.loads(line) for line in (recorder.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4]
    undisturbed(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 4), parameters(tmp_path / "run", 4))
