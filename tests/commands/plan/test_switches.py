"""A switch is recommended only where planning with it has shown that it is enough."""

import pytest

from pcpo_ray.commands import plan
from pcpo_ray.commands.plan import gpus, roles, switches
from pcpo_ray.config.files import dump, parse, plain
from pcpo_ray.errors import ConfigError
from tests.support import small

GPU = {f"workers__{role}": "{gpus: 1}" for role in ("samplers", "scorers", "learner")}


ROLES = {"sampler": roles.sampler, "scorer": roles.scorer, "learner": roles.learner}


def judged(run, what, room):
    """The verdict on one role or the object stores; remedies of the others would take most of the time."""
    planned = plan.Plan(run=run, roles=(ROLES[what](run),) if what in ROLES else (), store=roles.store(run))
    (verdict,) = plan.judge(planned, room)
    return verdict


@pytest.fixture
def card(monkeypatch):
    """A GPU with as many bytes as is asked for."""

    def make(size):
        monkeypatch.setitem(gpus.MEMORY, "TEST", size / gpus.GIB)
        return plan.Budget(gpu="TEST")

    return make


def test_a_config_with_overrides_is_the_config_that_they_say(small_sd):
    run = small.run(small_sd, sampling__subset="{kind: window, size: 2}")
    assert parse(plain(run)) == run
    changed = switches.changed(run, ("model.train={kind: full}", "rollout.prompts=2"))
    assert dump(changed) == dump(small.run(small_sd, sampling__subset="{kind: window, size: 2}",
                                           model__train="{kind: full}", rollout__prompts=2))  # fmt: skip
    with pytest.raises(ConfigError, match=r"rollout\.images"):
        switches.changed(run, ("rollout.images=1",))


def test_of_two_values_for_a_key_the_later_is_taken():
    assert switches.merged(["a=1", "b.c=2", "a=3"]) == ("a=3", "b.c=2")


LEARNER = [
    ({"workers__park": "false"}, "workers.park=true"),
    ({}, "model.gradient_checkpointing=true"),
    ({"model__gradient_checkpointing": "true"}, "sampling.batch=4"),
    ({"model__gradient_checkpointing": "true", "sampling__batch": 1}, "model.dtype=bfloat16"),
    (
        {"model__gradient_checkpointing": "true", "sampling__batch": 1, "model__dtype": "bfloat16",
         "model__train": "{kind: full}"},
        "model.train={kind: lora}",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "first"), LEARNER)
def test_a_slightly_too_large_learner_gets_the_gentlest_remedy(small_flux, card, changes, first):
    size = {"sampling__height": 64, "sampling__width": 64, "rollout__images": 8}
    run = small.run(small_flux, **GPU, **size, **{"workers__park": "true", **changes})
    needed = roles.learner(run).total
    verdict = judged(run, "learner", card(needed - 1))
    assert not verdict.fits and verdict.needed == needed
    assert verdict.remedies[0].overrides == (first,)
    for remedy in verdict.remedies:
        assert remedy.needed == roles.learner(switches.changed(run, remedy.overrides)).total < needed
    assert judged(run, "learner", card(needed)).fits


def test_auto_is_given_up_only_where_that_needs_less(small_flux, card):
    """On a CPU, where it tries what it may; a GPU's memory ends it, so there is nothing to win."""
    changes = {"optimizer__micro_batch": "auto", "rollout__images": 8, "model__gradient_checkpointing": "true"}
    first = next(switches.for_learner(small.run(small_flux, **changes)))
    assert first == ("optimizer.micro_batch=null",)
    run = small.run(small_flux, **GPU, **changes)
    assert not any("micro_batch" in one for overrides in switches.for_learner(run) for one in overrides)


def test_a_sampler_is_told_how_to_decode_in_less(small_flux, card):
    run = small.run(small_flux, **GPU, sampling__height=64, sampling__width=64, rollout__images=16)
    needed = roles.sampler(run).total
    verdict = judged(run, "sampler", card(needed - 1))
    assert verdict.remedies[0].overrides == ("model.vae_slicing=true",)
    sliced = switches.changed(run, ("model.vae_slicing=true",))
    assert roles.sampler(sliced).total < needed
    assert judged(sliced, "sampler", card(needed - 1)).fits


def test_a_rank_that_samples_is_told_how_to_decode_in_less(small_flux, card):
    size = {"sampling__height": 64, "sampling__width": 64, "rollout__images": 16, "sampling__batch": 1}
    run = small.run(small_flux, **GPU, **size, workers__learner__samples="true", workers__park="true")
    planned = roles.learner(run)
    assert planned.busiest == "sampling: decoding 16 images"
    verdict = judged(run, "learner", card(planned.total - 1))
    assert verdict.remedies[0].overrides == ("model.vae_slicing=true",)
    apart = switches.changed(run, ("workers.learner.samples=false",))
    assert ("model.vae_slicing=true",) not in [*switches.for_learner(apart)]


