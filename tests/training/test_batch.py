"""From scored groups to a batch."""

import json

import numpy as np
import pytest

from pcpo_ray.commands import session
from pcpo_ray.data.types import Handle, Prompt, Rollout, Scored, Task
from pcpo_ray.errors import RewardError
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training.batch import make_histories, rounding_warning, training_batch
from pcpo_ray.training.loop import Loop
from pcpo_ray.training.recorder import Recorder
from tests.support import small


def scored(totals, step=1):
    """Groups of the scores given: a list is those of jpeg_compressibility."""
    groups = []
    for position, values in enumerate(totals):
        values = values if isinstance(values, dict) else {"jpeg_compressibility": values}
        images = len(next(iter(values.values())))
        prompt = Prompt(index=position, text=f"p{position}")
        task = Task(step=step, position=position, prompt=prompt, images=images, version=0, purpose="train")
        rollout = Rollout(
            task=task,
            trajectory=None,
            images=Handle(reference=None),
            bytes=0,
            checksum="",
            seconds=0.0,
            worker="w",
        )
        groups.append(Scored(rollout=rollout, scores=values, failures={}, seconds=0.0))
    return groups


def test_a_group_of_equal_scores_has_advantage_zero_and_is_counted(small_sd):
    batch = training_batch(small.run(small_sd), scored([[1.0, 1.0], [0.0, 2.0]]), {}, 1)
    assert batch.groups[0].advantages == [0.0, 0.0]
    assert batch.groups[1].advantages == pytest.approx([-(2**-0.5), 2**-0.5])
    assert batch.metrics["degenerate_groups"] == 1


def test_a_batch_without_one_whole_group_stops_the_run(small_sd):
    with pytest.raises(RewardError, match=r"scores are missing in all of 1 group, so there is nothing to learn.*; fix"):
        training_batch(small.run(small_sd), scored([[1.0, float("nan")]]), {}, 1)


TWO = {"jpeg_compressibility": [-30.0, -10.0], "shapes_oracle": [0.5, 0.25]}
REWARDS = "[{kind: jpeg_compressibility, weight: 2}, {kind: shapes_oracle, weight: 1}]"


def test_scores_are_summed_before_they_are_normalised_or_after(small_sd):
    half = 2**-0.5
    summed = training_batch(small.run(small_sd, rewards=REWARDS), scored([TWO]), {}, 1)
    assert summed.groups[0].advantages == pytest.approx([-half, half])
    each = training_batch(small.run(small_sd, rewards=REWARDS, combine="advantages"), scored([TWO]), {}, 1)
    assert each.groups[0].advantages == pytest.approx([-2 * half + half, 2 * half - half])
    assert summed.metrics["reward_mean"] == each.metrics["reward_mean"] == pytest.approx(-39.625)


def test_each_reward_has_a_history_of_its_own(small_sd):
    run = small.run(small_sd, rewards=REWARDS, combine="advantages", advantage="{kind: prompt_history, minimum: 2}")
    histories = make_histories(run)
    made = training_batch(run, scored([TWO]), histories, 1)
    assert {name: history.state() for name, history in histories.items()} == {n: {"p0": v} for n, v in TWO.items()}
    assert made.groups[0].advantages == pytest.approx([-1.0, 1.0], abs=1e-4)


def test_a_sum_of_advantages_is_clipped_as_one(small_sd):
    run = small.run(small_sd, rewards=REWARDS, combine="advantages", advantage="{kind: group, clip: 0.5}")
    assert training_batch(run, scored([TWO]), {}, 1).groups[0].advantages == [-0.5, 0.5]


def counted(run, totals):
    return training_batch(run, scored(totals), {}, 1).metrics["rounding_groups"]


def test_groups_whose_scores_differ_by_rounding_only_are_counted_and_told(small_sd):
    groups = [[-30.1, -30.1 * (1 + 2**-23)], [-30.1, -30.1], [-30.1, -30.2]]
    run = small.run(small_sd)
    batch = training_batch(run, scored(groups), {}, 1)
    assert batch.metrics["rounding_groups"] == batch.metrics["degenerate_groups"] == 1
    assert abs(batch.groups[0].advantages[0]) == pytest.approx(2**-0.5, rel=0.01)
    told = rounding_warning(run, batch)
    assert told.startswith("the scores of 1 of 3 groups differ by rounding only, and their advantages are as large as")
    whole = small.run(small_sd, advantage="{kind: batch}")
    assert "as large as" not in rounding_warning(whole, batch)
    assert rounding_warning(run, training_batch(run, scored(groups[1:]), {}, 1)) == ""


def test_rewards_round_together_in_their_sum_and_apart_by_themselves(small_sd):
    near = 0.3 + 2**-26
    both = {"jpeg_compressibility": [-30.1, -30.2], "shapes_oracle": [0.3, near]}
    against = {"jpeg_compressibility": [-0.1, -0.3], "shapes_oracle": [0.2, 0.6 + 1e-9]}  # their sum is the same
    assert counted(small.run(small_sd, rewards=REWARDS), [both]) == 0
    assert counted(small.run(small_sd, rewards=REWARDS, combine="advantages"), [both]) == 1
    assert counted(small.run(small_sd, rewards=REWARDS), [against]) == 1


class Dull:
    """A reward that is the same for all images but for the last bit."""

    def score(self, images, prompts):
        return 0.3 + 2**-26 * np.arange(len(images))


def test_a_run_says_once_that_scores_differ_by_rounding_only(small_sd, tmp_path):
    run = small.run(small_sd, rewards="[{kind: 'tests.training.test_batch:Dull'}]", rollout__images=2)
    recorder = Recorder.create(LocalFolder(local=tmp_path / "run"), run)
    prompts, held_out = session.sources(run)
    said = []
    stages = session.stages(run, local=True, say=print)
    Loop(run, stages, recorder, prompts=prompts, held_out=held_out, say=said.append).train()
    steps = [row for row in recorder.metrics() if row["kind"] == "train"]
    assert [row["rounding_groups"] for row in steps] == [run.rollout.prompts] * 2
    assert sum("differ by rounding only" in line for line in said) == 1
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "rounding"] == [1]
