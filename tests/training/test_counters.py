"""Counters: the outcomes of tasks, how long versions lie unused, which samplers lag, what waits."""

from dataclasses import replace

from pcpo_ray.data.types import Handle, Prompt, Rollout, Scored, Task
from pcpo_ray.training.counters import Counters


def rollout(worker="s-0", *, position=0, version=0, seconds=1.0, size=10):
    task = Task(
        step=version + 1,
        position=position,
        prompt=Prompt(index=0, text="a"),
        images=2,
        version=version,
        purpose="train",
    )
    images = Handle(reference=None)
    return Rollout(
        task=task, trajectory=None, images=images, bytes=size, checksum="", seconds=seconds, worker=worker
    )  # fmt: skip


def scored(values, failures=()):
    return Scored(rollout=rollout(), scores=values, failures=dict(failures), seconds=0.0)


def test_tasks_are_counted_by_what_came_of_them():
    counters = Counters()
    counters.sampled(rollout(), 1.0)
    counters.scored(scored({"clip": [1.0, 2.0]}))
    counters.scored(scored({"clip": [1.0, float("nan")]}, {"clip": "it hung up"}))
    counters.scored(scored({"a": [float("nan")], "b": [float("nan")]}, {"b": "x", "a": "y"}))
    counters.count("samplers", "lost", "images_gone")
    counters.count("samplers", "lost", "images_gone", 2)
    assert counters.tasks == {
        "samplers": {"done": {"none": 1}, "lost": {"images_gone": 3}},
        "scorers": {"done": {"none": 1}, "missing": {"clip": 1, "a,b": 1}},
    }


def test_judges_tokens_add_up_until_they_are_asked_for():
    counters = Counters()
    assert counters.tokens() is None
    used = {"judge": {"prompt": 100, "completion": 7}}
    for _ in range(2):
        counters.scored(replace(scored({"judge": [1.0]}), tokens=used))
    counters.scored(replace(scored({"other": [1.0]}), tokens={"other": {"prompt": 1, "completion": 0}}))
    expected = {"judge": {"prompt": 200, "completion": 14}, "other": {"prompt": 1, "completion": 0}}
    assert counters.step(0, [])["tokens"] == expected and counters.step(0, [])["tokens"] is None


def test_a_versions_lag_ends_where_the_first_sampler_begins_with_it():
    counters = Counters()
    counters.published((0, False), 10.0)
    counters.sampled(rollout(seconds=2.0), 15.0)
    counters.sampled(rollout(position=1, seconds=2.0), 30.0)
    counters.published((1, False), 40.0)
    counters.sampled(rollout(version=1, seconds=4.0), 44.5)
    assert counters.step(1, ["s-0"])["publish_lag"] == {"seconds": 3.5, "versions": 2}
    assert counters.step(1, ["s-0"])["publish_lag"] == {"seconds": 0.0, "versions": 0}


def test_only_a_sampler_that_stays_and_delivers_nothing_falls_behind():
    counters = Counters()
    counters.sampled(rollout("s-0"), 0.0)
    counters.sampled(rollout("s-1"), 0.0)
    assert counters.step(0, ["s-0", "s-1"])["sampler_behind"] == 0
    for version in (1, 2, 3):
        counters.sampled(rollout("s-0", version=version), 0.0)
    assert counters.step(3, ["s-0", "s-1", "s-2"])["sampler_behind"] == 3
    assert counters.step(4, ["s-0", "s-2"])["sampler_behind"] == 1
    assert counters.step(4, [])["sampler_behind"] == 0


def test_the_most_that_waited_at_once_is_remembered_for_a_step():
    counters = Counters()
    groups = [rollout(position=n, size=100) for n in range(3)]
    for group in groups:
        counters.sampled(group, 0.0)
    counters.taken([group.task for group in groups[:2]])
    assert counters.step(0, [])["buffer_bytes"] == 300
    assert counters.step(0, [])["buffer_bytes"] == 100
    counters.forget()
    counters.step(0, [])
    assert counters.step(0, [])["buffer_bytes"] == 0
