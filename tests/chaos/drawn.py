"""python -m tests.chaos.drawn MODEL FOLDER SEED: faults drawn at random, in a setting drawn at random, in one run.

The run is `pcpo-ray train`, in a process of its own, on a cluster of two nodes: one that stays, and one that samplers
are on. It must end with the bits of a run that nothing disturbs, every step on record once.
"""

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
from tests.support import faults, s3, small
from tests.support.running import go, same

FAULTS = 5
"""In each run, one a step from its second on."""

LIMIT = 240.0
"""Seconds in which a run must come to its next fault, or to its end."""

STEPS = 3 * FAULTS
"""A run goes on while a fault is planned: on a fast machine two or three steps from one to the next."""

Fault = tuple[str, ...]

ENDING = ("kill", "stop", "raise", "exit")
EVERYWHERE: list[Fault] = [
    *(("sampler", "sample", kind) for kind in (*ENDING, "refuse")),
    ("sampler", "pull", "kill"),
    *(("scorer", "score", kind) for kind in (*ENDING, "refuse")),
    *(("learner", method, kind) for method in ("hold", "update", "weights", "save") for kind in ENDING),
    *(("driver", name) for name in ("SIGKILL", "SIGTERM", "SIGHUP", "SIGUSR1")),
    *[("node", "lost")] * 3,
]
OF_BROADCASTS: list[Fault] = [
    *(("sampler", "receive", kind) for kind in ("kill", "raise")),
    *(("learner", "send", kind) for kind in ("kill", "raise")),
]
OF_STORAGE: list[Fault] = [("storage", "away")] * 3


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a run is drawn to be."""

    staleness: int
    ranks: int
    strategy: str
    sync: str
    train: str
    average: float | None
    stored: str

    @classmethod
    def drawn(cls, rng: random.Random) -> "Setting":
        ranks, strategy = rng.choice([(1, "ddp"), (1, "ddp"), (2, "ddp"), (2, "fsdp2")])
        return cls(
            staleness=rng.choice([0, 2]),
            ranks=ranks,
            strategy=strategy,
            sync=rng.choice(["pull", "broadcast"]),
            train=rng.choice(["{kind: lora, rank: 2, alpha: 2}", "{kind: full}"]),
            average=rng.choice([None, 0.9]),
            stored=rng.choice(["disk", "disk", "s3"]),
        )

    def faults(self, rng: random.Random) -> list[Fault]:
        """No two alike, and every kind of process as likely as the others."""
        every = [*EVERYWHERE, *(OF_BROADCASTS * (self.sync == "broadcast")), *(OF_STORAGE * (self.stored == "s3"))]
        found: list[Fault] = []
        while len(found) < FAULTS:
            who = rng.choice(sorted({fault[0] for fault in every}))
            fault = rng.choice([fault for fault in every if fault[0] == who])
            if fault not in found:
                found.append(fault)
        return found

    def run(self, model: Path, name: str) -> Any:
        fixed = "resources: {fixed: 1}, cpus: 0.1"
        return small.run(
            model,
            name=name,
            steps=STEPS,
            sampling__steps=2,
            rollout__prompts=2,
            rollout__max_staleness=self.staleness,
            evaluation__count=1,
            evaluation__every=4,
            checkpoints__every=2,
            optimizer__learning_rate=1e-3,
            optimizer__average="null" if self.average is None else self.average,
            model__train=self.train,
            rewards=small.slow(0.2),
            workers__sync=self.sync,
            workers__silence_timeout=8,
            workers__start_timeout=180,
            workers__samplers="{workers: 2, resources: {spot: 1}, cpus: 0.1}",
            workers__scorers=f"{{workers: 1, {fixed}}}",
            workers__learner=f"{{ranks: {self.ranks}, strategy: {self.strategy}, timeout: 15, {fixed}}}",
        )


class Operator:
    """Starts a run, does what is done to it, and starts it again where it has ended."""

    def __init__(self, run: Any, folder: Path, runs: str, cluster: Cluster) -> None:
        self.run, self.cluster = run, cluster
        self.spot = cluster.add_node(num_cpus=2, resources={"spot": 2})
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

    def steps(self) -> list[int]:
        path = self.home.local / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        return [row["step"] for row in rows if row["kind"] == "train"]

    def wait(self, done: Any, what: str) -> None:
        deadline = time.monotonic() + LIMIT
        while not done():
            assert self.job.poll() is None, f"the run ended ({self.job.returncode}) before {what}:\n{self.tail()}"
            assert time.monotonic() < deadline, f"{LIMIT:g} s were not enough until {what}:\n{self.tail()}"
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
            case ("node", _):
                self.cluster.remove_node(self.spot, allow_graceful=False)
                self.spot = self.cluster.add_node(num_cpus=2, resources={"spot": 2})
            case ("storage", _):
                self._stop_storage(address)
            case (role, method, kind):
                index = rng.randrange(self.run.workers.learner.ranks) if role == "learner" else None
                if method in ("weights", "save", "send"):  # what only some ranks are asked for
                    index = 0
                faults.plan(self.run.name, role, method, kind, index=index)
                self.wait(lambda: not faults.left(self.run.name), f"{fault} had happened")

    def _stop_storage(self, address: str) -> None:
        port = int(address.partition(":")[2])
        (pid,) = {one.pid for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.laddr.port == port}
        server = psutil.Process(pid)
        server.suspend()
        time.sleep(8)
        server.resume()

    def end(self) -> dict[str, Any]:
        """The run's last weights, and their mean, once it has ended well."""
        deadline = time.monotonic() + LIMIT
        while self.job.poll() is None:
            assert time.monotonic() < deadline, f"the run did not end:\n{self.tail()}"
            time.sleep(0.2)
        assert self.job.returncode == 0, self.tail()
        assert Counter(self.steps()) == Counter(range(1, STEPS + 1)), self.steps()
        found = checkpoints.read(self.home.fetch_checkpoint(STEPS))
        self.cluster.remove_node(self.spot, allow_graceful=False)
        return {"parameters": found.parameters, "averaged": found.averaged}


