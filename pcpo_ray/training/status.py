"""How a run is, as plain data that it says about once a second; `pcpo_ray.commands.status_text` makes it readable."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pcpo_ray.data.requests import ENDED
from pcpo_ray.data.updates import PoolStatus

if TYPE_CHECKING:
    from pcpo_ray.config import Run
    from pcpo_ray.training.loop import Loop


def starting(
    run: "Run", waiting: str = "the workers to start", ready: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The status of a run whose workers start: what it waits for, in words, and how many of them are ready, by role."""
    wanted = {"samplers": run.workers.samplers.workers, "scorers": run.workers.scorers.workers}
    sizes = {role: asdict(PoolStatus(wanted=count, ready=(ready or {}).get(role, 0))) for role, count in wanted.items()}
    return {"run": run.name, "state": "starting", "step": 0, "steps": run.steps, "waiting": waiting, **sizes}


def status(loop: "Loop") -> dict[str, Any]:
    """The status of a run that goes on or has ended. Counts of groups, seconds, and shares of time from 0 to 1.

    `samplers` and `scorers` hold sizes, the samplers also the `versions` that each last sampled with (None: not yet).
    `ages` counts the groups begun and not learned, by how many versions behind the newest weights they are sampled.
    `idle`, `seconds`, `reward` and `sample_age` are the last step's, `done` the requests that were carried out last.
    """
    sizes = {role: asdict(size) for role, size in loop.stages.sizes().items()}
    seen = loop.traffic.versions
    sizes["samplers"]["versions"] = {name: seen.get(name) for name in sizes["samplers"]["workers"]}
    last, evaluated = loop.last.get("train", {}), loop.last.get("evaluation", {})
    home = loop.recorder.home
    saved = None if loop.saved is None else home.checkpoint_place(loop.saved)
    return {
        "run": loop.run.name,
        "state": "stopping" if loop.stopping and loop.state not in ENDED else loop.state,
        "error": loop.error,
        "step": loop.step,
        "steps": loop.run.steps,
        "waiting": loop.traffic.awaited,
        "reward": last.get("reward_mean"),
        "reward_std": last.get("reward_std"),
        "evaluated": {name: value["mean"] for name, value in evaluated.get("rewards", {}).items()},
        "evaluated_step": evaluated.get("step"),
        "seconds": last.get("seconds"),
        "samples_per_second": last.get("samples_per_second"),
        "idle": last.get("idle", {}),
        "sample_age": last.get("sample_age"),
        "ages": dict(
            Counter(
                loop.step - task.version
                for step, tasks in loop.sampling.items()
                if step <= loop.run.steps
                for task in tasks
            )
        ),
        "max_staleness": loop.max_staleness,
        "in_flight": len(loop.traffic.ledger),
        "learners_lost": loop.learners_lost,
        "checkpoint": saved,
        "folder": home.address,
        "events": list(loop.recorder.recent),
        "done": list(loop.done),
        **sizes,
    }
