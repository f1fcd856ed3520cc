"""Serving: a reward behind HTTP that scores the requests of several callers in one call, against one in each."""

import contextlib
import importlib.util
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from pcpo_ray import config, rewards
from pcpo_ray.commands.bench import work
from pcpo_ray.commands.bench.rows import Row, Say, alternate, timed
from pcpo_ray.data.tensors import device_here
from pcpo_ray.errors import BenchError

CALLERS = 8
"""Callers at a time, and the requests that a call takes at most."""

ASKED = 4
"""The times that each caller asks, one after the other."""


def measure(run: config.Run, repeats: int, say: Say) -> Sequence[Row]:
    """Measure the first reward that is trained on, asked about the images of one group by each caller."""
    if any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn")):
        absent = "fastapi and uvicorn are not installed: pip install 'pcpo_ray[serve]'"
        return [Row(name="serving", unit="images/s", unmeasured=absent)]
    device = device_here()
    reward = rewards.load(run.rewards[0], device)
    if not isinstance(reward, rewards.Reward):
        raise BenchError(f"{run.rewards[0].name} compares a group's images, so its groups are never put together")
    say("sampling a group")
    task, images = work.tasks(run, 1, 0)[0], work.sampled(run, device)[0].images
    torch.set_num_threads(run.workers.scorers.threads)
    prompts, count = [task.prompt.text] * len(images), CALLERS * ASKED * len(images)

    def asking(address: str) -> Callable[[], None]:
        settings = config.Remote(kind="remote", url=address, format="npz")
        callers = [rewards.load(settings, device) for _ in range(CALLERS)]

        def one(caller: rewards.Reward | rewards.GroupReward) -> None:
            for _ in range(ASKED):
                rewards.scores(caller, images, prompts)

        def ask() -> None:
            with ThreadPoolExecutor(CALLERS) as threads:
                list(threads.map(one, callers))

        return ask

    with served(reward, 1) as alone, served(reward, CALLERS) as together:
        ask, asked = asking(together), asking(alone)
        figures, limits = alternate(lambda: count / timed(ask), lambda: count / timed(asked), repeats, say)
    row = Row(
        name="serving",
        unit="images/s",
        figures=figures,
        limits=limits,
        limit="the same callers with one request a call",
        facts={"callers": CALLERS, "a request's images": len(images)},
    )
    return [row]


@contextlib.contextmanager
def served(reward: rewards.Reward, together: int) -> Iterator[str]:
    """Serve a reward from a thread, with so many requests a call at most; gives its address."""
    from pcpo_ray.rewards import serve

    with serve.listening("127.0.0.1", 0) as found:
        server = serve.server(serve.application(reward, together=together))
        thread = threading.Thread(target=server.run, args=([found],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{found.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
