"""A trajectory is its predictions, and opened it is what was sampled, to the bit."""

import dataclasses
import os
import pickle
import subprocess
import sys

import pytest
import torch

from pcpo_ray.config import files
from pcpo_ray.errors import TrainingError
from pcpo_ray.workers.packing import pack_trajectory, sent_steps, unpack_trajectory
from pcpo_ray.workers.sampler import Sampler
from tests.support import ROOT, small
from tests.support.trajectories import same_bits, task

CPU = torch.device("cpu")
HALVES = ("bfloat16", "float16")


def sampled(run, **asked):
    """The policy of a sampler whose adapter does something, a task, and its trajectory."""
    sampler = Sampler(run, CPU)
    with torch.no_grad():
        for n, parameter in enumerate(sampler.policy.denoiser.trainable().values()):
            parameter.add_(0.1 + 0.01 * n)
    asked = task(**asked)
    return sampler.policy, asked, sampler.sample(asked)[0]


def opened(policy, asked, trajectory):
    """What the learner makes of what has travelled."""
    return unpack_trajectory(policy, pickle.loads(pickle.dumps(pack_trajectory(policy, asked, trajectory), protocol=5)))


def check(run, **asked):
    policy, asked, trajectory = sampled(run, **asked)
    back = opened(policy, asked, trajectory)
    assert same_bits(back, trajectory)
    assert {back.latents.dtype, back.predictions.dtype, back.noises.dtype} == {getattr(torch, run.sampling.storage)}
    assert all(torch.equal(back.conditioning[name], row) for name, row in trajectory.conditioning.items())
    return pack_trajectory(policy, asked, trajectory)


CREDITS = {
    "small_sd": ["native", "reweight", "released", "variance", "interpolate"],
    "small_flux": ["native", "reweight", "proportionate"],
}


@pytest.mark.parametrize("storage", ["float32", *HALVES])
@pytest.mark.parametrize(("model", "credit"), [(model, kind) for model, kinds in CREDITS.items() for kind in kinds])
def test_under_every_credit_and_storage_it_opens_to_the_bit(request, model, credit, storage):
    settings = {"sampling__trained_steps": 2} if credit == "released" else {}
    run = small.run(request.getfixturevalue(model), credit__kind=credit, sampling__storage=storage, **settings)
    packed = check(run)
    sent = packed.latents[1].shape[1]
    assert sent == (len(packed.steps) - 1 if credit == "interpolate" else 0)


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("subset", "step", "sent"),
    [
        ("{kind: window, size: 3}", 1, 0),
        ("{kind: window, size: 3, every: 1}", 3, 1),
        ("{kind: window, size: 3, order: random}", 5, 1),
        ("{kind: share, share: 0.5}", 2, None),
    ],
)
@pytest.mark.parametrize("model", CREDITS)
def test_whatever_part_of_the_steps_is_trained_it_opens_to_the_bit(request, model, subset, step, sent, storage):
    changes = {"sampling__steps": 8, "sampling__subset": subset, "sampling__storage": storage}
    packed = check(small.run(request.getfixturevalue(model), **changes), step=step, position=2)
    assert sent is None or packed.latents[1].shape[1] == sent
    assert packed.latents[1].shape[1] < packed.predictions[1].shape[1] < 8


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling__trained_steps": 2},
        {"sampling__shared_noise": "true", "sampling__batch": 3},
        {"sampling__guidance_scale": 3.0, "optimizer__mixed_precision": "bf16"},
        {"model__dtype": "bfloat16", "sampling__guidance_scale": 1.0},
        {"credit__kind": "interpolate", "sampling__subset": "{kind: window, size: 2, every: 1}"},
    ],
)
def test_whatever_the_sampler_does_it_opens_to_the_bit(small_sd, changes):
    check(small.run(small_sd, **changes), step=2)


@pytest.mark.parametrize("model", ["small_sdxl", "small_sd3", "small_flux_dev"])
def test_every_model_s_opens_to_the_bit(request, model):
    check(small.run(request.getfixturevalue(model)))


