"""Losses that end no run: the learner of a resumed run while it reads a checkpoint, and weights that were published."""

import shutil
import time

import pytest
import torch

from pcpo_ray.data.requests import Request
from pcpo_ray.errors import CheckpointError, ClusterError, LearnerLostError, StopAskedError
from pcpo_ray.runs import checkpoints, lines
from pcpo_ray.training.local import LocalStages
from pcpo_ray.workers.learner.learner import Learner
from tests.support import small
from tests.support.disturbed import CHEAP, messages
from tests.support.running import go, parameters, same


def a_run(model, **changes):
    return small.run(model, **{**CHEAP, **changes})


class Recovering(LocalStages):
    """Stages in this process whose learner can be made anew."""

    def __init__(self, run):
        super().__init__(run)
        self.run, self.learner.recover = run, self.recover

    def recover(self, serve):
        self.versions.clear()
        self.learner.begun = self.learner.done = None
        self.learner.learner = Learner(self.run, torch.device("cpu"))
        self.samplers.sampler = self.learner.learner.lend()


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_learner_lost_while_a_run_is_resumed_is_made_anew(small_sd, tmp_path, staleness):
    settings = {"checkpoints__every": 1, "rollout__max_staleness": staleness}
    go(a_run(small_sd, steps=2, **settings), tmp_path / "run")
    run = a_run(small_sd, steps=4, **settings)
    stages = Recovering(run)
    restore, lost = stages.learner.restore, [LearnerLostError("killed while it read")]

    def restoring(folder, step):
        if lost:
            raise lost.pop()
        return restore(folder, step)

    stages.learner.restore = restoring
    go(run, tmp_path / "run", stages=stages, found=2)
    assert messages(tmp_path / "run") == "killed while it read; a new learner goes on after step 2"
    go(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 4), parameters(tmp_path / "run", 4))


def test_a_resumed_run_gives_up_where_its_checkpoint_costs_each_learner(small_sd, tmp_path):
    go(a_run(small_sd, steps=2), tmp_path / "run")
    run = a_run(small_sd)
    stages = Recovering(run)

    def restoring(folder, step):
        raise LearnerLostError("killed while it read")

    stages.learner.restore = restoring
    with pytest.raises(LearnerLostError, match=r"while it read; the learner was lost 3 times at step 3 .*of step 2"):
        go(run, tmp_path / "run", stages=stages, found=2)


def test_what_an_operator_asked_for_outlives_a_learner(small_sd, tmp_path):
    run = a_run(small_sd, steps=6, rollout__max_staleness=2)
    stages, said, lost = Recovering(run), [], [LearnerLostError("killed in the update")]
    begin = stages.learner.begin

    def exchange(status):
        said.append(status.max_staleness)
        return [Request(max_staleness=0)] if status.step == 3 else []

    def beginning(step, batch):
        if step == 4 and lost:
            assert said[-1] == 0
            raise lost.pop()
        begin(step, batch)

    stages.exchange, stages.learner.begin = exchange, beginning
    go(run, tmp_path / "run", stages=stages)
    assert messages(tmp_path / "run") == "killed in the update; a new learner goes on after step 2"
    assert 2 not in said[said.index(0) :]


def test_a_run_asked_to_stop_waits_for_no_new_learner(small_sd, tmp_path):
    run = a_run(small_sd, steps=6, checkpoints__every=2)
    stages, waited = Recovering(run), []
    begin = stages.learner.begin

    def beginning(step, batch):
        if step == 4:
            raise LearnerLostError("killed in the update")
        begin(step, batch)

    def recover(serve):
        for number in range(10):
            waited.append(number)
            time.sleep(0.01)
            serve()

    def exchange(status):
        return [Request(stop=True)] if len(waited) == 3 else []

    stages.exchange, stages.learner.begin, stages.learner.recover = exchange, beginning, recover
    with pytest.raises(StopAskedError):
        go(run, tmp_path / "run", stages=stages)
    assert len(waited) == 3
    assert checkpoints.newest(tmp_path / "run", pytest.fail) == checkpoints.folder_for(tmp_path / "run", 2)
    go(run, tmp_path / "run", found=True)


class Forgetting(Recovering):
    """Published weights are gone when a task first asks for them; `gone` says of which tasks."""

    def __init__(self, run, gone):
        super().__init__(run)
        self.gone, self.asked, self.again = gone, [], []
        submit = self.samplers.submit

        def submitting(task):
            if task not in self.asked and gone(task):
                self.asked.append(task)
            else:
                submit(task)

        def lost():
            found = [task for task in self.asked if task not in self.again]
            self.again += found
            return found

        self.samplers.submit, self.samplers.lost = submitting, lost

    def publish_lost(self, version, averaged):
        if version != self.learner.learner.version:
            raise LearnerLostError(f"weights of version {version} are gone, and the learner has others by now")
        return self.publish(oldest=0, averaged=averaged)


