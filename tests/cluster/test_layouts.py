"""Layouts on Ray: whoever samples, samplers or the learner's ranks, the bits are those of the split layout."""

import json
import re

import pytest
from pyarrow import parquet

from tests.support import faults, part, small
from tests.support.on_ray import await_samplers, on_ray, ranks
from tests.support.running import go, parameters, same

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("cluster")]

CHAOS = pytest.mark.chaos
MORE = (CHAOS, part.MORE)

CHEAP = {
    "steps": 4,
    "sampling__steps": 2,
    "rollout__prompts": 3,
    "evaluation__count": 2,
    "evaluation__every": 2,
    "optimizer__learning_rate": 1e-3,
    "optimizer__average": 0.5,
    "checkpoints__every": 2,
}


def events(folder, kind):
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def layout(path, samplers, count, strategy, **changes):
    role = ranks(count, strategy, 300, samples=True)
    return small.run(path, **{**CHEAP, **changes}, workers__samplers__workers=samplers, workers__learner=role)


def equal(one, other, steps=4):
    """Whether two runs ended with the same weights, scores and evaluations."""
    scores, theirs = (parquet.read_table(run / "scores.parquet").drop(["worker"]) for run in (one, other))
    evaluated = [parquet.read_table(run / "evaluations.parquet") for run in (one, other)]
    return same(parameters(one, steps), parameters(other, steps)) and scores == theirs and evaluated[0] == evaluated[1]


@pytest.mark.parametrize(
    ("samplers", "count", "strategy", "changes"),
    [
        (0, 1, "ddp", {}),
        (0, 2, "fsdp2", {}),
        pytest.param(0, 2, "ddp", {"rollout__max_staleness": 1}, marks=MORE),
        pytest.param(1, 2, "ddp", {"model__train": "{kind: full}", "workers__sync": "broadcast"}, marks=CHAOS),
        pytest.param(1, 2, "fsdp2", {"rollout__max_staleness": 2}, marks=CHAOS),
        pytest.param(2, 1, "ddp", {"rollout__max_staleness": 1}, marks=MORE),
        pytest.param(0, 4, "ddp", {}, marks=MORE),
        pytest.param(0, 4, "fsdp2", {"model__dtype": "bfloat16", "model__train": "{kind: full}"}, marks=MORE),
    ],
)
def test_ranks_that_sample_give_the_bits_of_the_split_layout(small_sd, tmp_path, samplers, count, strategy, changes):
    seen = set()

    def watch(stages):
        collect = stages.samplers.collect

        def collecting():
            found = collect()
            seen.update((rollout.worker.partition("-")[0], rollout.lent) for rollout in found)
            return found

        stages.samplers.collect = collecting

    recorder = on_ray(layout(small_sd, samplers, count, strategy, **changes), tmp_path / "lent", disturb=watch)
    split = small.run(small_sd, **CHEAP, **changes, workers__learner=ranks(count, strategy, 300))
    go(split, tmp_path / "split") if count == 1 else on_ray(split, tmp_path / "split")
    assert equal(tmp_path / "lent", tmp_path / "split")
    assert ("learner", True) in seen and (samplers > 0 or seen == {("learner", True)})
    rows = [row for row in recorder.metrics() if row["kind"] == "train"]
    assert sum(row.get("lent_seconds", 0.0) for row in rows) > 0 and rows[0]["first_log_ratio"] == 0
    assert all(row["workers"]["samplers"] == 0 for row in rows) or samplers


@pytest.mark.parametrize(
    ("samplers", "method", "count"),
    [
        (0, "sample", 1),
        pytest.param(0, "prove", 2, marks=MORE),
        pytest.param(0, "update", 2, marks=CHAOS),
        pytest.param(0, "sample", 2, marks=CHAOS),
        pytest.param(1, "sample", 2, marks=MORE),
        pytest.param(1, "update", 2, marks=MORE),
        pytest.param(1, "prove", 1, marks=MORE),
    ],
)
def test_a_killed_rank_costs_a_learner_and_no_bit(small_sd, tmp_path, faulty_workers, samplers, method, count):
    name, shared = f"layout-{samplers}-{method}-{count}", samplers > 0 and method == "sample"
    # a sampler may leave one rank nothing, and both nothing of the batch that is ahead
    steps, index = (6, None) if shared else (4, count - 1)
    changes = {"steps": steps, "rollout__max_staleness": 1}
    run = layout(small_sd, samplers, count, "ddp", name=name, **changes)

    def disturb(stages):
        await_samplers(stages, samplers)
        begin = stages.learner.begin

        def beginning(step, batch):
            if step == 3 and not events(tmp_path / "run", "fault"):
                faults.plan(name, "learner", method, "kill", index=index)
            begin(step, batch)

        stages.learner.begin = beginning

    on_ray(run, tmp_path / "run", disturb=disturb)
    told = " ".join(event["message"] for event in events(tmp_path / "run", "fault"))
    assert faults.left(name) == [] and re.search(f"a new learner goes on after step {'[24]' if shared else 2}", told)
    whole = small.run(small_sd, **{**CHEAP, **changes}, workers__learner=ranks(count, "ddp", 300))
    go(whole, tmp_path / "whole") if count == 1 else on_ray(whole, tmp_path / "whole")
    assert equal(tmp_path / "run", tmp_path / "whole", steps)


@pytest.mark.chaos
@pytest.mark.parametrize("samplers", [0, 1])
def test_groups_lost_before_an_update_are_sampled_again_by_the_ranks(small_sd, tmp_path, monkeypatch, samplers):
    """Nobody else may be there, and the ranks were withdrawn for the update."""
    from pcpo_ray.cluster.learner_actor import LearnerActor

    lost = tmp_path / "lost"

    class Losing(LearnerActor):
        def hold(self, references, size):
            found = super().hold(references, size)
            if self.run.name == "losing" and not lost.exists():
                lost.touch()
                return list(references)[:1]
            return found

    monkeypatch.setattr("pcpo_ray.cluster.ranks.LearnerActor", Losing)
    run = layout(small_sd, samplers, 1, "ddp", name="losing")
    on_ray(run, tmp_path / "run")
    assert "are gone; they are sampled again" in " ".join(e["message"] for e in events(tmp_path / "run", "fault"))
    go(small.run(small_sd, **CHEAP), tmp_path / "whole")
    assert equal(tmp_path / "run", tmp_path / "whole")
