"""What must be the same to the bit on a GPU as the code that made it says."""

import pytest
import torch
from accelerate.state import AcceleratorState

from pcpo_ray.data.types import Prompt, Task
from pcpo_ray.models.policy import Policy
from pcpo_ray.workers.learner.learner import Learner
from pcpo_ray.workers.learner.loss import FIRST_RATIO_LIMIT
from pcpo_ray.workers.packing import pack_trajectory, unpack_trajectory
from pcpo_ray.workers.sampler import Sampler
from tests.support import small
from tests.support.trajectories import TRAJECTORIES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")

LEARNED = [
    ("small_sd", {"sampling__guidance_scale": 3}),
    ("small_sd", {"optimizer__mixed_precision": "bf16", "optimizer__micro_batch": "auto"}),
    ("small_sdxl", {"model__dtype": "bfloat16", "objective__kl": 0.1}),
    ("small_sd3", {"optimizer__mixed_precision": "bf16", "sampling__guidance_scale": 4.5}),
    ("small_flux", {"optimizer__micro_batch": 8}),
    ("small_flux", {"model__dtype": "bfloat16", "optimizer__micro_batch": "auto"}),
    ("small_flux", {"model__dtype": "bfloat16", "model__gradient_checkpointing": "true"}),
]


def tasks(run, step=1, version=0):
    return [
        Task(step=step, position=n, prompt=Prompt(index=n, text="a red circle"), images=run.rollout.images,
             version=version, purpose="train")
        for n in range(run.rollout.prompts)
    ]  # fmt: skip


@pytest.mark.parametrize(("fixture", "changes"), TRAJECTORIES)
def test_a_trajectory_of_a_gpu_unpacks_to_the_same_bits_anywhere(request, fixture, changes):
    run = small.run(request.getfixturevalue(fixture), **changes)
    sampler, task = Sampler(run, GPU), tasks(run)[0]
    trajectory, _ = sampler.sample(task)
    packed = pack_trajectory(sampler.policy, task, trajectory)
    for policy in (sampler.policy, Policy(run, torch.device("cpu"))):
        opened = unpack_trajectory(policy, packed)
        for name in ("steps", "latents", "predictions", "noises", "log_probs"):
            assert torch.equal(getattr(opened, name).cpu(), getattr(trajectory, name).cpu()), name


@pytest.mark.parametrize(("fixture", "changes"), LEARNED)
def test_at_unchanged_weights_the_learner_predicts_what_the_sampler_stored(request, fixture, changes):
    run = small.run(request.getfixturevalue(fixture), **changes)
    sampler, learner = Sampler(run, GPU), Learner(run, GPU)
    for step in (1, 2):
        batch = []
        for task in tasks(run, step, step - 1):
            trajectory, _ = sampler.sample(task)
            batch.append((step - 1, pack_trajectory(sampler.policy, task, trajectory), [1.0, -1.0, 0.5, -0.5]))
        update = learner.update(step, batch)
        # a number of one's own may give other bits
        assert update.first_log_ratio <= (FIRST_RATIO_LIMIT if isinstance(run.optimizer.micro_batch, int) else 0.0)
        assert update.gradient_norm > 0
        sent = learner.weights()
        assert sampler.load(sent) == sent.manifest.checksum


def test_two_gpu_samplers_draw_the_same_bits(small_sd):
    run = small.run(small_sd)
    (first, images), (again, same) = (Sampler(run, GPU).sample(tasks(run)[0]) for _ in range(2))
    assert torch.equal(first.predictions, again.predictions)
    assert (images == same).all()


def waits(work):
    """How often the work waits for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchronizing") as seen:
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{one.filename}:{one.lineno}" for one in seen if "synchronizing" in str(one.message)]


@pytest.mark.parametrize("fixture", ["small_sd", "small_sd3", "small_flux"])
def test_no_step_of_a_sampler_or_pass_of_a_learner_waits_for_the_gpu(request, fixture):
    found = {}
    for steps in (4, 8):
        run = small.run(request.getfixturevalue(fixture), sampling__steps=steps, rollout__prompts=1)
        sampler, learner, task = Sampler(run, GPU), Learner(run, GPU), tasks(run)[0]
        sampler.sample(task)
        found["sampler", steps] = waits(lambda: sampler.sample(task))  # noqa: B023 - called at once
        trajectory, _ = sampler.sample(task)
        packed = pack_trajectory(sampler.policy, task, trajectory)
        advantages = [1.0, -1.0, 0.5, -0.5]
        found["learner", steps] = waits(lambda: learner.update(1, [(0, packed, advantages)]))  # noqa: B023
    for role in ("sampler", "learner"):
        assert len(found[role, 4]) == len(found[role, 8]), sorted(found[role, 8])


def test_a_learner_on_a_gpu_has_the_gradients_of_one_on_a_cpu(small_sd):
    """Not to the bit: kernels differ. From one trajectory, that a CPU has sampled."""
    run = small.run(small_sd, rollout__prompts=1, credit__kind="native", objective__log_ratio="replay")
    sampler, task = Sampler(run, torch.device("cpu")), tasks(run)[0]
    trajectory, _ = sampler.sample(task)
    packed = pack_trajectory(sampler.policy, task, trajectory)
    found = []
    for device in (torch.device("cpu"), GPU):
        AcceleratorState._reset_state(reset_partial_state=True)  # a process has one kind of device else
        found.append(Learner(run, device).update(1, [(0, packed, [1.0, -1.0, 0.5, -0.5])]))
    assert found[0].gradient_norm > 0
    assert found[1].gradient_norm == pytest.approx(found[0].gradient_norm, rel=1e-2)
