"""A running mean of the weights."""

import torch
from torch import nn

from pcpo_ray.workers.learner.ema import EMA


def test_it_is_the_exponential_mean_with_a_decay_that_grows():
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    average = EMA([weight], 0.5)
    expected = 1.0
    for n, value in enumerate((2.0, 5.0, -1.0, 4.0), start=1):
        weight.data.fill_(value)
        average.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert float(average.values[0]) == expected


def test_the_parameters_come_back_to_the_bit():
    weight = nn.Parameter(torch.tensor([0.1], dtype=torch.bfloat16))
    average = EMA([weight], 0.9)
    weight.data.fill_(0.3)
    before = weight.detach().clone()
    with average.applied():
        assert torch.equal(weight.detach(), torch.tensor([0.1], dtype=torch.bfloat16))
    assert torch.equal(weight.detach(), before)


def test_small_steps_of_a_half_type_are_not_lost():
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    average = EMA([weight], 0.999)
    average.restore([torch.ones(1)], updates=100_000)
    weight.data.fill_(1.0078125)
    average.update()
    assert average.values[0].dtype == torch.float32
    assert 0 < float(average.values[0]) - 1 < 1e-5


def test_one_that_is_restored_goes_on_as_if_it_had_never_stopped():
    weight = nn.Parameter(torch.zeros(2))
    whole = EMA([weight], 0.99)
    weight.data.fill_(1.0)
    whole.update()
    resumed = EMA([weight], 0.99)
    resumed.restore(whole.values, updates=whole.updates)
    weight.data.fill_(-3.0)
    for average in (whole, resumed):
        average.update()
    assert torch.equal(whole.values[0], resumed.values[0])
