"""Faults of every kind on Ray: lost work is done again to the bit, a learner's end is seen, a blip is no end."""

import json
import os
import re
import signal
import socket
import time
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from pcpo_ray.data.types import Handle
from tests.support import faults, part, small
from tests.support.on_ray import await_samplers, on_ray, ranks
from tests.support.running import go, parameters, same

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("cluster")]

CHAOS = pytest.mark.chaos
MORE = (CHAOS, part.MORE)

CHEAP = {
    "steps": 4,
    "sampling__steps": 2,
    "rollout__prompts": 2,
    "evaluation__count": 1,
    "evaluation__every": 100,
    "optimizer__learning_rate": 1e-3,
    "checkpoints__every": 2,
    "workers__silence_timeout": 8,
}


def before(stages, what, at):
    """Have something done with the batch before the update of a step begins."""
    begin, begun = stages.learner.begin, []

    def beginning(step, batch):
        begun.append(step)
        batch = list(batch)
        if step == at:
            what(batch, begun.count(step))
        begin(step, batch)

    stages.learner.begin = beginning
    return begun


def messages(folder):
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return " ".join(event["message"] for event in events if event["kind"] == "fault")


@ray.remote(num_cpus=0)
class Owner:
    """Whoever owns an object takes it along when it dies."""

    def own(self):
        return [ray.put(np.zeros(1 << 20, np.uint8))]  # large enough to lie in the store


def a_lost_object():
    owner: Any = Owner.remote()  # type: ignore[attr-defined]
    (found,) = ray.get(owner.own.remote(), timeout=60)
    ray.kill(owner)
    deadline = time.monotonic() + 60
    while True:
        try:
            ray.get(found, timeout=5)
        except ray.exceptions.ObjectLostError:
            return found
        assert time.monotonic() < deadline, "the object outlived its owner"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("count", "strategy"),
    [(1, "ddp"), pytest.param(2, "fsdp2", marks=CHAOS), pytest.param(2, "ddp", marks=MORE)],
)
def test_trajectories_lost_once_or_twice_are_sampled_again_to_the_bit(small_sd, tmp_path, count, strategy):
    run = small.run(small_sd, **CHEAP, rollout__max_staleness=1, workers__learner=ranks(count, strategy))
    begun: list[int] = []

    def lose(batch, attempt):
        if attempt <= 2:
            group = batch[attempt - 1]
            gone = replace(group.rollout, trajectory=Handle(reference=a_lost_object()))
            batch[attempt - 1] = replace(group, rollout=gone)

    def disturb(stages):
        nonlocal begun
        begun = before(stages, lose, 2)

    on_ray(run, tmp_path / "run", disturb=disturb)
    assert begun == [1, 2, 2, 2, 3, 4]
    assert messages(tmp_path / "run").count("the trajectories of 1 groups are gone; they are sampled again") == 2
    if count == 1:
        go(run, tmp_path / "whole")
    else:
        on_ray(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 4), parameters(tmp_path / "run", 4))


def cut_off(pid):
    """Close this process's connections to another one."""
    mine, theirs = (psutil.Process(number).net_connections(kind="tcp") for number in (os.getpid(), pid))
    ends = {(one.raddr, one.laddr) for one in theirs if one.raddr}
    found = [one for one in mine if one.raddr and (one.laddr, one.raddr) in ends]
    for one in found:
        with socket.fromfd(one.fd, socket.AF_INET, socket.SOCK_STREAM) as connection:
            connection.shutdown(socket.SHUT_RDWR)
    return len(found)


def test_a_learner_out_of_reach_for_a_moment_loses_nothing(small_sd, tmp_path, monkeypatch):
    run = small.run(small_sd, **CHEAP, name="blip")
    faults.install(monkeypatch.setattr)
    cut: list[int] = []
    begun: list[int] = []

    def disturb(stages):
        nonlocal begun

        def cutting(batch, attempt):
            pid, _ = ray.get(stages.learner.actors[0].alive.remote(0.0), timeout=60)
            wait, looks = stages.wait, 0

            def waiting(timeout):
                nonlocal looks
                looks += 1
                if looks == 2:  # the update is under way
                    cut.append(cut_off(pid))
                wait(timeout)

            stages.wait = waiting

        begun = before(stages, cutting, 2)

    on_ray(run, tmp_path / "run", disturb=disturb)
    assert cut and cut[0] >= 1
    assert begun == [1, 2, 3, 4] and "a new learner" not in messages(tmp_path / "run")
    go(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 4), parameters(tmp_path / "run", 4))


