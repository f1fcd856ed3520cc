"""Which layout a run is fastest in, from its pace, and what fits."""

import json

import pytest

from pcpo_ray.commands.plan import layouts, pace, roles
from pcpo_ray.commands.plan.pace import Pace
from pcpo_ray.config import files
from tests.support import small

EVEN = Pace(seconds={"samplers": 1.0, "scorers": 0.01, "learner": 1.0}, source="")


def found(run, count, speeds=EVEN, gpu=None):
    return {one.name: one for one in layouts.layouts(run, speeds, count, gpu)}


def test_equal_processes_that_do_everything_in_turn_leave_nobody_idle(small_sd):
    run = small.run(small_sd, rollout__prompts=8)
    two = found(run, 2)
    assert list(two) == ["colocated", "hybrid", "split"]  # the fastest first
    assert [one.seconds for one in two.values()] == [4 + 4, 4 + 8, 8 + 8]
    assert [(one.samplers, one.ranks) for one in two.values()] == [(0, 2), (1, 1), (1, 1)]
    assert two["colocated"].overrides == (
        "workers.samplers.workers=0", "workers.learner.ranks=2", "workers.learner.samples=true",
    )  # fmt: skip
    assert list(found(run, 1)) == ["colocated"]
    assert found(run, None).keys() == two.keys()  # the config's own: one sampler and one rank


def test_slow_rewards_hidden_by_staleness_make_the_split_as_good(small_sd):
    slow = Pace(seconds={"samplers": 1.0, "scorers": 4.0, "learner": 1.0}, source="")
    run = small.run(small_sd, rollout__prompts=8, rollout__max_staleness=1)
    assert {one.seconds for one in found(run, 2, slow).values()} == {32.0}
    assert next(iter(found(run, 2, slow))) == "split"


def test_no_layout_has_more_ranks_than_find_something_to_learn(small_sd):
    run = small.run(small_sd, rollout__prompts=1, sampling__steps=2, sampling__trained_steps=2)
    assert found(run, 4).keys() == {"split", "hybrid"}
    assert all(one.ranks <= 2 and one.processes == 4 for one in found(run, 4).values())


def test_ranks_that_sample_need_a_samplers_memory_besides(small_sd):
    gpus = "{gpus: 1}"
    run = small.run(small_sd, workers__samplers=gpus, workers__learner=gpus)
    assert all(one.fits for one in found(run, 2, gpu="4090").values())
    assert {one.fits for one in found(small.run(small_sd), 2, gpu="4090").values()} == {None}
    learner, lends = (
        roles.learner(small.run(small_sd, workers__learner=f"{{gpus: 1, samples: {samples}}}", **changes))
        for samples, changes in (("false", {}), ("true", {"optimizer__average": 0.9}))
    )
    sampler = roles.sampler(run)
    assert {f"sampling: {name}" for name in sampler.phases} == lends.phases.keys() - learner.phases.keys() - {
        "sending the running mean"
    }
    assert lends.beside.keys() >= {f"sampling: {name}" for name in sampler.beside} and lends.total >= sampler.total
    parts = small.run(small_sd, workers__learner="{ranks: 2, strategy: fsdp2, samples: true}")
    whole = small.run(small_sd, workers__learner="{ranks: 2, samples: true}")
    name = "sampling: encoding a text"
    assert roles.learner(parts).phases[name] > roles.learner(whole).phases[name]  # the parts that are gathered


def test_a_layout_of_one_rank_offloads_nothing(small_sd):
    role = "{ranks: 2, strategy: fsdp2, offload: true}"
    one = found(small.run(small_sd, rollout__prompts=8, workers__learner=role), 2)
    assert "workers.learner.offload=false" in one["split"].overrides
    assert not any("offload" in override for override in one["colocated"].overrides)


def test_a_forecast_counts_ranks_that_sample(small_sd):
    run = small.run(
        small_sd, rollout__prompts=8, workers__samplers__workers=0, workers__learner="{ranks: 2, samples: true}"
    )
    one = pace.forecast(run, EVEN)
    assert one.seconds == 8.0 and one.sizes == {"samplers": 0, "scorers": 1} == one.fitting
    assert one.idle == {"samplers": 0.0, "scorers": pytest.approx(0.99), "learner": 0.0}


def test_plan_shows_the_layouts_and_says_what_chooses_the_fastest(small_sd, command, tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "probe", lambda run, say: EVEN)
    path = tmp_path / "small.yaml"
    path.write_text(files.dump(small.run(small_sd, rollout__prompts=8)))
    status, said, _ = command("plan", path, "--probe", "--processes", 2)
    assert status == 0 and "layouts of 2 processes that sample and learn" in said
    chosen = "workers.samplers.workers=0 workers.learner.ranks=2 workers.learner.samples=true"
    assert f"the fastest is colocated: {chosen}" in said.replace("\n", " ")
    status, said, _ = command("plan", path, *chosen.split(), "--probe", "--json")
    data = json.loads(said)
    assert status == 0 and [one["name"] for one in data["layouts"]] == ["colocated", "hybrid", "split"]
    assert [role["role"] for role in data["roles"]] == ["scorer", "learner"] and data["uneven_shares"] == []
    status, _, errors = command("plan", path, "--processes", 2)
    assert status != 0 and "--processes 2 needs speeds: give --probe, or --from" in errors
