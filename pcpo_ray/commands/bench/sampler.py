"""The sampler: a group, from its task to the packed result, against bare forward passes and decoding of the same."""

import pickle
from collections.abc import Sequence

import torch

from pcpo_ray import config
from pcpo_ray.commands.bench import bare, work
from pcpo_ray.commands.bench.rows import Goal, Row, Say, alternate, timed
from pcpo_ray.data.tensors import device_here, in_one_piece, of_rows
from pcpo_ray.workers.packing import pack_trajectory
from pcpo_ray.workers.sampler import Sampler

GOALS = {"cpu": 0.95, "cuda": 0.97}


def measure(run: config.Run, repeats: int, say: Say) -> Sequence[Row]:
    """Measure one group per repeat, with its prompt encoded before."""
    device = device_here()
    torch.set_num_threads(run.workers.samplers.threads)
    sampler = Sampler(run, device)
    policy = sampler.policy
    task = work.tasks(run, 1, 0)[0]
    sampler.prepare(task)

    def whole() -> float:
        def handed_over() -> None:
            trajectory, images = sampler.sample(task)
            assert trajectory is not None
            # the object store's copy
            pickle.dumps((pack_trajectory(policy, task, trajectory), images), protocol=5)

        return task.images / timed(handed_over)

    if run.sampling.batch == "auto":
        sampler.sample(task)  # it chooses in its first task
    latents = policy.initial_noise(task).to(device)
    rows = latents.split(sampler.together(len(latents)))
    with torch.no_grad():
        conditioning = policy.denoiser.encode([task.prompt.text])
        texts = [in_one_piece(of_rows(conditioning, slice(0, len(part)), len(latents))) for part in rows]
        calls = [
            (bare.call(policy, part, step, text), mix)
            for step, mix in enumerate(policy.credit_of(task.step, task.position).mix)
            for part, text in zip(rows, texts, strict=True)
        ]

    @torch.no_grad()
    def network() -> None:
        for call, mix in calls:
            bare.forward(policy, call)
            if mix != 1.0:
                bare.reference(policy, call)
        bare.decode(policy, latents.float())

    figures, limits = alternate(whole, lambda: task.images / timed(network), repeats, say)
    facts = {"images": task.images, "at once": len(rows[0]), "steps": len(policy.schedule), "dtype": run.model.dtype}
    facts |= {"compiled": True} if run.sampling.compile else {}
    limit = "the forwards and the decode of the same images, nothing else"
    goal = Goal(bound="at least", value=GOALS[device.type])
    measured = Row(
        name=f"sampler, {_NAMES[device.type]}",
        unit="images/s",
        figures=figures,
        limits=limits,
        limit=limit,
        goal=goal,
        facts=facts,
    )
    if device.type == "cuda":
        return [measured]
    other = Row(
        name="sampler, GPU",
        unit="images/s",
        limit=limit,
        goal=Goal(bound="at least", value=GOALS["cuda"]),
        unmeasured="no GPU here",
    )
    return [measured, other]


_NAMES = {"cpu": "CPU", "cuda": "GPU"}
