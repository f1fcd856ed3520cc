"""A worker without a model: it sleeps, and can be made to die or to fail. Imports nothing heavy."""

import os
import signal
import time

import ray


class Sleeper:
    def start(self):
        return self.alive(0.0)

    @ray.method(concurrency_group="health")  # type: ignore[untyped-decorator]
    def alive(self, seconds):
        time.sleep(seconds)
        return os.getpid(), ray.get_runtime_context().get_node_id()

    def work(self, item, seconds, fate):
        time.sleep(seconds)
        if fate == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if fate == "fail":
            raise RuntimeError("CUDA error")
        return item


def launch(name):
    return ray.remote(concurrency_groups={"health": 1})(Sleeper).options(num_cpus=0, max_restarts=0).remote()
