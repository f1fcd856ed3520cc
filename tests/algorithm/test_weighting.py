"""Pairs of what is inside the clip and what is outside it, against the published codes' words in float64.

Published losses are written in log-probabilities, std_dev_t (sigma) and dt. `densities` takes them from the Gaussians
themselves, so that nothing of our log-ratio is used.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pcpo_ray.algorithm import credit, objective, weighting
from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.algorithm.transitions import ddim, flow_cps, flow_sde
from pcpo_ray.errors import CreditError
from tests.support.predictions import draws
from tests.support.schedules import diffusion_schedules, flow_schedules, sd15

SCHEDULE = FlowSchedule.shifted(steps=10, shift=3.0)
SIGMAS = flow_sde.ratio_noise(SCHEDULE, 0.7)
STEPS = flow_sde.steps(SCHEDULE, SIGMAS)
TRAINED = range(9)
XI = 1e-3


def densities(step, new, old, noise):
    """The mean over D of both log-probabilities of the x_next that was drawn, and of the means' squared distance."""
    latents = torch.randn(new.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    means = [step.scale * latents + step.gain * prediction for prediction in (new, old)]
    drawn = means[1] + step.std * noise
    log_probs = [torch.distributions.Normal(mean, step.std).log_prob(drawn).flatten(1).mean(1) for mean in means]
    return (*log_probs, (means[0] - means[1]).square().flatten(1).mean(1))


def ours(plan, index, new, old, noise, advantage, *, xi=XI):
    """The loss of the step's pairs as the learner computes it: inside, surrogate, outside."""
    found = plan.scales[index] * objective.log_ratio(
        new, old, noise, weight=plan.weights[index], sign=plan.steps[index].sign, quadratic=plan.quadratic
    )
    return plan.outside[index] * objective.clipped_ratio(found, advantage, clip_range=xi)


def pairs(change=0.05, count=6):
    new, old, noise = draws(shape=(count, 3, 8, 8), change=change)
    advantage = torch.tensor([1.0, -1.0, 2.0, -0.5, 0.3, -2.0], dtype=torch.float64)
    return new.requires_grad_(), old, noise, advantage.repeat(count // 6)


def ppo(ratio, advantage, xi=XI):
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - xi, 1 + xi))


def gradient(loss, prediction):
    (found,) = torch.autograd.grad(loss.sum(), prediction)
    return found


def published_guard(step, sigma, dt, new, old, noise, advantage):
    """The drift of the mean is added back and the sum scaled by sqrt(dt) sigma; the loss is divided by dt."""
    log_prob, old_log_prob, distance = densities(step, new, old, noise)
    scale = math.sqrt(dt) * sigma
    bias = distance / (2 * scale**2)
    return ppo(((log_prob - old_log_prob + bias) * scale).exp(), advantage) / dt


def published_fair(step, sigma, dt, new, old, noise, advantage):
    log_prob, old_log_prob, _ = densities(step, new, old, noise)
    return ppo(((log_prob - old_log_prob) * sigma**2 * dt).exp(), advantage) / (dt * sigma**2)


def published_fair2(step, sigma, dt, new, old, noise, advantage):
    return published_fair(step, sigma, dt, new, old, noise, advantage) * sigma / math.sqrt(dt)


def published_flash(step, sigma, dt, new, old, noise, advantage):
    """The loss is divided by c(t) = sqrt(dt) / sigma + sigma sqrt(dt) (1 - t) / (2 t), at a mean of 1."""
    scales = []
    for time, one, level in zip(SCHEDULE.times, SCHEDULE.dt, SIGMAS, strict=False):
        scales.append(math.sqrt(one) / level + level * math.sqrt(one) * (1 - time) / (2 * time))
    mean = sum(1 / scale for scale in scales[:9]) / 9
    log_prob, old_log_prob, _ = densities(step, new, old, noise)
    own = scales[STEPS.index(step)]
    return ppo((log_prob - old_log_prob).exp(), advantage) / own / mean


