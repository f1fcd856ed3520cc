"""Rewards that compare a group's images, on Ray: the bits of one process, for prompts together and after faults too."""

import math
import os
import signal

import numpy as np
import pytest
import ray
from pyarrow import parquet

from pcpo_ray.runs.records import evaluations
from tests.support import small
from tests.support.judged import MODEL, Vllm
from tests.support.on_ray import on_ray
from tests.support.running import go, parameters, same

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("cluster")]


class Unlike:
    """The distance of an image's mean colour from its group's, and some noise of numpy's."""

    def score_group(self, images, prompt):
        assert len(images) in (2, 4)  # a whole group, in evaluations of several prompts too
        colours = images.mean(axis=(1, 2))
        return abs(colours - colours.mean(axis=0)).mean(axis=1) + len(prompt) + np.random.normal(size=len(images))

    def describe(self, images, prompts):
        noises = np.random.normal(size=len(images))
        return [f"{one.mean():.3f} {text} {noise}" for one, text, noise in zip(images, prompts, noises, strict=True)]


def described(folder, step):
    """The texts on each evaluated image, by reward."""
    table = parquet.read_table(folder / "evaluations.parquet" / f"step-{step:06d}.parquet")
    return table["described"].to_pylist()


@pytest.fixture
def server():
    made = Vllm()
    yield made
    made.shutdown()
    made.server_close()


def nothing(stages):
    """Leave all as it is: no question to a judge is put to a second scorer as well."""
    assert stages.scorers.pool.limits.hedge == math.inf


def kill_the_scorer(stages):
    """Have the scorer die with its fifth group: two evaluated tasks were scored, and two of the first batch."""
    submit, submitted = stages.scorers.submit, []

    def submitting(rollout):
        submit(rollout)
        submitted.append(rollout)
        if len(submitted) == 5:
            (actor,) = stages.scorers.actors.values()
            pid, _ = ray.get(actor.alive.remote(0.0), timeout=60)
            os.kill(pid, signal.SIGKILL)

    stages.scorers.submit = submitting


@pytest.mark.parametrize("disturb", [nothing, kill_the_scorer], ids=["calm", "scorer killed"])
def test_group_rewards_on_ray_give_the_bits_of_one_process(small_sd, tmp_path, server, disturb):
    judge = f"{{kind: judge, url: '{server.url}', model: {MODEL}, mode: pairwise, rounds: 1}}"
    run = small.run(
        small_sd,
        steps=2,
        rewards=f"[{{kind: 'tests.cluster.test_group_rewards:Unlike'}}, {judge}]",
        rollout__images=4,
        rollout__prompts=3,
        evaluation__count=3,
        evaluation__images=2,
        evaluation__rewards="[{kind: diversity}]",
        workers__silence_timeout=8,
    )
    recorder = on_ray(run, tmp_path / "ray", disturb=disturb)
    asked = len(server.asked)
    alone = go(run, tmp_path / "local")
    assert same(parameters(tmp_path / "ray", 2), parameters(tmp_path / "local", 2))
    for step in (0, 2):
        found, expected = (evaluations(tmp_path / where, step) for where in ("ray", "local"))
        assert found.keys() == expected.keys() == {"reward", "Unlike", "judge", "diversity"}
        assert all((found[name] == expected[name]).all() for name in found)
        found, expected = (described(tmp_path / where, step) for where in ("ray", "local"))
        assert found == expected and all(row.keys() == {"Unlike"} for row in found)
    assert ("scorer-0 is gone" in (recorder.folder / "events.jsonl").read_text()) == (disturb is kill_the_scorer)
    rows = [[row["tokens"]["judge"] for row in one.metrics()] for one in (recorder, alone)]
    assert rows[0] == rows[1] and sum(row["prompt"] for row in rows[1]) == 100 * (len(server.asked) - asked)