def test_parts_are_offloaded_only_after_ranks_that_hold_them(small_flux):
    run = small.run(small_flux, **GPU, rollout__prompts=2, rollout__images=8)
    found = list(switches.for_learner(run))
    ranks = ("workers.learner.ranks=2", "workers.learner.strategy=fsdp2")
    offloaded = (*ranks, "workers.learner.offload=true")
    assert found.index(ranks) < found.index(offloaded)
    assert roles.learner(switches.changed(run, offloaded)).total < roles.learner(switches.changed(run, ranks)).total
    cut = switches.changed(run, ranks)
    assert ("workers.learner.offload=true",) in [*switches.for_learner(cut)]
    assert not any("offload" in override for one in switches.for_one_process(run) for override in one)
    on_cpus = switches.for_learner(small.run(small_flux, rollout__prompts=2))
    assert not any("park" in override or "offload" in override for one in on_cpus for override in one)


def test_processes_that_share_a_gpu_are_told_to_take_one_each(small_sd, card):
    shared = {**GPU, "workers__scorers": "{gpus: 0.25}"}
    run = small.run(small_sd, **shared, rewards="[{kind: clip_score}]")
    verdict = judged(run, "scorer", card(2 * roles.scorer(run).total))
    assert verdict.room == pytest.approx(roles.scorer(run).total / 2)
    assert [remedy.overrides for remedy in verdict.remedies] == [("workers.scorers.gpus=1",)]


def test_too_small_stores_are_told_to_sample_less_ahead_then_less_at_once(small_sd):
    run = small.run(small_sd, rollout__max_staleness=1, rollout__prompts=8, evaluation__count=1)
    store = roles.store(run)
    assert store.needed == pytest.approx(store.groups / 0.6, abs=1)
    first = judged(run, "object stores", plan.Budget(store=store.needed - 1)).remedies
    assert [remedy.overrides for remedy in first] == [
        ("rollout.max_staleness=0",),
        ("sampling.subset={kind: window, size: 2}",),
        ("sampling.subset={kind: window, size: 1}",),
    ]
    for remedy in first:
        assert remedy.needed == roles.store(switches.changed(run, remedy.overrides)).needed < store.needed
    assert judged(run, "object stores", plan.Budget(store=store.needed)).fits


def test_where_no_switch_is_enough_alone_as_many_are_taken_as_it_takes(small_sd):
    batch = {"rollout__prompts": 8, "optimizer__minibatches": 4, "rollout__max_staleness": 1, "evaluation__count": 1}
    run = small.run(small_sd, **batch)
    wanted = switches.changed(run, ("rollout.max_staleness=0", "rollout.prompts=4"))
    room = plan.Budget(store=roles.store(wanted).needed)
    (remedy,) = judged(run, "object stores", room).remedies
    assert len(remedy.overrides) > 1
    assert remedy.needed == roles.store(switches.changed(run, remedy.overrides)).needed
    assert remedy.needed <= roles.store(wanted).needed


def test_where_all_switches_are_too_little_none_is_recommended(small_flux, card):
    verdict = judged(small.run(small_flux, **GPU), "learner", card(1))
    assert not verdict.fits and verdict.remedies == ()


def test_switches_that_contradict_another_setting_are_left_out(small_sd, card):
    run = small.run(small_sd, **GPU, rollout__prompts=4, optimizer__minibatches=4, rollout__max_staleness=1)
    overrides = {override for found in switches.for_store(run) for override in found}
    assert "rollout.prompts=2" not in overrides
    found = switches.remedies(run, [("rollout.images=1",)], lambda other: (0, 1.0))
    assert found == ()


def test_what_makes_each_fit_is_planned_together(small_flux, card):
    size = {"sampling__height": 64, "sampling__width": 64, "rollout__images": 16, "model__vae_slicing": "true"}
    run = small.run(small_flux, **GPU, **size)
    planned = plan.plan(run)
    room = card(roles.learner(run).total - 1)
    room = plan.Budget(gpu=room.gpu, store=planned.store.needed - 1)
    verdicts = plan.judge(planned, room)
    assert [verdict.what for verdict in verdicts if not verdict.fits] == ["learner", "object stores"]
    overrides, after = plan.together(planned, verdicts, room)
    assert overrides[0] == "workers.park=true" and len(overrides) == 2
    assert [verdict.what for verdict in after] == [verdict.what for verdict in verdicts]
    assert all(verdict.fits for verdict in after)


def test_an_unknown_gpu_is_told_before_anything_is_planned(command, monkeypatch):
    monkeypatch.setattr("pcpo_ray.commands.plan.plan", lambda run, local: pytest.fail("it was planned"))
    status, _, errors = command("plan", "shapes_pcpo", "--gpu", "409")
    assert status == 1 and errors.startswith("error: --gpu 409: unknown (did you mean '4090'?)")


def test_no_role_on_a_gpu_and_an_unknown_gpu_are_errors(small_sd):
    planned = plan.plan(small.run(small_sd))
    with pytest.raises(ConfigError, match=r"no role of this config has a GPU.*workers\.learner\.gpus=1"):
        plan.judge(planned, plan.Budget(gpu="H200"))
    with pytest.raises(ConfigError, match=r"--gpu H20: unknown \(did you mean 'H200'\?\); expected one of .*A100-80"):
        plan.judge(planned, plan.Budget(gpu="H20"))
    assert plan.judge(planned, plan.Budget()) == []
    assert gpus.memory_of("a100-80") == 80 * 2**30
