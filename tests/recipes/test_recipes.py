"""Each published recipe for two steps on Ray, on a small random model of its own architecture; each switch of theirs on
the embedded world. Minutes, so apart from `make test`: `make recipes`."""

import json

import pytest

from pcpo_ray.commands import session
from pcpo_ray.config import files
from pcpo_ray.runs import checkpoints
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training.loop import Loop
from pcpo_ray.training.recorder import Recorder
from tests.support import ROOT

pytestmark = pytest.mark.recipes

CONFIGS = ROOT / "configs"
RECIPES = sorted(path for path in CONFIGS.glob("*.yaml") if not path.name.startswith("shapes_"))
FIXTURES = {"stable_diffusion": "small_sd", "sdxl": "small_sdxl", "sd3": "small_sd3", "flux": "small_flux_dev"}
SMALLER = [
    "steps=2",
    "checkpoints.every=2",
    "evaluation.every=2",
    "evaluation.count=2",
    "evaluation.prompts={kind: shapes, split: held_out}",
    "evaluation.held_out=true",
    "prompts={kind: shapes}",
    "rollout.prompts=2",
    "rollout.images=3",
    "workers={samplers: {cpus: 0.1}, scorers: {cpus: 0.1}, learner: {cpus: 0.1}}",
]
SMALL_MODEL = ["sampling.height=16", "sampling.width=16", "rewards=[{kind: jpeg_compressibility}]"]


@pytest.fixture(scope="module")
def one_ray():
    import ray

    ray.init(address="local", num_cpus=2, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    yield
    ray.shutdown()


def two_steps(run, folder, *, local):
    session.check(run)
    recorder = Recorder.create(LocalFolder(local=folder), run)
    stages = session.stages(run, local=local, say=lambda line: None)
    try:
        prompts, held_out = session.sources(run)
        Loop(run, stages, recorder, prompts=prompts, held_out=held_out).train()
    finally:
        stages.close()
    rows = [row for row in recorder.metrics() if row["kind"] == "train"]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["gradient_norm"] > 0 for row in rows)
    assert next(event for event in events if event["kind"] == "first_update")["max_log_ratio"] == 0
    assert checkpoints.newest(folder, pytest.fail) == checkpoints.folder_for(folder, 2)
    return rows


def test_every_recipe_names_its_source():
    assert len(RECIPES) >= 14
    for path in RECIPES:
        assert "arXiv" in path.read_text().splitlines()[0], path.name


@pytest.mark.xdist_group("one Ray")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_on_ray(path, tmp_path, request, one_ray):
    asked = files.load(path)
    folder = request.getfixturevalue(FIXTURES[asked.model.kind])
    own = [f"model.path={folder}", f"model.text_cache={tmp_path / 'texts'}"]
    run = files.load(path, [*SMALLER, *SMALL_MODEL, *own])
    rows = two_steps(run, tmp_path / "run", local=False)
    assert ("kl" in rows[0]) == (asked.objective.kl > 0)


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
    "sum of advantages": ["rewards=[{kind: clip_score}, {kind: jpeg_compressibility}]", "combine=advantages"],
}


SWITCHES_OF_FLOW = {
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
    few = "evaluation.quality.neighbours=2"  # of four pictures
    run = files.load(CONFIGS / f"{config}.yaml", [*SMALLER, few, *{**SWITCHES, **SWITCHES_OF_FLOW}[switch]])
    assert len(two_steps(run, tmp_path / "run", local=True)) == 2
