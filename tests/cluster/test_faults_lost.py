"""Objects that are lost on Ray: trajectories and images are made again to the bit, however often that happens."""

from dataclasses import replace
from filecmp import cmpfiles

import pytest
import ray
from pyarrow import parquet

from pcpo_ray.errors import LearnerLostError
from tests.support import faults, part, small
from tests.support.disturbed import CHEAP, a_lost_handle, before, messages
from tests.support.on_ray import await_samplers, on_ray, ranks, undisturbed
from tests.support.running import go, parameters, same

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("cluster")]

RANKS = pytest.mark.parametrize(
    ("count", "strategy"),
    [
        (1, "ddp"),
        pytest.param(2, "fsdp2", marks=pytest.mark.chaos),
        pytest.param(2, "ddp", marks=(pytest.mark.chaos, part.MORE)),
    ],
)


class Losses:
    """Takes the images of first groups on their way, so many times for each (purpose, step): one again and again."""

    def __init__(self, **times):
        self.left = {(name[:-1], int(name[-1])): count for name, count in times.items()}

    def rollout(self, rollout):
        task = rollout.task
        key = task.purpose, task.step if task.purpose == "train" else task.version
        if task.position or not self.left.get(key):
            return rollout
        self.left[key] -= 1
        return replace(rollout, images=a_lost_handle())


@RANKS
def test_trajectories_lost_once_or_twice_are_sampled_again_to_the_bit(small_sd, tmp_path, count, strategy):
    run = small.run(small_sd, **CHEAP, rollout__max_staleness=1, workers__learner=ranks(count, strategy))
    begun: list[int] = []
    images = Losses()

    def lose(batch, attempt):
        if attempt <= 2:
            group = batch[attempt - 1]
            batch[attempt - 1] = replace(group, rollout=replace(group.rollout, trajectory=a_lost_handle()))
            images.left["train", 2] = int(attempt == 1)  # of what is sampled again, on their way to a scorer

    def disturb(stages):
        nonlocal begun
        begun, sampled = before(stages, lose, 2), stages.samplers.collect
        stages.samplers.collect = lambda: [images.rollout(rollout) for rollout in sampled()]

    on_ray(run, tmp_path / "run", disturb=disturb)
    assert begun == [1, 2, 2, 2, 3, 4]
    found = messages(tmp_path / "run")
    assert found.count("the trajectories of 1 groups are gone; they are sampled again") == 2
    assert found.count("images of step 2 are gone; they are sampled again") == 1
    undisturbed(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 4), parameters(tmp_path / "run", 4))


@RANKS
def test_images_lost_before_or_after_their_score_are_made_again_to_the_bit(small_sd, tmp_path, count, strategy):
    changes = {"evaluation__count": 2, "evaluation__every": 2, "optimizer__average": 0.9, "rollout__max_staleness": 1}
    run = small.run(small_sd, **{**CHEAP, **changes}, workers__learner=ranks(count, strategy))
    to_scorers = Losses(evaluate0=1, train2=2, train3=1, evaluate4=2)
    to_loop = Losses(evaluate0=2, evaluate2=1, evaluate4=2)

    def disturb(stages):
        sampled, scored = stages.samplers.collect, stages.scorers.collect
        stages.samplers.collect = lambda: [to_scorers.rollout(rollout) for rollout in sampled()]
        stages.scorers.collect = lambda: [replace(one, rollout=to_loop.rollout(one.rollout)) for one in scored()]

    recorder = on_ray(run, tmp_path / "run", disturb=disturb)
    assert not any(to_scorers.left.values()) and not any(to_loop.left.values()), (to_scorers.left, to_loop.left)
    found = messages(tmp_path / "run")
    assert [found.count(f"images of step {step} are gone; they are sampled again") for step in (0, 2, 3)] == [3, 2, 1]
    assert found.count("the evaluation is made again") == 4
    assert "the evaluation of step 2 keeps no images" in (tmp_path / "run" / "events.jsonl").read_text()
    whole = undisturbed(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 4), parameters(tmp_path / "run", 4))
    assert scores(recorder) == scores(whole)
    for step in (0, 4):
        kept, mine = (tmp_path / name / "images" / f"step-{step:06d}" for name in ("whole", "run"))
        names = sorted(path.name for path in kept.iterdir())
        assert len(names) == 4 and cmpfiles(kept, mine, names, shallow=False) == (names, [], [])


@pytest.mark.parametrize("sync", ["pull", pytest.param("broadcast", marks=pytest.mark.chaos)])
def test_published_weights_that_are_lost_are_published_again(small_sd, tmp_path, sync):
    run = small.run(small_sd, **CHEAP, workers__sync=sync, workers__samplers__workers=2)
    published = []

    def disturb(stages):
        await_samplers(stages, 2)
        publish = stages.publish

        def publishing(**more):
            found = publish(**more)
            if found.version == 2:
                published.append(found)
                stored = stages.versions[2, False]
                lost = [a_lost_handle().reference for _ in stored.references]
                stages.versions[2, False] = replace(stored, references=lost)
                for actor in stages.samplers.members().values():  # those that come have no version at all
                    ray.kill(actor)
            return found

        stages.publish = publishing

    recorder = on_ray(run, tmp_path / "run", disturb=disturb)
    found = messages(tmp_path / "run")
    assert len(published) == 1 and found.count("weights of version 2 are gone; they are published again") == 1, found
    assert "a new learner" not in found and "lost a task (WeightsGoneError" not in found
    go(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 4), parameters(tmp_path / "run", 4))
    assert [row["step"] for row in recorder.metrics() if row["kind"] == "train"] == [1, 2, 3, 4]


def test_the_newest_snapshot_is_had_again_while_the_learner_is_at_work(small_sd, tmp_path, faulty_workers):
    run = small.run(small_sd, **CHEAP, name="at-work")
    again = []

    def disturb(stages):
        begin = stages.learner.begin

        def beginning(step, batch):
            faults.plan(run.name, "learner", "update", "slow")
            begin(step, batch)
            stored = stages.learner.snapshot_again(step - 1, False)
            before = stages.versions[step - 1, False]
            again.append((stored.manifest, before.manifest, *map(ray.get, (stored.references, before.references))))
            with pytest.raises(LearnerLostError, match="the learner has others by now"):
                stages.learner.snapshot_again(step - 2, False)

        stages.learner.begin = beginning

    on_ray(run, tmp_path / "run", disturb=disturb)
    assert len(again) == 4
    for mine, theirs, (_, *buckets), (_, *held) in again:
        assert mine == theirs and all((one == other).all() for one, other in zip(buckets, held, strict=True))


def scores(recorder):
    """Every score of a run, by step, prompt and sample, and those of its evaluations."""
    names = ("scores.parquet", "evaluations.parquet")
    rows = [row for name in names for row in parquet.read_table(recorder.folder / name).to_pylist()]
    return sorted((tuple(sorted(row.items())) for row in rows), key=repr)
