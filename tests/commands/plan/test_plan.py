"""`pcpo-ray plan`: every shipped config, what fits and what does not, and bad input."""

import json
import os
import sys
from functools import cache

import pytest

from pcpo_ray.commands import plan
from pcpo_ray.commands.bench import published, published_flows
from pcpo_ray.commands.plan import page, roles, sizes
from pcpo_ray.commands.waiting import Waiting
from pcpo_ray.config import files
from pcpo_ray.config.files import dump
from tests.support import ROOT, small
from tests.support.as_they_are import AS_THEY_ARE
from tests.support.running import go

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
GPU = ["workers.samplers.gpus=1", "workers.scorers.gpus=1", "workers.learner.gpus=1"]
REWARDS = {"aesthetic": "clip-l", "pickscore": "clip-h"}


def elsewhere(asked, model, rewards):
    """Overrides that put the paths of a config where there is something; shipped models are there."""
    if "/" not in asked.model.path:
        return []
    found = [f"model.path={model}"]
    return found + [
        f"rewards.{n}.model={rewards[reward.kind]}" for n, reward in enumerate(asked.rewards) if reward.kind in rewards
    ]


@pytest.fixture
def path(small_flux, tmp_path):
    """A config whose model has JSON files only."""
    folder = small.without_weights(small_flux, tmp_path / "small-flux")
    found = tmp_path / "small.yaml"
    found.write_text(dump(small.run(folder, rewards="[{kind: clip_score}]")))
    return found


def what_takes_memory(path):
    """A config without what differs in a pair of baseline and PCPO."""
    found = files.plain(files.load(path))
    return dump({**found, "name": "", "credit": {}, "objective": {**found["objective"], "kind": ""}})


RECIPES = [path for path in CONFIGS if not path.name.startswith(("shapes_", "words_"))]
NOT_HERE = [path for path in RECIPES if path.stem in ("sd14_dancegrpo_hpsv21", "sana06b_pcpo_pickscore")]
ONE_OF_EACH_SIZE = {what_takes_memory(path): path for path in RECIPES}.values()
TO_FIT = [path for path in ONE_OF_EACH_SIZE if path.stem not in AS_THEY_ARE]
WRITTEN = {
    "stable_diffusion": published.stable_diffusion,
    "sd3": published.sd3,
    "flux": published.flux,
    "sana": published_flows.sana,
    "clip-l": lambda folder: published.clip(folder, large=False),
    "clip-h": lambda folder: published.clip(folder, large=True),
}


@pytest.fixture(scope="module")
def sizes_of(tmp_path_factory):
    """The folders of published models' configs, each made once: recipes of one model then share what is planned."""

    @cache
    def made(name):
        return WRITTEN[name](tmp_path_factory.mktemp("published") / name)

    return made


@pytest.fixture(scope="module")
def bare_model(model_of_kind, tmp_path_factory):
    """The folder of a kind's small model without weights, made once: configs of one model share what is planned."""

    @cache
    def made(kind):
        return small.without_weights(model_of_kind(kind), tmp_path_factory.mktemp("bare") / kind)

    return made


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_planned(config, bare_model):
    """With small models in place of those whose folders are the user's to fill."""
    asked = files.load(config)
    overrides = elsewhere(asked, bare_model(asked.model.kind), dict.fromkeys(REWARDS, "shapes-clip"))
    overrides += ["sampling.height=64", "sampling.width=64"]
    planned = plan.plan(files.load(config, overrides))
    assert [role.role for role in planned.roles] == ["sampler", "scorer", "learner"]
    assert all(role.total > 0 for role in planned.roles)
    assert planned.store.total > planned.store.groups > 0


@pytest.mark.recipes
@pytest.mark.parametrize("config", TO_FIT, ids=lambda path: path.stem)
def test_every_published_recipe_fits_80_gib(config, sizes_of):
    """At its real size, of the models' JSON files, which a machine's memory could not hold."""
    asked = files.load(config)
    rewards = {kind: sizes_of(name) for kind, name in REWARDS.items()}
    run = files.load(config, elsewhere(asked, sizes_of(asked.model.kind), rewards))
    verdicts = plan.judge(plan.plan(run), plan.Budget(gpu="H100"))
    on_gpus = ["sampler", *(["scorer"] if run.workers.scorers.gpus else []), "learner"]
    assert [verdict.what for verdict in verdicts if verdict.fits] == on_gpus


def test_a_plan_without_a_gpu_gives_figures_and_no_verdict(command, path):
    status, said, errors = command("plan", path)
    assert (status, errors) == (0, "")
    assert "fit" not in said.lower().replace("fitting", "")
    run = files.load(path)
    for words in ("sampler on CPU", "learner on CPU", "denoising network, frozen", "AdamW's two moments", "at most"):
        assert words in said
    assert page.size(sizes.trajectory_of(run)) in said
    assert page.size(roles.learner(run).total) in said


def test_a_plan_says_what_it_does_meanwhile(command, path, monkeypatch):
    phases = []
    monkeypatch.setattr(Waiting, "__call__", lambda self, text, done=0, total=0: phases.append(text))
    assert command("plan", path)[0] == 0
    assert phases[0] == "loading torch and diffusers" and "counting the memory of each role" in phases


