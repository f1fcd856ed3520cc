"""Runs on Ray that something happens to: where to step in, what they say of it, and what is lost or cut off."""

import json
import os
import socket
import time
from typing import Any

import numpy as np
import psutil
import ray

from pcpo_ray.data.types import Handle

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
    """All that a run says it has recovered from."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return " ".join(event["message"] for event in events if event["kind"] == "fault")


@ray.remote(num_cpus=0)
class Owner:
    """Whoever owns an object takes it along when it dies."""

    def own(self):
        return [ray.put(np.zeros(1 << 20, np.uint8))]  # large enough to lie in the store


def a_lost_handle():
    """A handle of an object that was in the store, and is gone."""
    owner: Any = Owner.remote()  # type: ignore[attr-defined]
    (found,) = ray.get(owner.own.remote(), timeout=60)
    ray.kill(owner)
    deadline = time.monotonic() + 60
    while True:
        try:
            ray.get(found, timeout=5)
        except ray.exceptions.ObjectLostError:
            return Handle(reference=found)
        assert time.monotonic() < deadline, "the object outlived its owner"
        time.sleep(0.1)


def cut_off(pid):
    """Close this process's connections to another one."""
    mine, theirs = (psutil.Process(number).net_connections(kind="tcp") for number in (os.getpid(), pid))
    ends = {(one.raddr, one.laddr) for one in theirs if one.raddr}
    found = [one for one in mine if one.raddr and (one.laddr, one.raddr) in ends]
    for one in found:
        with socket.fromfd(one.fd, socket.AF_INET, socket.SOCK_STREAM) as connection:
            connection.shutdown(socket.SHUT_RDWR)
    return len(found)
