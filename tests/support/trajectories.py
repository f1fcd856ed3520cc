"""Tasks, trajectories, and a sampler with its learner, on small models."""

import torch

from pcpo_ray.data.types import Prompt, Task, Trajectory
from pcpo_ray.workers.learner import mini_batches
from pcpo_ray.workers.learner.learner import Learner
from pcpo_ray.workers.sampler import Sampler
from tests.support import small

CPU = torch.device("cpu")
ADVANTAGES = [1.0, -1.0, 0.5, -0.5]


def task(**changes):
    values = {
        "step": 1,
        "position": 0,
        "prompt": Prompt(index=5, text="a red circle above a blue square"),
        "images": 4,
        "version": 0,
        "purpose": "train",
    }
    return Task(**{**values, **changes})


def trajectory(**changes):
    torch.manual_seed(0)
    made = {
        "steps": torch.tensor([0, 2, 3]),
        "latents": torch.randn(2, 3, 4, 5),
        "predictions": torch.randn(2, 3, 4, 5),
        "noises": torch.randn(2, 3, 4, 5),
        "log_probs": torch.randn(2, 3),
        "conditioning": {"embeds": torch.randn(1, 7).to(torch.bfloat16), "mask": torch.tensor([[True, False]])},
    }
    return Trajectory(**{**made, **changes})


def pair(path, **changes):
    run = small.run(path, **changes)
    return Sampler(run, CPU), Learner(run, CPU)


def batch(sampler, learner, count=2):
    sampler.load(learner.weights())
    made = [sampler.sample(task(position=n, version=learner.version))[0] for n in range(count)]
    return [(learner.version, trajectory, ADVANTAGES) for trajectory in made]


TRAJECTORIES = [
    ("small_sd", {}),
    ("small_sd", {"sampling__trained_steps": 2, "model__dtype": "bfloat16"}),
    ("small_sd", {"credit__kind": "interpolate", "sampling__storage": "float16"}),
    ("small_sdxl", {"sampling__shared_noise": "true", "sampling__batch": 2}),
    ("small_flux", {"model__dtype": "bfloat16"}),
    ("small_flux", {"optimizer__mixed_precision": "bf16", "sampling__guidance_scale": 3}),
    ("small_flux", {"sampling__subset": "{kind: window, size: 3}"}),
    ("small_flux", {"sampling__height": 32, "rollout__images": 3}),
]


def same_bits(one, other):
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("steps", "latents", "predictions", "noises", "log_probs")
    )


def of_rank(run, batch, step, rank):
    """The batch as a rank gets it: without the trajectories of which it learns nothing."""
    trained = len(batch[0][1].steps)
    images = [len(advantages) for _, _, advantages in batch]
    own = mini_batches.rank_groups(run, images, trained, step=step, rank=rank.index, ranks=rank.count)
    return [(version, one if n in own else None, values) for n, (version, one, values) in enumerate(batch)]
