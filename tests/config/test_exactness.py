"""What makes sampler and learner compute other bits is refused by name, or allowed where old predictions are taken."""

import pytest

from pcpo_ray.config import files
from pcpo_ray.errors import ConfigError
from tests.config.test_config import SHAPES

RECOMPUTED = "objective.old_predictions=recomputed"
FLUX = SHAPES.with_stem("shapes_pcpo_flux")


@pytest.mark.parametrize(
    "override",
    ["sampling.compile=true", "optimizer.compile=true", "sampling.batch=auto", "objective.max_mismatch=0.01"],
)
def test_what_needs_recomputed_is_allowed_with_it_and_with_nothing_else(override):
    with pytest.raises(ConfigError, match=r"set objective\.old_predictions=recomputed, or leave it out"):
        files.load(SHAPES, [override])
    files.load(SHAPES, [override, RECOMPUTED])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["objective.log_ratio=replay", "credit.kind=native"], ["objective.log_ratio is replay", "decomposed"]),
        (["rollout.max_staleness=1"], ["rollout.max_staleness is 1", "set objective.correction", "max_staleness=0"]),
        (
            ["sampling.compile=true", "workers.learner.samples=true"],
            ["sampling.compile is true", "optimizer.compile is false", "workers.learner.samples=true", "both alike"],
        ),
        (
            ["optimizer.compile=true", "workers.learner={ranks: 2, strategy: fsdp2}", "optimizer.micro_batch=null"],
            ["optimizer.compile is true with workers.learner.strategy=fsdp2"],
        ),
        (["sampling.compile=true", "credit.kind=attention"], ["credit.kind is attention with sampling.compile=true"]),
    ],
)
def test_what_recomputed_does_not_go_with_is_refused_by_name(overrides, words):
    with pytest.raises(ConfigError) as caught:
        files.load(SHAPES, [RECOMPUTED, *overrides])
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    "overrides",
    [
        [RECOMPUTED, "rollout.max_staleness=1", "objective.correction=2"],
        ["objective={kind: divergence_mask, correction: 2, old_predictions: recomputed}"],
        [RECOMPUTED, "sampling.compile=true", "optimizer.compile=true", "workers.learner.samples=true"],
    ],
)
def test_what_recomputed_makes_possible_loads(overrides):
    assert files.load(SHAPES, overrides).objective.old_predictions == "recomputed"


def test_a_process_without_a_correction_is_not_told_to_set_one():
    renoised = ["sampling.process={kind: renoised}", "credit.kind=native", "evaluation.sampling={deterministic: true}"]
    files.load(FLUX, [RECOMPUTED, *renoised])
    with pytest.raises(ConfigError, match=r"had sampled them; set rollout\.max_staleness=0"):
        files.load(FLUX, [RECOMPUTED, *renoised, "rollout.max_staleness=1"])


@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_maps_can_be_read_beside_torch_s_own_attention(backend):
    files.load(FLUX, [f"model.attention={backend}", "credit.kind=attention"])
    with pytest.raises(ConfigError, match=r"credit\.kind is attention with model\.attention=flash"):
        files.load(FLUX, ["model.attention=flash", "credit.kind=attention"])


def test_the_sampler_s_own_choice_may_be_a_whole_group():
    sampling = files.load(SHAPES, ["sampling.batch=auto", RECOMPUTED]).sampling
    assert sampling.together(7) == 7
    assert files.load(SHAPES, ["sampling.batch=3"]).sampling.together(7) == 3
    assert files.load(SHAPES, ["sampling.batch=3"]).sampling.together(2) == 2
