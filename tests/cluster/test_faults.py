"""Faults of every kind on Ray: a learner's end is seen, a blip is no end, and what a worker did not do another does."""

import os
import re
import signal

import pytest
import ray

from pcpo_ray.cluster.connect import connect
from pcpo_ray.errors import LearnerLostError
from tests.support import faults, part, small
from tests.support.disturbed import CHEAP, before, cut_off, messages
from tests.support.on_ray import await_samplers, on_ray, ranks, undisturbed
from tests.support.running import go, parameters, same

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("cluster")]

CHAOS = pytest.mark.chaos
MORE = (CHAOS, part.MORE)


@pytest.mark.parametrize(("count", "strategy"), [(1, "ddp"), pytest.param(2, "fsdp2", marks=MORE)])
def test_a_learner_out_of_reach_for_a_moment_loses_nothing(small_sd, tmp_path, count, strategy):
    run = small.run(small_sd, **CHEAP, workers__learner=ranks(count, strategy))
    cut: list[int] = []
    begun: list[int] = []

    def disturb(stages):
        nonlocal begun

        def cutting(batch, attempt):
            pids = [ray.get(actor.alive.remote(0.0), timeout=60)[0] for actor in stages.learner.actors]
            wait, looks = stages.wait, 0

            def waiting(timeout):
                nonlocal looks
                looks += 1
                if looks == 2:  # the update is under way
                    cut.extend(map(cut_off, pids))
                wait(timeout)

            stages.wait = waiting

        begun = before(stages, cutting, 2)

    on_ray(run, tmp_path / "run", disturb=disturb)
    assert len(cut) == count and min(cut) >= 1
    assert begun == [1, 2, 3, 4] and "a new learner" not in messages(tmp_path / "run")
    undisturbed(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 4), parameters(tmp_path / "run", 4))


ENDS = [
    ("update", "raise", 1, None),
    pytest.param("save", "exit", 1, None, marks=CHAOS),
    pytest.param("update", "stop", 1, None, marks=MORE),
    pytest.param("weights", "stop", 1, None, marks=MORE),
    pytest.param("save", "raise", 1, None, marks=MORE),
    pytest.param("hold", "kill", 1, None, marks=MORE),
    pytest.param("update", "raise", 2, 1, marks=MORE),
    pytest.param("update", "raise", 2, 0, marks=MORE),
    pytest.param("hold", "stop", 2, 1, marks=CHAOS),
    pytest.param("save", "kill", 2, 0, marks=MORE),
]


@pytest.mark.parametrize(("method", "kind", "count", "index"), ENDS)
def test_a_learner_that_ends_in_any_way_is_made_anew_and_the_bits_stay(
    small_sd, tmp_path, faulty_workers, method, kind, count, index
):
    name = f"{method}-{kind}-{count}"
    role = ranks(count, "ddp", timeout=15)
    run = small.run(small_sd, **CHEAP, name=name, rollout__max_staleness=2, workers__learner=role)

    def disturb(stages):
        before(stages, lambda _, attempt: attempt == 1 and faults.plan(name, "learner", method, kind, index=index), 3)

    on_ray(run, tmp_path / "run", disturb=disturb)
    assert faults.left(name) == [] and "a new learner goes on after step 2" in messages(tmp_path / "run")
    undisturbed(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 4), parameters(tmp_path / "run", 4))


@pytest.mark.chaos
def test_samplers_that_hold_a_lost_learners_weights_load_the_new_ones(small_sd, tmp_path):
    """Three samplers and one group a step, so that some keep old weights until their number comes round again."""
    changes = {**CHEAP, "steps": 8, "rollout__prompts": 1, "checkpoints__every": 3}
    run = small.run(small_sd, **changes, workers__samplers__workers=3)
    checksums: dict[int, set[str]] = {}

    def disturb(stages):
        await_samplers(stages, 3)

        def killing(batch, attempt):
            if attempt == 1:
                pid, _ = ray.get(stages.learner.actors[0].alive.remote(0.0), timeout=60)
                os.kill(pid, signal.SIGKILL)

        before(stages, killing, 6)
        recover, publish = stages.learner.recover, stages.publish

        def recovering(serve):
            # as a GPU's last bits may differ
            stages.learner.launcher = type(stages.learner.launcher)(
                run=small.run(small_sd, **{**changes, "optimizer__learning_rate": 1.1e-3}),
                search_path=stages.learner.launcher.search_path,
            )
            recover(serve)

        def publishing(**more):
            found = publish(**more)
            checksums.setdefault(found.version, set()).add(found.checksum)
            return found

        stages.learner.recover, stages.publish = recovering, publishing

    recorder = on_ray(run, tmp_path / "run", disturb=disturb)
    assert [row["step"] for row in recorder.metrics() if row["kind"] == "train"] == list(range(1, 9))
    assert {version for version, seen in checksums.items() if len(seen) == 2} == {4, 5}


