"""The policy: the steps a group is sampled with and trained on."""

import pytest
import torch

from pcpo_ray.models import steps
from pcpo_ray.models.policy import Policy
from tests.support import small

CPU = torch.device("cpu")


@pytest.mark.parametrize("model", ["small_sd", "small_flux"])
def test_a_fraction_of_the_steps_keeps_sampler_and_chosen_weights(model, request):
    made = Policy(
        small.run(request.getfixturevalue(model), sampling__steps=8, sampling__subset="{kind: share, share: 0.5}"), CPU
    )
    whole, part = made.credit, made.credit_of(3, 1)
    assert part.steps == whole.steps
    assert len(part.trained) == round(len(whole.trained) / 2)
    for index, weight in enumerate(part.weights):
        assert weight == (whole.weights[index] if index in part.trained else 0.0)
    assert made.credit_of(3, 1) == part
    assert len({made.credit_of(step, position).trained for step in range(5) for position in range(3)}) > 5


@pytest.mark.parametrize("model", ["small_sd", "small_flux"])
def test_outside_a_window_no_step_draws_noise(model, request):
    made = Policy(
        small.run(request.getfixturevalue(model), sampling__steps=8, sampling__subset="{kind: window, size: 3}"), CPU
    )
    part = made.credit_of(1, 0)
    assert part.trained == (0, 1, 2)
    assert [step.std > 0 for step in part.steps] == [True] * 3 + [False] * 5
    assert part.steps[:3] == made.credit.steps[:3] and part.weights[:3] == made.credit.weights[:3]
    assert part.steps[3:] == steps.deterministic_steps(made.schedule)[3:]
    assert made.credit_of(1, 7) == part  # the whole batch's


def test_a_window_mixes_only_what_it_trains(small_sd):
    made = Policy(
        small.run(small_sd, sampling__steps=8, sampling__subset="{kind: window, size: 3}", credit__kind="interpolate"),
        CPU,
    )
    part = made.credit_of(1, 0)
    assert part.mix == (*made.credit.mix[:3], *[1.0] * 5)


@pytest.mark.parametrize("model", ["small_sd", "small_flux"])
def test_tilted_credit_samples_as_the_native_one(model, request):
    folder = request.getfixturevalue(model)
    tilted = Policy(small.run(folder, credit="{kind: tilted, slope: 0.5}"), CPU)
    assert tilted.credit.steps == tilted.native
    assert len(set(tilted.credit.weights)) > 1