def main(model: Path, folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    setting = Setting.drawn(rng)
    drawn = setting.faults(rng)
    print(f"seed {seed}: {setting}", *drawn, sep="\n  ", flush=True)
    os.environ["PCPO_RAY_CACHE"] = str(folder / "cache")
    os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "resources": {"fixed": 4}})
    address = ""
    if setting.stored == "s3":
        serving = s3.served()
        address = serving.__enter__()
        runs = s3.bucket(address) + "/runs" + s3.options(address)
    else:
        serving, runs = None, str(folder / "runs")
    try:
        operator = Operator(setting.run(model, f"drawn-{seed}"), folder, runs, cluster)
        for step, fault in enumerate(drawn, 2):
            operator.wait(lambda step=step: max(operator.steps(), default=0) >= step, f"step {step}")  # type: ignore[misc]
            print(f"{time.strftime('%X')} after step {max(operator.steps())}: {' '.join(fault)}", flush=True)
            operator.do(fault, rng, address)
        disturbed = operator.end()
        if setting.ranks == 1:
            run = setting.run(model, "whole")
            go(dataclasses.replace(run, rewards=small.run(model, rewards=small.slow(0.0)).rewards), folder / "whole")
            found = checkpoints.read(checkpoints.folder_for(folder / "whole", STEPS))
            whole = {"parameters": found.parameters, "averaged": found.averaged}
        else:
            whole = Operator(setting.run(model, f"whole-{seed}"), folder, str(folder / "whole"), cluster).end()
    finally:
        if serving is not None:
            serving.__exit__(None, None, None)
        cluster.shutdown()
    assert all(same(disturbed[part], whole[part]) for part in whole), "other bits than those of an undisturbed run"
    print(f"seed {seed}: the same bits, every step once", flush=True)


if __name__ == "__main__":
    assert not ray.is_initialized()
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