def values_of(packed):
    return packed.predictions[1].size


@pytest.mark.parametrize("model", ["small_sd", "small_sdxl", "small_sd3", "small_flux", "small_flux_dev"])
@pytest.mark.parametrize(
    "changes",
    [{"model__dtype": "bfloat16"}, {"model__dtype": "float16"}, {"optimizer__mixed_precision": "bf16"}],
)
def test_unguided_predictions_travel_in_the_networks_dtype(request, model, changes):
    packed = check(small.run(request.getfixturevalue(model), **changes, sampling__guidance_scale=1.0))
    assert packed.predictions[0] == changes.get("model__dtype", "bfloat16")
    assert packed.predictions[1].nbytes == 2 * values_of(packed)


def test_guidance_adds_two_predictions_up_which_only_float32_holds(small_sd):
    packed = check(small.run(small_sd, model__dtype="bfloat16", sampling__guidance_scale=3.0))
    assert packed.predictions[0] == "float32"


@pytest.mark.parametrize("name", ["shapes_pcpo", "shapes_pcpo_flux", "shapes_ddpo", "shapes_dancegrpo_flux"])
def test_a_sample_s_bytes_are_its_predictions_and_a_tenth(name):
    run = files.load(ROOT / "configs" / f"{name}.yaml", [])
    policy, asked, trajectory = sampled(run, images=run.rollout.images)
    predictions = trajectory.predictions.numel() * policy.computes_in.itemsize
    packed = pack_trajectory(policy, asked, trajectory)
    if not sent_steps(policy.credit_of(asked.step, asked.position)):
        assert packed.bytes <= 1.1 * predictions
    assert packed.bytes < 0.7 * trajectory.bytes


def test_noise_of_another_kind_of_cpu_is_found_out_and_what_to_do_is_said(small_sd, tmp_path):
    """ATEN_CPU_CAPABILITY=default is a processor without AVX2."""
    path, run = tmp_path / "packed", small.run(small_sd)
    (tmp_path / "run.yaml").write_text(files.dump(run))
    code = (
        "import pickle, sys; from pcpo_ray.config import files; from tests.workers import test_packing as t; "
        "run = files.load(sys.argv[1]); open(sys.argv[2], 'wb').write(pickle.dumps(t.pack_trajectory(*t.sampled(run))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run.yaml"), str(path)],
        cwd=ROOT,
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    packed = pickle.loads(path.read_bytes())
    if packed.machine.endswith(torch.backends.cpu.get_cpu_capability()):
        pytest.skip("this processor has nothing beyond the default")
    with pytest.raises(TrainingError, match=r"other noise or latents here .*DEFAULT\); .*ATEN_CPU_CAPABILITY=default"):
        unpack_trajectory(Sampler(run, CPU).policy, packed)


def test_predictions_that_were_changed_on_their_way_are_found_out(small_sd):
    policy, asked, trajectory = sampled(small.run(small_sd))
    packed = pack_trajectory(policy, asked, trajectory)
    name, array = packed.predictions
    changed = array.copy()
    changed[0, 0] += 1e-3
    with pytest.raises(TrainingError, match="the group at place 0 of step 1 has other noise or latents"):
        unpack_trajectory(policy, dataclasses.replace(packed, predictions=(name, changed)))


def test_latents_that_are_no_numbers_are_not_blamed_on_the_machine(small_sd):
    policy, asked, trajectory = sampled(small.run(small_sd))
    trajectory.predictions[0, 0] = torch.inf
    with pytest.raises(TrainingError, match="not finite"):
        opened(policy, asked, trajectory)


def test_a_learner_that_trains_other_steps_refuses(small_sd):
    policy, asked, trajectory = sampled(small.run(small_sd))
    other = Sampler(small.run(small_sd, sampling__trained_steps=2), CPU).policy
    with pytest.raises(TrainingError, match=r"for the steps \(0, 1, 2, 3\); the learner's config trains \(0, 1\)"):
        unpack_trajectory(other, pack_trajectory(policy, asked, trajectory))
