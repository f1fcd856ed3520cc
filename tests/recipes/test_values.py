"""What recipes take from the code of the methods that they name, where its formula is not ours; and how they scale."""

import dataclasses
import math

import pytest

from pcpo_ray import models
from pcpo_ray.commands.study import axes
from pcpo_ray.config import files
from pcpo_ray.models import steps
from pcpo_ray.workers.learner import mini_batches
from tests.support import ROOT

CONFIGS = ROOT / "configs"


def recipe(name):
    return files.load(CONFIGS / f"sd35m_{name}_pickscore.yaml")


def trained(run, folder):
    """(t, dt, the step) of every trained step, on the grid of SD3's scheduler, which is the same at any size."""
    sampling = dataclasses.replace(run.sampling, height=None, width=None)
    schedule = models.schedule_of(folder, dataclasses.replace(run.model, path=str(folder)), sampling)
    plan = steps.plan(run.credit, run.sampling, schedule)
    return [(schedule.times[i], schedule.dt[i], plan.steps[i]) for i in plan.trained]


@pytest.mark.parametrize("name", ["flowgrpo", "pcpo"])
def test_flow_grpos_kl_without_dt_is_ours_in_the_sum_over_the_steps(name, small_sd3):
    run = recipe(name)
    steps = trained(run, small_sd3)
    published = 0.01
    ours, theirs, of_each = [], [], []
    for place, (time, dt, step) in enumerate(steps):
        noisy = steps[1][0] if place == 0 else time  # at t = 1 the next step's
        sigma = run.sampling.process.a * math.sqrt(time / (1 - noisy))
        assert step.std == pytest.approx(sigma * math.sqrt(dt), rel=1e-6)
        theirs.append(published * step.gain**2 / (2 * sigma**2))
        ours.append(run.objective.kl * step.gain**2 / (2 * step.std**2))
        of_each.append(published * dt)
    assert len(steps) == 9
    assert sum(ours) == pytest.approx(sum(theirs), rel=2e-3)
    assert (round(1 / steps[0][1], 1), round(1 / steps[-1][1], 1)) == (25.1, 3.7)
    assert (round(min(of_each), 4), round(max(of_each), 4)) == (0.0004, 0.0027)


def test_tempflows_kl_group_scale_and_weighting_are_its_codes(small_sd3):
    run = recipe("tempflow")
    assert (run.objective.kl, run.objective.step_loss) == (0.001, "noise")
    assert (run.advantage.scale, run.sampling.detach_unconditional) == ("group", False)
    stds = [step.std for *_, step in trained(run, small_sd3)]
    assert len(stds) / sum(stds) == pytest.approx(2.25, rel=2e-3)


def test_flow_grpo_fast_has_its_own_noise_clip_range_and_no_kl():
    run = recipe("flowgrpo_fast")
    assert (run.objective.kl, run.objective.clip_range, run.sampling.process.a) == (0.0, 1e-5, 0.8)
    assert (run.sampling.subset.size, run.sampling.subset.order, run.sampling.trained_steps) == (2, "random", 5)


OF = {
    "sd35m_pcpo_pickscore": ("sd35m_flowgrpo_pickscore", {"objective.kind", "credit.kind"}),
    "flux_pcpo_hpsv21": ("flux_dancegrpo_hpsv21", {"objective.kind", "credit.kind"}),
    "sd14_pcpo_hpsv21": ("sd14_dancegrpo_hpsv21", {"objective.kind", "credit.kind"}),
    "klein4b_pcpo_pickscore": ("klein4b_flowgrpo_pickscore", {"objective.kind", "credit.kind"}),
    "zimage_pcpo_hpsv21": ("zimage_dancegrpo_hpsv21", {"objective.kind", "credit.kind"}),
    "qwen_pcpo_ocr": ("qwen_flowgrpo_ocr", {"objective.kind", "credit.kind"}),
    "sana06b_pcpo_pickscore": ("sana06b_flowgrpo_pickscore", {"objective.kind", "credit.kind"}),
    "sd15_pcpo_aesthetic_reweight": ("sd15_ddpo_aesthetic", {"objective.kind", "credit.kind"}),
    "sd15_pcpo_aesthetic_released": ("sd15_ddpo_aesthetic", {"objective.kind", "credit"}),
    "sd15_pcpo_aesthetic_interpolate": ("sd15_ddpo_aesthetic", {"objective.kind", "credit"}),
    "sd15_pcpo_aesthetic_variance": (
        "sd15_ddpo_aesthetic",
        {"objective.kind", "credit", "sampling.trained_steps"},
    ),
}
"""Of each PCPO recipe that says of which it is: that one, and the keys in which they may differ."""


@pytest.mark.parametrize("name", OF)
def test_a_recipe_of_another_differs_from_it_in_what_its_header_says(name):
    other, allowed = OF[name]
    assert f"of {other}.yaml" in (CONFIGS / f"{name}.yaml").read_text()
    one, two = (files.load(CONFIGS / f"{stem}.yaml") for stem in (name, other))
    assert axes.settings_differing(one, two).keys() == allowed


@pytest.mark.parametrize("ranks", [8, 16, 32])
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("flux_*.yaml")), ids=lambda path: path.stem)
def test_a_flux_recipe_keeps_many_ranks_busy_with_four_groups(path, ranks):
    run = files.load(path)
    trained = steps.trained_per_group(run.sampling.subset, run.sampling.steps - 1)  # the last step draws no noise
    (part, _) = mini_batches.split_groups(run.optimizer, run.rollout.prompts, seed=0, step=1)
    blocks = mini_batches.cut_into_blocks(
        dict.fromkeys(part, (run.rollout.images, trained)), mini_batches.length_of(run, None)
    )
    learned = [len(mini_batches.rank_share(blocks, rank, ranks)) for rank in range(ranks)]
    assert len(part) == 4 and 1 - sum(learned) / (ranks * max(learned)) < 0.05