def test_what_fits_ends_with_0(command, path):
    status, said, errors = command("plan", path, *GPU, "--gpu", "4090", "--object-store", 1)
    assert (status, errors) == (0, "")
    for what in ("sampler", "scorer", "learner", "object stores"):
        assert f"{what}: fits, " in said


def test_what_does_not_fit_ends_with_1_and_says_what_to_type(command, path):
    run = files.load(path)
    store = (roles.store(run).needed - 1) / 2**30
    status, said, errors = command("plan", path, *GPU, "--gpu", "h100", "--object-store", f"{store:.12f}")
    assert (status, errors) == (1, "")
    assert "learner: fits" in said and "object stores: DOES NOT FIT" in said
    makes = next(line for line in said.splitlines() if "makes it fit" in line)
    override = makes.strip().partition(" makes it fit")[0].strip("'")
    assert f"everything fits, with {makes.strip().partition(' makes')[0]}" in said
    again = command("plan", path, override, *GPU, "--gpu", "h100", "--object-store", f"{store:.12f}")
    assert again[0] == 0 and "object stores: fits" in again[1]


def test_a_recorded_run_and_a_probe_give_speeds_and_a_ratio(command, small_sd, tmp_path):
    run = small.run(small_sd, steps=2)
    go(run, tmp_path / "runs" / "small")
    path = tmp_path / "runs" / "small" / "config.yaml"
    for source in (("--from", "runs/small"), ("--probe",)):
        status, said, errors = command("plan", path, "rollout.max_staleness=1", *source)
        assert (status, errors) == (0, "")
        assert "one sampler" in said and "one learner's rank" in said and "samplers : learner : scorers = " in said
        assert "s a step" in said and "idle: samplers" in said
    assert "take turns (rollout.max_staleness=0)" in command("plan", path, "--from", "runs/small")[1]


def test_one_process_holds_one_network_and_works_in_turns(command, path):
    run = files.load(path, GPU)
    apart, together = plan.plan(run).roles, plan.plan(run, local=True)
    (one,) = together.roles
    assert sum(one.held.values()) == sum(sum(role.held.values()) for role in apart if role.role != "sampler")
    assert max(one.phases.values()) == max(size for role in apart for size in role.phases.values())
    status, said, errors = command("plan", path, "--gpu", "4090", "--local")  # though its roles have no GPU on Ray
    assert (status, errors) == (0, "") and "one process on GPU" in said and "one process: fits, " in said
    assert "object stores" not in said and "all on one, in one process: add --local" not in said
    assert "all on one, in one process: add --local" in command("plan", path, *GPU, "--gpu", "4090")[1]


def test_one_process_that_does_not_fit_is_told_its_switches(path):
    run = files.load(path, GPU)
    switches = list(plan.switches.for_one_process(run))
    totals = {one: roles.one_process(plan.switches.changed(run, one)).total for one in switches}
    least = min(totals.values())
    assert least < plan.plan(run, local=True).roles[0].total
    found = plan.switches.remedies(run, switches, lambda other: (roles.one_process(other).total, least))
    assert found and totals[found[0].overrides] == found[0].needed == least
    others = {override for one in switches for override in one if override.startswith("workers.")}
    assert others == {"workers.park=true"}


BAD = {
    ("--local", "--probe"): ["got --local, which plans the memory of one process; leave out --probe"],
    ("--local", "workers.learner.ranks=2", "workers.learner.strategy=fsdp2"): ["one process has one rank"],
    ("sampling.stpes=3",): ["sampling.stpes", "did you mean 'steps'?"],
    ("model.path=absent/model",): ["absent/model", "model_index.json", "diffusers' format"],
    ("rewards=[{kind: clip_score, model: absent}]",): ["'absent'", "shapes-clip"],
    ("rewards=[{kind: 'hps_v2.1', weights: a.pt, architecture: ViT-Q}]",): ["no architecture 'ViT-Q'"],
    ("sampling.subset={kind: window, size: 9}",): ["sampling.subset.size is 9"],
    ("--gpu", "4080"): ["--gpu 4080: unknown", "H200", "4090"],
    ("--gpu", "4090"): ["no role of this config has a GPU"],
    ("--from", "runs/none"): ["there is no run at runs/none"],
    ("--probe", "--from", "runs/none"): ["got --probe and --from"],
}


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_input_is_one_clear_message(command, path, arguments):
    status, _, errors = command("plan", path, *arguments)
    assert status == 1
    assert errors.startswith("error: ") and errors.count("error: ") == 1 and "Traceback" not in errors
    assert all(words in errors for words in BAD[arguments]), errors


@pytest.mark.recipes
@pytest.mark.parametrize("config", NOT_HERE, ids=lambda path: path.stem)
def test_a_recipe_whose_model_is_not_here_is_planned_and_says_so(command, config):
    status, said, errors = command("plan", config.stem)
    model = files.load(config).model.path
    assert (status, errors) == (0, "") and f"{model} is not here: planned by the published sizes of" in said
    found = json.loads(command("plan", config.stem, "--json")[1])
    assert found["notes"][0].startswith(f"{model} is not here")


def test_planning_starts_no_ray_and_reads_no_weights(command, path):
    ours = {name for name in sys.modules if name.split(".")[0] == "ray"}
    assert command("plan", path)[0] == 0
    assert {name for name in sys.modules if name.split(".")[0] == "ray"} == ours
    assert not list(path.parent.rglob("*.safetensors")) and not os.path.exists("runs")