KINDS = {
    "grpo_guard": (weighting.grpo_guard(SCHEDULE, STEPS, TRAINED), published_guard),
    "fair_clip": (weighting.fair_clip(STEPS, TRAINED), published_fair),
    "fair_clip2": (weighting.fair_clip2(SCHEDULE, STEPS, TRAINED), published_fair2),
    "flash_grpo": (weighting.flash_grpo(STEPS, TRAINED), published_flash),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", TRAINED)
def test_the_loss_and_its_gradient_are_those_of_the_published_code(kind, index):
    plan, published = KINDS[kind]
    new, old, noise, advantage = pairs()
    theirs = published(STEPS[index], SIGMAS[index], SCHEDULE.dt[index], new, old, noise, advantage)
    mine = ours(plan, index, new, old, noise, advantage)
    torch.testing.assert_close(mine - plan.outside[index] * advantage, theirs, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(gradient(mine, new), gradient(theirs, new), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_at_unchanged_weights_every_log_ratio_is_exactly_zero(kind, dtype):
    plan, _ = KINDS[kind]
    _, old, noise, _ = pairs()
    for index in TRAINED:
        found = objective.log_ratio(
            old.to(dtype), old.to(dtype), noise.to(dtype), weight=plan.weights[index], sign=1.0,
            quadratic=plan.quadratic,
        )  # fmt: skip
        assert (plan.scales[index] * found).eq(0).all()


def products(plan):
    return [plan.inside[index] * plan.outside[index] for index in plan.trained]


def test_the_products_are_those_of_the_table():
    k = [abs(STEPS[index].gain) / SCHEDULE.dt[index] for index in TRAINED]
    w = [STEPS[index].weight for index in TRAINED]
    assert products(KINDS["grpo_guard"][0]) == pytest.approx(k, rel=1e-12)
    assert products(KINDS["fair_clip2"][0]) == pytest.approx(k, rel=1e-12)
    assert products(KINDS["fair_clip"][0]) == pytest.approx(w, rel=1e-12)
    harmonic = 9 / sum(1 / weight for weight in w)
    assert products(KINDS["flash_grpo"][0]) == pytest.approx([harmonic] * 9, rel=1e-12)
    assert [1 + (1 - t) * s**2 / (2 * t) for t, s in zip(SCHEDULE.times, SIGMAS[:9], strict=False)] == pytest.approx(k)


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_steps_carry_nothing_and_the_sampler_is_native(kind):
    plan, _ = KINDS[kind]
    assert plan.steps == STEPS and plan.mix == (1.0,) * 10 and plan.trained == tuple(TRAINED)
    assert (plan.weights[9], plan.scales[9], plan.outside[9]) == (0.0, 1.0, 1.0)


@given(flow_schedules(), st.floats(0.1, 0.9), st.sampled_from(["sde", "cps"]))
def test_every_process_of_a_flow_has_the_same_products(schedule, level, process):
    """|gain| / dt and 1 / mean(1 / w), whatever rule makes gain and std."""
    trained = range(len(schedule) - 1)
    if process == "sde":
        steps = flow_sde.steps(schedule, flow_sde.constant_noise(schedule, level))
    else:
        steps = flow_cps.steps(schedule, flow_cps.renewed_noise(schedule, level))
    wanted = [abs(steps[index].gain) / schedule.dt[index] for index in trained]
    for kind in (weighting.grpo_guard, weighting.fair_clip2):
        assert products(kind(schedule, steps, trained)) == pytest.approx(wanted, rel=1e-9)
    flash = weighting.flash_grpo(steps, trained)
    assert sum(flash.outside[index] for index in trained) / len(trained) == pytest.approx(1, rel=1e-9)
    assert max(products(flash)) == pytest.approx(min(products(flash)), rel=1e-9)


@given(diffusion_schedules(), st.floats(0.2, 1))
def test_flash_and_fair_clip_hold_for_ddim_too(schedule, eta):
    steps = ddim.steps(schedule, eta=eta)
    flash, fair = weighting.flash_grpo(steps, range(len(steps))), weighting.fair_clip(steps, range(len(steps)))
    assert max(products(flash)) == pytest.approx(min(products(flash)), rel=1e-9)
    assert products(fair) == pytest.approx([step.weight for step in steps], rel=1e-9)
    assert fair.inside == pytest.approx([abs(step.gain) * step.std for step in steps], rel=1e-9)


def test_a_part_of_the_trained_steps_keeps_its_numbers():
    plan, _ = KINDS["grpo_guard"]
    part = plan.restricted((2, 5))
    assert (part.scales, part.outside, part.quadratic) == (plan.scales, plan.outside, False)
    assert [index for index, weight in enumerate(part.weights) if weight] == [2, 5]


def test_a_step_without_noise_or_of_another_schedule_is_refused():
    for kind in (weighting.grpo_guard, weighting.fair_clip2):
        with pytest.raises(CreditError, match="got 9 steps for a schedule of 10"):
            kind(SCHEDULE, STEPS[:9], TRAINED)
    still = flow_sde.steps(SCHEDULE, (*SIGMAS[:9], 0.0))
    for make in (weighting.flash_grpo, weighting.fair_clip):
        with pytest.raises(CreditError, match="step 9 of 10 draws no noise"):
            make(still, range(10))


def test_the_other_kinds_leave_the_loss_and_the_clip_as_they_are():
    plans = (
        credit.native(STEPS, TRAINED),
        credit.reweight(STEPS, TRAINED),
        credit.proportionate_flow(SCHEDULE, STEPS, TRAINED),
        credit.interpolate(ddim.steps(sd15()), range(50)),
        credit.given(STEPS, TRAINED, [1.0] * 9),
    )
    for plan in plans:
        assert set(plan.scales) == set(plan.outside) == {1.0} and plan.quadratic
        assert plan.inside == plan.weights


# -- Flow-DPPO ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 4, 8])
@pytest.mark.parametrize("change", [0.02, 0.5])
def test_the_divergence_mask_is_the_published_one(index, change):
    """KL of the two Gaussians, and a mask where it is large and ratio and advantage point the same way."""
    step = STEPS[index]
    new, old, noise, advantage = pairs(change, count=60)
    log_prob, old_log_prob, distance = densities(step, new, old, noise)
    normal = torch.distributions.Normal
    zero = torch.zeros((), dtype=torch.float64)
    kl = torch.distributions.kl_divergence(normal(distance.sqrt(), step.std), normal(zero, step.std))
    threshold = float(kl.detach().quantile(0.5))  # between two of them
    ratio = (log_prob - old_log_prob).exp()
    away = ((ratio > 1) & (advantage > 0)) | ((ratio < 1) & (advantage < 0))
    keep = ~((kl >= threshold) & away)
    theirs = -advantage * ratio * keep
    found = objective.log_ratio(new, old, noise, weight=step.weight, sign=step.sign)
    divergence = objective.kl_divergence(new.detach(), old, weight=step.weight)
    torch.testing.assert_close(divergence, kl.detach(), rtol=1e-9, atol=0)
    mine = objective.divergence_mask(found, advantage, divergence, threshold=threshold)
    torch.testing.assert_close(mine, (theirs + advantage * keep).detach() + 0 * mine, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(gradient(mine, new), gradient(theirs, new), rtol=1e-6, atol=1e-12)
    assert 0 < int((~keep).sum()) < 60


def test_a_mask_cuts_off_only_what_moves_further_away():
    values = torch.tensor([0.1, -0.1, 0.1, -0.1, 0.1, 0.0], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    divergence = torch.tensor([2.0, 2.0, 2.0, 2.0, 0.5, 2.0], dtype=torch.float64)
    loss = objective.divergence_mask(values, advantage, divergence, threshold=1.0)
    loss.sum().backward()
    assert values.grad is not None
    assert (values.grad == 0).tolist() == [True, False, False, True, False, False]
    assert loss[[0, 3]].tolist() == [0, 0]
