"""Faults inside workers' processes: each happens once, at the next call of a method, from the moment it is planned."""

import json
import os
import shutil
import signal
import time
import uuid
from pathlib import Path

from pcpo_ray.cluster.actors import SamplerActor, ScorerActor
from pcpo_ray.cluster.learner_actor import LearnerActor
from pcpo_ray.errors import ModelError
from tests.support import FAULTS


def _folder(run):
    found = Path(os.environ[FAULTS]) / run
    found.mkdir(parents=True, exist_ok=True)
    return found


def plan(run, role, method, kind, *, index=None):
    """Have a fault of a kind happen when a worker of the role (of the learner: the rank) is next asked for this."""
    path = _folder(run) / f"{uuid.uuid4().hex}.json"
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps({"role": role, "method": method, "kind": kind, "index": index}))
    beside.rename(path)


def left(run):
    """The faults planned that have not happened."""
    return [json.loads(path.read_text()) for path in _folder(run).glob("*.json")]


def forget():
    """Plan nothing any more: what a failed test has left would happen to the next run of its name."""
    shutil.rmtree(os.environ[FAULTS], ignore_errors=True)


def happen(worker, role, method):
    """What is planned for this call, if anything is."""
    for path in sorted(_folder(worker.run.name).glob("*.json")):
        try:
            fault = json.loads(path.read_text())
        except FileNotFoundError:
            continue
        mine = fault["index"] is None or fault["index"] == getattr(worker, "index", None)
        if (fault["role"], fault["method"]) != (role, method) or not mine:
            continue
        try:
            path.unlink()
        except FileNotFoundError:  # another worker was first
            continue
        match fault["kind"]:
            case "raise":
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            case "refuse":
                raise ModelError("cannot be read: stale file handle")
            case "slow":
                time.sleep(3)
            case "exit":
                os._exit(1)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "grow":  # touched, so that it counts; the memory monitor is to end this
                held = [bytearray(os.urandom(1 << 20) * 256) for _ in range(40)]
                time.sleep(60)
                del held


class FaultySampler(SamplerActor):
    def load(self):
        happen(self, "sampler", "load")
        super().load()

    def sample(self, task, checksum, pulled):
        happen(self, "sampler", "sample")
        return super().sample(task, checksum, pulled)

    def pull(self, version, pulled):
        happen(self, "sampler", "pull")
        return super().pull(version, pulled)

    def receive(self, address, place, size, deadline, manifest):
        happen(self, "sampler", "receive")
        super().receive(address, place, size, deadline, manifest)


class FaultyScorer(ScorerActor):
    def load(self):
        happen(self, "scorer", "load")
        super().load()

    def score(self, task, images):
        happen(self, "scorer", "score")
        return super().score(task, images)


class FaultyLearner(LearnerActor):
    def load(self):
        happen(self, "learner", "load")
        super().load()

    def sample(self, task, checksum, pulled):
        happen(self, "learner", "sample")
        return super().sample(task, checksum, pulled)

    def prove(self, manifest):
        happen(self, "learner", "prove")
        return super().prove(manifest)

    def hold(self, references, size):
        happen(self, "learner", "hold")
        return super().hold(references, size)

    def update(self, step, versions, advantages):
        happen(self, "learner", "update")
        return super().update(step, versions, advantages)

    def weights(self, averaged):
        happen(self, "learner", "weights")
        return super().weights(averaged)

    def send(self, address, size, deadline):
        happen(self, "learner", "send")
        super().send(address, size, deadline)

    def save(self, folder, state, older):
        happen(self, "learner", "save")
        super().save(folder, state, older)

    def restore(self, folder, step):
        happen(self, "learner", "restore")
        return super().restore(folder, step)

    def older(self, folder, step, version):
        happen(self, "learner", "older")
        return super().older(folder, step, version)

    def assist(self, averaged):
        happen(self, "learner", "assist")
        super().assist(averaged)


def install(patch):
    """Have a run's workers be these; `patch(object, name, value)` sets an attribute."""
    from pcpo_ray.cluster import actors, ranks

    patch(ranks, "LearnerActor", FaultyLearner)
    patch(actors, "SamplerActor", FaultySampler)
    patch(actors, "ScorerActor", FaultyScorer)
