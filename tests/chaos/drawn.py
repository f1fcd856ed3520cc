"""python -m tests.chaos.drawn MODEL FOLDER SEED NUMBER: one of the runs that `tests.chaos.draws` draws, and its faults.

The run is `pcpo-ray train`, in a process of its own, on a cluster of three nodes: one that stays, one that samplers are
on, and one that the learner is on. Its trajectories, images and full weights lie in the nodes' object stores and not in
the driver's memory. It must end with the bits of a run that nothing disturbs, every step on record once.
"""

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from pcpo_ray.config import files
from pcpo_ray.runs import checkpoints
from pcpo_ray.runs.places import folder_below
from tests.chaos.draws import RECOVERING, Draw, Fault, draws
from tests.chaos.node import drain
from tests.support import FAULTS, faults, s3, small
from tests.support.running import go, same

LIMIT = 240.0
"""Seconds in which something must happen in a run: a step, a loss, a recovery."""

INLINE = 10_000
"""Bytes up to which an object does not lie in the store: images of a group and full weights are larger here."""

LARGE = 100_000
"""Bytes up to which Ray itself keeps objects out of the store: a group is larger."""

NODES = {"samplers": {"spot": 2}, "learner": {"learn": 2}}
"""The resources of the nodes that may go, by who is on them."""


def run_of(draw: Draw, model: Path, name: str) -> Any:
    """A drawn run; it goes on while a fault is planned: two or three steps from one to the next, of four."""
    setting, cpus = draw.setting, "cpus: 0.1"
    learner = f"ranks: {setting.ranks}, strategy: {setting.strategy}, timeout: 15, resources: {{learn: 1}}, {cpus}, "
    learner += f"samples: {setting.samples}"
    return small.run(
        model,
        name=name,
        steps=4 * len(draw.faults) + 1,
        sampling__steps=8,
        rollout__prompts=max(2, setting.samplers + setting.ranks) if setting.samples else 2,  # each gets a group
        rollout__images=16,
        rollout__max_staleness=setting.staleness,
        evaluation__count=1,
        evaluation__every=4,
        checkpoints__every=2,
        optimizer__learning_rate=1e-3,
        optimizer__average="null" if setting.average is None else setting.average,
        model__train=setting.train,
        rewards=small.slow(0.2),
        workers__sync=setting.sync,
        workers__silence_timeout=8,
        workers__start_timeout=180,
        workers__samplers=f"{{workers: {setting.samplers}, resources: {{spot: 1}}, {cpus}}}",
        workers__scorers=f"{{workers: 1, resources: {{fixed: 1}}, {cpus}}}",
        workers__learner=f"{{{learner}}}",
    )


