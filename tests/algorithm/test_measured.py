"""Credit that is measured on trajectories, against worlds whose answer is known in closed form."""

import math

import pytest
import torch

from pcpo_ray.algorithm import measured
from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.algorithm.transitions import ddim, flow_sde
from pcpo_ray.errors import TrainingError
from tests.support.schedules import sd15

STD = 0.7


def gaussian_flow(time):
    """E[x_0 | x_t] is `gain` x_t for x_0 of N(0, STD^2) and x_t = (1 - t) x_0 + t eps."""
    return (1 - time) * STD**2 / ((1 - time) ** 2 * STD**2 + time**2)


def gaussian_diffusion(alpha_bar):
    return math.sqrt(alpha_bar) * STD**2 / (alpha_bar * STD**2 + 1 - alpha_bar)


def worlds():
    """Schedule, steps, E[x_0 | x_k] / x_k of each step, and the prediction of which that image is predicted."""
    flow = FlowSchedule.shifted(steps=2000, shift=3.0)
    diffusion = sd15(500)
    yield (
        flow,
        flow_sde.steps(flow, flow_sde.constant_noise(flow, 1.0)),
        [gaussian_flow(time) for time in flow.times[:-1]],
        lambda index, x, image: (x - image) / flow.times[index],
    )
    yield (
        diffusion,
        ddim.steps(diffusion),
        [gaussian_diffusion(alpha_bar) for alpha_bar in diffusion.alpha_bar],
        lambda index, x, image: (
            (x - math.sqrt(diffusion.alpha_bar[index]) * image) / math.sqrt(1 - diffusion.alpha_bar[index])
        ),
    )


@pytest.mark.parametrize("world", list(worlds()), ids=["flow", "diffusion"])
@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_the_measure_of_entropy_is_the_std_of_the_image_over_the_noise(world, place):
    """The image predicted after a step is linear in its noise: its std is E[x_0 | x] / x times the noise's."""
    schedule, steps, gains, predicting = world
    index = round(place * len(steps))
    drawn = torch.Generator().manual_seed(index)
    time = math.sqrt(1 - schedule.alpha_bar[index]) if hasattr(schedule, "alpha_bar") else schedule.times[index]
    signal = math.sqrt(schedule.alpha_bar[index]) if hasattr(schedule, "alpha_bar") else 1 - time
    x0, eps, z = torch.randn(3, 8, 4000, generator=drawn, dtype=torch.float64)
    x = signal * STD * x0 + time * eps
    images = []
    for at, latents in ((index, x), (index + 1, None)):
        if latents is None:
            latents, _ = steps[index].draw(x, predicting(index, x, gains[index] * x), z)
        found = measured.predicted_image(schedule, at, latents, predicting(at, latents, gains[at] * latents))
        torch.testing.assert_close(found, gains[at] * latents, rtol=1e-9, atol=1e-9)
        images.append(found)
    measure = measured.undecided(*images)
    assert measure.shape == (8,) and len(set(measure.tolist())) == 1
    assert float(measure[0]) == pytest.approx(gains[index + 1] * steps[index].std, rel=0.03)


def test_the_weight_is_the_exponential_of_the_gaussian_s_entropy():
    """exp(H) of N(0, m) is sqrt(2 pi e m): at another scale of the noise the weight scales as it does."""
    before = torch.zeros(3, 40, dtype=torch.float64)
    after = torch.randn(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, two = (float(measured.undecided(before, scale * after)[0]) for scale in (1, 3))
    entropies = [torch.distributions.Normal(0.0, std).entropy().exp() for std in (one, two)]
    assert float(entropies[1] / entropies[0]) == pytest.approx(two / one, rel=1e-6) == pytest.approx(3)


def test_attention_moves_by_the_total_variation_of_its_distributions():
    """The largest difference of the two distributions over any set of tokens, found by trying all sets."""
    logits = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before, after = logits.softmax(3)
    sets = [[bool(number >> place & 1) for place in range(4)] for number in range(16)]
    largest = torch.stack([(after - before)[:, :, chosen].sum(2) for chosen in sets]).amax(0)
    torch.testing.assert_close(measured.moved(before, after), largest.mean(1))


def test_weights_are_each_image_s_own_at_the_native_mean():
    found = measured.at_the_mean(torch.tensor([[1.0, 3.0], [5.0, 5.0]]), 0.5)
    assert found.tolist() == [[0.25, 0.75], [0.5, 0.5]]


@pytest.mark.parametrize("row", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_a_measure_of_nothing_is_refused_with_another_kind(row):
    with pytest.raises(TrainingError, match=r"expected numbers above 0: set credit\.kind=reweight"):
        measured.at_the_mean(torch.tensor([[1.0, 2.0], row]), 0.5)