@pytest.mark.parametrize("averaged", [False, True])
def test_newest_weights_that_are_gone_are_published_again(small_sd, tmp_path, averaged):
    settings = {"optimizer__average": 0.9, "evaluation__every": 2, "rollout__max_staleness": 2 * averaged}
    run = a_run(small_sd, **settings)
    wanted = (2, True) if averaged else (2, False)
    stages = Forgetting(run, lambda task: task.weights == wanted)
    go(run, tmp_path / "run", stages=stages)
    assert stages.asked and messages(tmp_path / "run").count("weights of version 2 are gone") == 1
    assert "a new learner" not in messages(tmp_path / "run")
    go(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 4), parameters(tmp_path / "run", 4))


def test_older_weights_that_are_gone_bring_the_run_back_to_its_checkpoint(small_sd, tmp_path):
    run = a_run(small_sd, rollout__max_staleness=2)
    stages = Forgetting(run, lambda task: False)
    lose, learned = stages.samplers.lost, []

    def after_the_update():
        """The tasks of older versions that were handed out before it are gone with their weights."""
        if stages.learner.learner.version == 3 and not learned and (tasks := list(stages.samplers.tasks)):
            learned.extend(tasks)
            stages.samplers.tasks.clear()
            return tasks
        return lose()

    stages.samplers.lost = after_the_update
    go(run, tmp_path / "run", stages=stages)
    assert learned and learned[0].version < 3
    assert "the learner has others by now; a new learner goes on after step 2" in messages(tmp_path / "run")
    go(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 4), parameters(tmp_path / "run", 4))


def test_weights_that_are_gone_each_time_end_the_run(small_sd, tmp_path):
    run = a_run(small_sd)
    stages = Forgetting(run, lambda task: False)
    asked: list = []
    stages.samplers.submit, stages.samplers.lost = asked.append, lambda: [asked.pop()] if asked else []
    with pytest.raises(ClusterError, match="weights of version 0 were lost 6 times before a group was sampled"):
        go(run, tmp_path / "run", stages=stages)


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_staleness_asked_for_while_a_learner_is_replaced_is_kept(small_sd, tmp_path, staleness):
    run = a_run(small_sd, steps=6, rollout__max_staleness=2)
    stages, said, lost = Recovering(run), [], [LearnerLostError("killed")]
    begin, recover = stages.learner.begin, stages.learner.recover
    asked = []

    def beginning(step, batch):
        if step == 4 and lost:
            raise lost.pop()
        begin(step, batch)

    def recovering(serve):
        asked.append(Request(max_staleness=staleness))
        serve()
        recover(serve)

    def exchange(status):
        said.append((status.step, status.max_staleness))
        return [asked.pop()] if asked else []

    stages.exchange, stages.learner.begin, stages.learner.recover = exchange, beginning, recovering
    go(run, tmp_path / "run", stages=stages)
    assert said[-1] == (6, staleness)


@pytest.mark.parametrize("lose", [False, True])
def test_a_resume_keeps_an_operators_staleness_past_a_lost_learner(small_sd, tmp_path, lose):
    settings = {"rollout__max_staleness": 2, "checkpoints__every": 2}
    stages, once = Recovering(a_run(small_sd, steps=2, **settings)), [Request(max_staleness=0)]
    stages.exchange = lambda status: [once.pop()] if once else []
    go(a_run(small_sd, steps=2, **settings), tmp_path / "run", stages=stages)
    run, said = a_run(small_sd, steps=4, **settings), []
    stages = Recovering(run)
    restore, lost = stages.learner.restore, [LearnerLostError("killed while it read")] * lose

    def restoring(folder, step):
        if lost:
            raise lost.pop()
        return restore(folder, step)

    def exchange(status):
        said.append((status.step, status.max_staleness))
        return []

    stages.exchange = exchange
    stages.learner.restore = restoring
    go(run, tmp_path / "run", stages=stages, found=2)
    assert {staleness for step, staleness in said if step >= 2} == {0}


def test_a_lost_learner_without_its_checkpoints_ends_the_run(small_sd, tmp_path):
    run = a_run(small_sd, steps=4, checkpoints__every=1)
    stages, lost = Recovering(run), [LearnerLostError("killed")]
    begin = stages.learner.begin

    def beginning(step, batch):
        if step == 3 and lost:
            shutil.rmtree(tmp_path / "run" / "checkpoints")
            raise lost.pop()
        begin(step, batch)

    stages.learner.begin = beginning
    with pytest.raises(CheckpointError, match="has made checkpoints, the last after step 2, and none can be read"):
        go(run, tmp_path / "run", stages=stages)
    rows = lines.metrics(tmp_path / "run" / "metrics.jsonl").rows
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2]
    assert not (tmp_path / "run" / "checkpoints").exists()