@pytest.mark.parametrize(
    ("kind", "count", "strategy", "index"),
    [
        ("stop", 1, "ddp", None),
        pytest.param("kill", 2, "fsdp2", 1, marks=CHAOS),
        pytest.param("raise", 1, "ddp", None, marks=MORE),
        pytest.param("stop", 2, "ddp", 0, marks=MORE),
    ],
)
def test_whoever_hangs_or_fails_at_the_first_start_is_replaced(
    small_sd, tmp_path, faulty_workers, kind, count, strategy, index
):
    name = f"start-{kind}-{count}"
    run = small.run(small_sd, **CHEAP, name=name, workers__learner=ranks(count, strategy, timeout=15))
    faults.plan(name, "sampler", "load", kind)
    faults.plan(name, "scorer", "load", kind)
    faults.plan(name, "learner", "load", kind, index=index)
    on_ray(run, tmp_path / "run")
    found = messages(tmp_path / "run")
    assert faults.left(name) == [] and "sampler-0 is gone" in found and "scorer-0 is gone" in found
    assert "; another learner starts" in found


def test_a_learner_that_is_lost_at_each_start_ends_the_run_with_its_cause(small_sd, faulty_workers):
    run = small.run(small_sd, **CHEAP, name="never-starts")
    for _ in range(3):
        faults.plan(run.name, "learner", "load", "raise")
    with pytest.raises(LearnerLostError, match=r"illegal memory.*the learner was lost 3 times while it started"):
        connect(run)
    assert faults.left(run.name) == []


def test_what_one_worker_alone_finds_fault_with_is_done_by_another(small_sd, tmp_path, faulty_workers):
    run = small.run(small_sd, **CHEAP, name="refused", workers__samplers__workers=2)

    def disturb(stages):
        await_samplers(stages, 2)
        before(stages, lambda *_: faults.plan("refused", "sampler", "sample", "refuse"), 2)

    on_ray(run, tmp_path / "run", disturb=disturb)
    assert faults.left("refused") == []
    assert re.search(
        r"sampler-\d lost a task \(ModelError: cannot be read: stale file handle", messages(tmp_path / "run")
    )
    go(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 4), parameters(tmp_path / "run", 4))


@pytest.mark.parametrize(
    ("role", "method", "kind", "count"),
    [
        pytest.param("sampler", "receive", "raise", 2, marks=CHAOS),
        pytest.param("sampler", "receive", "kill", 2, marks=MORE),
        pytest.param("learner", "send", "raise", 1, marks=MORE),
    ],
)
@pytest.mark.usefixtures("faulty_workers")
def test_a_broadcast_that_fails_costs_no_step(small_sd, tmp_path, monkeypatch, role, method, kind, count):
    from pcpo_ray.cluster import broadcast

    monkeypatch.setattr(broadcast, "DEADLINE", 5.0)
    monkeypatch.setattr(broadcast, "GRACE", 2.0)
    name = f"broadcast-{role}-{kind}"
    run = small.run(
        small_sd, **CHEAP, name=name, workers__sync="broadcast", workers__learner=ranks(count, "ddp"),
        workers__samplers__workers=2,
    )  # fmt: skip
    begun: list[int] = []

    def disturb(stages):
        nonlocal begun
        await_samplers(stages, 2)
        begun = before(stages, lambda *_: faults.plan(name, role, method, kind), 2)

    on_ray(run, tmp_path / "run", disturb=disturb)
    assert faults.left(name) == [] and begun == [1, 2, 3, 4]
    assert "did not receive new weights" in messages(tmp_path / "run")
