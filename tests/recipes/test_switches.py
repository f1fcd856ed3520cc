"""Each switch of the recipes for two steps on the embedded world (`make recipes`)."""

import pytest

from pcpo_ray.config import files
from tests.support import ROOT
from tests.support.two_steps import SMALLER, two_steps

pytestmark = pytest.mark.recipes

CONFIGS = ROOT / "configs"
FEW = ["sampling.steps=8", "evaluation.quality.neighbours=2", "evaluation.quality.reference.count=16"]
"""Neighbours of four images; half of the flow recipe's own 16 steps, for time."""

SWITCHES = {
    "kl": ["objective.kl=0.01"],
    "share": ["sampling.subset={kind: share, share: 0.6}"],
    "sliding window": ["sampling.subset={kind: window, size: 2}"],
    "random window": ["sampling.subset={kind: window, size: 2, order: random}"],
    "shared noise": ["sampling.shared_noise=true"],
    "clip range by weight": ["objective.clip_scale=weight"],
    "loss by noise": ["objective.step_loss=noise"],
    "advantage clip": ["advantage.clip=0.5"],
    "updates and epochs": ["optimizer.minibatches=2", "optimizer.epochs=2"],
    "running mean": ["optimizer.average=0.9"],
    "detached guidance": ["sampling.guidance_scale=3.0", "sampling.detach_unconditional=true"],
    "tilted credit": ["credit={kind: tilted, slope: 0.5}"],
    "flash": ["credit=flash_grpo", "sampling.subset={kind: window, size: 1, order: per_prompt}"],
    "fair clip": ["credit=fair_clip"],
    "credit by entropy": ["credit=entropy"],
    "credit by attention": ["credit=attention"],
    "mask by divergence": ["objective={kind: divergence_mask, threshold: 1.0e-6}"],
    "sum of advantages": ["rewards=[{kind: clip_score}, {kind: jpeg_compressibility}]", "combine=advantages"],
}


SWITCHES_OF_FLOW = {
    "guard": ["credit=grpo_guard"],
    "second fair clip": ["credit=fair_clip2"],
    "noised pairs": ["sampling.process={kind: renoised, omega: time}", "credit.kind=native"],
    "coefficients preserving": ["sampling.process={kind: coefficients_preserving}", "credit.kind=native"],
    "proportionate noise": ["sampling.process={kind: proportionate_noise}", "credit.kind=native"],
}


@pytest.mark.parametrize(
    ("config", "switch"),
    [
        *((config, switch) for switch in SWITCHES for config in ("shapes_pcpo", "shapes_pcpo_flux")),
        *(("shapes_pcpo_flux", switch) for switch in SWITCHES_OF_FLOW),
    ],
)
def test_a_switch_runs_on_the_embedded_world(config, switch, tmp_path):
    run = files.load(CONFIGS / f"{config}.yaml", [*SMALLER, *FEW, *{**SWITCHES, **SWITCHES_OF_FLOW}[switch]])
    assert len(two_steps(run, tmp_path / "run", local=True)) == 2