ENDS = [
    ("update", "raise", 1, None),
    pytest.param("save", "exit", 1, None, marks=CHAOS),
    pytest.param("update", "stop", 1, None, marks=MORE),
    pytest.param("weights", "stop", 1, None, marks=CHAOS),
    pytest.param("save", "raise", 1, None, marks=MORE),
    pytest.param("hold", "kill", 1, None, marks=MORE),
    pytest.param("update", "raise", 2, 1, marks=CHAOS),
    pytest.param("update", "raise", 2, 0, marks=MORE),
    pytest.param("hold", "stop", 2, 1, marks=CHAOS),
    pytest.param("save", "kill", 2, 0, marks=MORE),
]


@pytest.mark.parametrize(("method", "kind", "count", "index"), ENDS)
def test_a_learner_that_ends_in_any_way_is_made_anew_and_the_bits_stay(
    small_sd, tmp_path, monkeypatch, method, kind, count, index
):
    faults.install(monkeypatch.setattr)
    name = f"{method}-{kind}-{count}"
    role = ranks(count, "ddp", timeout=15)
    run = small.run(small_sd, **CHEAP, name=name, rollout__max_staleness=2, workers__learner=role)

    def disturb(stages):
        before(stages, lambda _, attempt: attempt == 1 and faults.plan(name, "learner", method, kind, index=index), 3)

    on_ray(run, tmp_path / "run", disturb=disturb)
    assert faults.left(name) == [] and "a new learner goes on after step 2" in messages(tmp_path / "run")
    if count == 1:
        go(run, tmp_path / "whole")
    else:
        on_ray(run, tmp_path / "whole")
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

        def recovering():
            # as a GPU's last bits may differ
            stages.learner.launcher = type(stages.learner.launcher)(
                run=small.run(small_sd, **{**changes, "optimizer__learning_rate": 1.1e-3}),
                search_path=stages.learner.launcher.search_path,
            )
            recover()

        def publishing(**more):
            found = publish(**more)
            checksums.setdefault(found.version, set()).add(found.checksum)
            return found

        stages.learner.recover, stages.publish = recovering, publishing

    recorder = on_ray(run, tmp_path / "run", disturb=disturb)
    assert [row["step"] for row in recorder.metrics() if row["kind"] == "train"] == list(range(1, 9))
    assert {version for version, seen in checksums.items() if len(seen) == 2} == {4, 5}


@pytest.mark.parametrize("kind", ["stop", pytest.param("raise", marks=MORE)])
def test_a_worker_whose_start_hangs_or_fails_is_replaced(small_sd, tmp_path, monkeypatch, kind):
    faults.install(monkeypatch.setattr)
    name = f"start-{kind}"
    run = small.run(small_sd, **CHEAP, name=name)
    faults.plan(name, "sampler", "load", kind)
    faults.plan(name, "scorer", "load", kind)
    on_ray(run, tmp_path / "run")
    found = messages(tmp_path / "run")
    assert faults.left(name) == [] and "sampler-0 is gone" in found and "scorer-0 is gone" in found


def test_what_one_worker_alone_finds_fault_with_is_done_by_another(small_sd, tmp_path, monkeypatch):
    faults.install(monkeypatch.setattr)
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
def test_a_broadcast_that_fails_costs_no_step(small_sd, tmp_path, monkeypatch, role, method, kind, count):
    from pcpo_ray.cluster import broadcast

    monkeypatch.setattr(broadcast, "DEADLINE", 5.0)
    monkeypatch.setattr(broadcast, "GRACE", 2.0)
    faults.install(monkeypatch.setattr)
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