class Operator:
    """Starts a run, does what is done to it, and starts it again where it has ended."""

    def __init__(self, run: Any, folder: Path, runs: str, cluster: Cluster) -> None:
        self.run, self.cluster = run, cluster
        self.nodes = {who: cluster.add_node(num_cpus=2, resources=there) for who, there in NODES.items()}
        self.config = folder / f"{run.name}.yaml"
        self.config.write_text(files.dump(run))
        self.words = [str(self.config), "--runs", runs]
        self.log = folder / f"{run.name}.log"
        self.home = folder_below(runs, run.name)
        self.job = self._start()

    def _start(self, *more: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "tests.chaos.driven", *self.words, *more]
        environment = {**os.environ, "RAY_ADDRESS": self.cluster.address}
        with self.log.open("a") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, env=environment)

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.home.local / name
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def steps(self) -> list[int]:
        return [row["step"] for row in self._lines("metrics.jsonl") if row["kind"] == "train"]

    def events(self) -> list[dict[str, Any]]:
        return self._lines("events.jsonl")

    def saved(self) -> int:
        """The newest step that was ever saved: from then on, losses before it count no more."""
        return max((event["step"] for event in self.events() if event["kind"] == "checkpoint"), default=0)

    def wait(self, done: Any, what: str, *, ends: bool = False) -> None:
        """Wait as long as something goes on in the run, which is not to end before, unless that is waited for."""
        heard, deadline = None, 0.0
        while not done():
            assert ends or self.job.poll() is None, f"it ended ({self.job.returncode}) before {what}:\n{self.tail()}"
            if (now := (len(self.steps()), len(self.events()))) != heard:
                heard, deadline = now, time.monotonic() + LIMIT
            assert time.monotonic() < deadline, f"nothing happened in {LIMIT:g} s, before {what}:\n{self.tail()}"
            time.sleep(0.1)

    def tail(self) -> str:
        return "\n".join(self.log.read_text().splitlines()[-30:])

    def do(self, fault: Fault, rng: random.Random, address: str) -> None:
        """A fault, until it has happened."""
        match fault:
            case ("driver", name):
                self.job.send_signal(getattr(signal, name))
                self.job.wait(timeout=LIMIT)
                self.job = self._start("--resume")
            case ("node", who, how):
                if how == "drained":
                    drain(self.cluster, self.nodes[who].node_id)
                    said = max(self.steps(), default=0) + 2
                    self.wait(lambda: max(self.steps(), default=0) >= said, f"step {said}, as a node is drained")
                self.cluster.remove_node(self.nodes[who], allow_graceful=False)
                self.nodes[who] = self.cluster.add_node(num_cpus=2, resources=NODES[who])
            case ("storage", _):
                self._stop_storage(address)
            case (role, method, kind):
                index = rng.randrange(self.run.workers.learner.ranks) if role == "learner" else None
                if method in ("weights", "save", "send", "older", "assist"):  # what only some ranks are asked for
                    index = int(method == "assist")
                faults.plan(self.run.name, role, method, kind, index=index)
                if method in RECOVERING:
                    faults.plan(self.run.name, role, "update", "kill")
                self.wait(lambda: not faults.left(self.run.name), f"{fault} had happened")

    def _stop_storage(self, address: str) -> None:
        port = int(address.partition(":")[2])
        (pid,) = {one.pid for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.laddr.port == port}
        server = psutil.Process(pid)
        server.suspend()
        time.sleep(8)
        server.resume()

    def close(self) -> None:
        """End the run, in case it goes on: nothing outlives a test that failed."""
        self.job.kill()

    def end(self) -> dict[str, Any]:
        """The run's last weights, and their mean, once it has ended well."""
        self.wait(lambda: self.job.poll() is not None, "its end", ends=True)
        assert self.job.returncode == 0, self.tail()
        assert Counter(self.steps()) == Counter(range(1, self.run.steps + 1)), self.steps()
        found = checkpoints.read(self.home.fetch_checkpoint(self.run.steps))
        assert found.state.largest > LARGE, found.state
        for node in self.nodes.values():
            self.cluster.remove_node(node, allow_graceful=False)
        return {"parameters": found.parameters, "averaged": found.averaged}


def undisturbed(draw: Draw, model: Path, folder: Path, cluster: Cluster) -> dict[str, Any]:
    """The end of the same run without faults: in this process, or where sums' order counts on as many ranks."""
    run = run_of(draw, model, "whole")
    if draw.setting.ranks > 1:
        with contextlib.closing(Operator(run, folder, str(folder / "whole"), cluster)) as operator:
            return operator.end()
    go(dataclasses.replace(run, rewards=small.run(model, rewards=small.slow(0.0)).rewards), folder / "whole")
    found = checkpoints.read(checkpoints.folder_for(folder / "whole", run.steps))
    return {"parameters": found.parameters, "averaged": found.averaged}


def main(model: Path, folder: Path, seed: int, number: int) -> None:
    draw = draws(seed)[number]
    name, rng = f"seed {seed}, run {number}", random.Random(f"{seed} {number}")
    print(f"{name}: {draw.setting}", *map(" ".join, draw.faults), sep="\n  ", flush=True)
    os.environ |= {"PCPO_RAY_CACHE": str(folder / "cache"), "RAY_max_direct_call_object_size": str(INLINE)}
    os.environ[FAULTS] = str(folder / "faults")
    os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "resources": {"fixed": 1}})
    address = ""
    if draw.setting.stored == "s3":
        serving = s3.served()
        address = serving.__enter__()
        runs = s3.bucket(address) + "/runs" + s3.options(address)
    else:
        serving, runs = None, str(folder / "runs")
    try:
        run = run_of(draw, model, f"drawn-{seed}-{number}")
        with contextlib.closing(Operator(run, folder, runs, cluster)) as operator:
            saved = 0
            for fault in draw.faults:
                # a run gives up after three losses at one step: between two faults there is a newer checkpoint
                operator.wait(lambda saved=saved: operator.saved() > saved, f"a step after {saved} was saved")  # type: ignore[misc]
                print(f"{time.strftime('%X')} after step {max(operator.steps())}: {' '.join(fault)}", flush=True)
                operator.do(fault, rng, address)
                saved = operator.saved()
            disturbed = operator.end()
        print(f"{time.strftime('%X')} ended", flush=True)
        whole = undisturbed(draw, model, folder, cluster)
    finally:
        if serving is not None:
            serving.__exit__(None, None, None)
        cluster.shutdown()
    assert all(same(disturbed[part], whole[part]) for part in whole), "other bits than those of an undisturbed run"
    print(f"{name}: the same bits, every step once", flush=True)


if __name__ == "__main__":
    assert not ray.is_initialized()
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
