"""Whatever ends a run, what was learned is kept, and going on from it gives the bits of a run that nothing ended."""

import json
import math
import signal

import pytest
import torch

from pcpo_ray.data.records import StepRecord
from pcpo_ray.errors import (
    AwayError,
    CheckpointError,
    ClusterError,
    LearnerLostError,
    ModelError,
    QualityError,
    RolloutsLostError,
    RunError,
    TrainingError,
)
from pcpo_ray.runs import checkpoints
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training import restarts
from pcpo_ray.training.local import LocalStages
from pcpo_ray.training.recorder import Recorder
from pcpo_ray.workers.learner.learner import Learner
from tests.support import small
from tests.support.running import go, parameters, same

CHEAP = {
    "sampling__steps": 2,
    "rollout__prompts": 2,
    "evaluation__count": 1,
    "evaluation__every": 100,
    "optimizer__learning_rate": 1e-3,
}


def a_run(model, **changes):
    return small.run(model, **{**CHEAP, "steps": 4, "checkpoints__every": 100, **changes})


def events(folder, kind):
    found = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event for event in found if event["kind"] == kind]


def of_two_prompts(folder):
    """A history that has something to remember: each prompt comes again and again."""
    path = folder / "prompts.txt"
    path.write_text("a red circle\na blue square\n")
    return {
        "prompts": f"{{kind: file, path: {path}}}",
        "evaluation__prompts": "{kind: shapes, split: held_out}",
        "advantage": "{kind: prompt_history, buffer: 9, minimum: 1}",
    }


def steps_of(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "train"]


def learned(folder):
    return [row["step"] for row in steps_of(folder)]


class Disturbed(LocalStages):
    """Stages in this process in which something happens at the n-th wait."""

    def __init__(self, run, what, at):
        super().__init__(run)
        self.what, self.at, self.waits = what, at, 0

    def wait(self, timeout):
        self.waits += 1
        if self.waits == self.at:
            self.what()
        super().wait(timeout)


def fail(error):
    def failing():
        raise error

    return failing


@pytest.mark.parametrize(
    "error",
    [
        ClusterError("a task was lost 5 times"),
        TrainingError("sampler-0 sampled with weights of checksum 1"),
        QualityError("no features"),
        RuntimeError("nobody thought of this"),
        SystemExit("a reward called sys.exit"),
    ],
)
@pytest.mark.parametrize("staleness", [0, 2])
def test_any_error_leaves_a_checkpoint_of_all_that_was_learned(small_sd, tmp_path, undisturbed, error, staleness):
    run = a_run(small_sd, rollout__max_staleness=staleness)
    with pytest.raises(type(error)):
        go(run, tmp_path / "run", stages=Disturbed(run, fail(error), 16))
    steps = learned(tmp_path / "run")
    assert steps[-1] >= 1
    assert checkpoints.newest(tmp_path / "run", pytest.fail) == checkpoints.folder_for(tmp_path / "run", steps[-1])
    go(run, tmp_path / "run", found=True)
    assert same(parameters(undisturbed(rollout__max_staleness=staleness), 4), parameters(tmp_path / "run", 4))
    assert learned(tmp_path / "run") == [1, 2, 3, 4]


@pytest.fixture(scope="module")
def undisturbed(small_sd, tmp_path_factory):
    """The folder of a run that nothing ends, made once for each config."""
    made = {}

    def whole(**changes):
        key = tuple(sorted(changes.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("undisturbed") / "run"
            go(a_run(small_sd, **changes), made[key])
        return made[key]

    return whole


@pytest.mark.parametrize(
    ("staleness", "at"), [(0, 5), (0, 13), (1, 9), (1, 16), *((2, at) for at in (1, 4, 8, 12, 15, 18, 20, 23))]
)
def test_a_signal_at_any_moment_changes_no_bit_of_the_run_that_goes_on(small_sd, tmp_path, undisturbed, staleness, at):
    changes = {"rollout__max_staleness": staleness, "advantage": "{kind: prompt_history}"}
    run = a_run(small_sd, **changes)
    stages = Disturbed(run, lambda: signal.raise_signal(signal.SIGTERM), at)
    with pytest.raises(KeyboardInterrupt):
        go(run, tmp_path / "run", stages=stages)
    go(run, tmp_path / "run", found=True)
    whole = undisturbed(**changes)
    assert same(parameters(whole, 4), parameters(tmp_path / "run", 4))
    for name in ("step", "sample_age", "loss", "reward_mean"):
        assert [row[name] for row in steps_of(tmp_path / "run")] == [row[name] for row in steps_of(whole)], name


@pytest.mark.parametrize("staleness", [1, 2])
def test_a_run_made_longer_is_one_that_was_so_long_from_the_start(small_sd, tmp_path, staleness):
    changes = {"rollout__max_staleness": staleness, "evaluation__every": 3}
    go(a_run(small_sd, steps=3, **changes), tmp_path / "run")
    recorder = go(a_run(small_sd, steps=6, **changes), tmp_path / "run", found=True)
    whole = go(a_run(small_sd, steps=6, **changes), tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 6), parameters(tmp_path / "run", 6))
    ages = [[row["sample_age"] for row in one.metrics() if row["kind"] == "train"] for one in (recorder, whole)]
    assert ages[0] == ages[1] and max(ages[0]) == staleness


@pytest.mark.parametrize(("every", "step"), [(1, 3), (2, 1), (2, 4), (100, 3)])
def test_a_learner_lost_at_any_staleness_gives_the_same_bits(small_sd, tmp_path, undisturbed, every, step):
    run = a_run(small_sd, steps=5, rollout__max_staleness=2, checkpoints__every=every)
    stages = LocalStages(run)
    begin, lost = stages.learner.begin, [LearnerLostError("killed")]

    def beginning(number, batch):
        if number == step and lost:
            raise lost.pop()
        begin(number, batch)

    def recover(serve):
        stages.samplers.versions.clear()
        stages.learner.learner = Learner(run, torch.device("cpu"))
        stages.samplers.sampler = stages.learner.learner.lend()

    stages.learner.begin, stages.learner.recover = beginning, recover
    go(run, tmp_path / "run", stages=stages)
    whole = undisturbed(steps=5, rollout__max_staleness=2)
    assert not lost and same(parameters(whole, 5), parameters(tmp_path / "run", 5))


def test_weights_of_an_older_life_with_the_same_version_are_not_reused(small_sd, tmp_path):
    """The new learner's bits differ, as on a GPU they may; the sampler holds the old ones under the number it needs."""
    run = a_run(small_sd, steps=3, checkpoints__every=1)
    stages = LocalStages(run)
    begin, lost = stages.learner.begin, [LearnerLostError("killed")]

    def beginning(number, batch):
        if number == 3 and lost:
            raise lost.pop()
        begin(number, batch)

    def recover(serve):
        stages.learner.learner = Learner(run, torch.device("cpu"))
        stages.samplers.sampler = stages.learner.learner.lend()
        restore = stages.learner.learner.restore

        def other(folder):
            state = restore(folder)
            with torch.no_grad():
                next(iter(stages.learner.learner.parameters.values())).add_(1e-3)
            return state

        stages.learner.learner.restore = other

    stages.learner.begin, stages.learner.recover = beginning, recover
    recorder = go(run, tmp_path / "run", stages=stages)
    published = [event["checksum"] for event in events(tmp_path / "run", "published") if event["version"] == 2]
    assert len(set(published)) == 2 and [row["step"] for row in recorder.metrics() if row["kind"] == "train"] == [
        1,
        2,
        3,
    ]


def test_a_version_that_a_checkpoint_should_hold_and_does_not_is_named(small_sd, tmp_path):
    go(a_run(small_sd, steps=2, rollout__max_staleness=1, checkpoints__every=2), tmp_path / "run")
    folder = checkpoints.folder_for(tmp_path / "run", 2)
    (found,) = (folder / "versions").iterdir()
    assert found.name == "000001.safetensors"
    found.unlink()
    with pytest.raises(CheckpointError, match=r"versions/000001\.safetensors is missing"):
        checkpoints.verify(folder)
    with pytest.raises(CheckpointError, match="does not hold the weights of version 1"):
        checkpoints.read_version(folder, 1)


def test_an_error_in_the_midst_of_an_update_keeps_nothing_of_it(small_sd, tmp_path):
    run = a_run(small_sd, optimizer__minibatches=2)
    stages = LocalStages(run)
    learn, parts = stages.learner.learner._minibatch, 0

    def failing(*args, **more):
        nonlocal parts
        parts += 1
        if parts == 4:  # half of the second update is done
            raise TrainingError("a log-ratio is not finite")
        return learn(*args, **more)

    stages.learner.learner._minibatch = failing
    with pytest.raises(TrainingError, match="a log-ratio is not finite"):
        go(run, tmp_path / "run", stages=stages)
    assert checkpoints.newest(tmp_path / "run", pytest.fail) is None
    (fault,) = events(tmp_path / "run", "fault")
    assert "no checkpoint could be made of step 1" in fault["message"] and "broken off" in fault["message"]


def test_an_error_at_the_beginning_of_an_update_leaves_the_version_before(small_sd, tmp_path):
    run = a_run(small_sd, optimizer__minibatches=2, **of_two_prompts(tmp_path))
    stages = LocalStages(run)
    learn, parts = stages.learner.learner._minibatch, 0

    def failing(*args, **more):
        nonlocal parts
        parts += 1
        if parts == 3:
            raise TrainingError("a log-ratio is not 0")
        return learn(*args, **more)

    stages.learner.learner._minibatch = failing
    with pytest.raises(TrainingError, match="is not 0"):
        go(run, tmp_path / "run", stages=stages)
    assert checkpoints.newest(tmp_path / "run", pytest.fail) == checkpoints.folder_for(tmp_path / "run", 1)
    go(run, tmp_path / "run", found=True)
    go(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 4), parameters(tmp_path / "run", 4))


def test_weights_that_cannot_be_published_are_saved_and_recorded(small_sd, tmp_path):
    run = a_run(small_sd)
    stages = LocalStages(run)
    publish, calls = stages.publish, 0

    def failing(**more):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise ClusterError("the object store is full")
        return publish(**more)

    stages.publish = failing
    with pytest.raises(ClusterError, match="is full"):
        go(run, tmp_path / "run", stages=stages)
    assert learned(tmp_path / "run") == [1, 2]
    assert checkpoints.newest(tmp_path / "run", pytest.fail) == checkpoints.folder_for(tmp_path / "run", 2)


@pytest.mark.parametrize("error", [RunError("no space left"), ValueError("no space left"), SystemExit("no space left")])
def test_a_row_that_cannot_be_recorded_is_in_the_checkpoint(small_sd, tmp_path, monkeypatch, error):
    run = a_run(small_sd)
    record, rows = Recorder.record, []

    def full(self, kind, step, values):
        rows.append((kind, step))
        if (kind, step) == ("train", 2):
            raise error
        return record(self, kind, step, values)

    monkeypatch.setattr(Recorder, "record", full)
    values = StepRecord.values
    monkeypatch.setattr(StepRecord, "values", lambda row: values(row) | {"gradient_norm": math.nan})  # all were skipped
    with pytest.raises(type(error), match="no space left"):
        go(run, tmp_path / "run")
    monkeypatch.setattr(Recorder, "record", record)
    assert learned(tmp_path / "run") == [1]
    assert checkpoints.newest(tmp_path / "run", pytest.fail) == checkpoints.folder_for(tmp_path / "run", 2)
    go(run, tmp_path / "run", found=True)
    assert learned(tmp_path / "run") == [1, 2, 3, 4]


class AtWork(LocalStages):
    """Calls `what` once, while the update of step 2 is made."""

    def __init__(self, run, what):
        super().__init__(run)
        self.what = [what]

    def wait(self, timeout):
        if self.what and self.learner.begun is not None and self.learner.begun[0] == 2:
            self.what.pop()()
        super().wait(timeout)


def asked_to_end():
    signal.raise_signal(signal.SIGTERM)


def test_who_ends_a_run_in_mid_update_is_told_at_once_what_it_still_does(small_sd, tmp_path):
    said = []
    with pytest.raises(KeyboardInterrupt):
        go(a_run(small_sd), tmp_path / "run", stages=AtWork(a_run(small_sd), asked_to_end), say=said.append)
    assert said == ["stopping: the update under way is finished first, then a checkpoint is written"]
    assert learned(tmp_path / "run") == [1, 2]


def lost():
    raise ClusterError("a task was lost 5 times")


@pytest.mark.parametrize("end", [lost, asked_to_end])
@pytest.mark.parametrize("trouble", ["records on a full disk", "storage away", "both"])
def test_an_ending_in_the_midst_of_an_update_saves_whatever_else_fails(small_sd, tmp_path, monkeypatch, end, trouble):
    run = a_run(small_sd)
    append, troubled = Recorder._append, []

    def full(self, name, row):
        if troubled and trouble != "storage away":
            raise RunError("no space left")
        append(self, name, row)

    def away(self, *, patience=1.0):
        if troubled and trouble != "records on a full disk":
            raise AwayError("storage is away")

    def ending():
        troubled.append(True)
        end()

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "_append", full)
        patched.setattr(LocalFolder, "push_records", away)
        with pytest.raises((ClusterError, KeyboardInterrupt, RunError)):
            go(run, tmp_path / "run", stages=AtWork(run, ending))
    assert checkpoints.newest(tmp_path / "run", pytest.fail) == checkpoints.folder_for(tmp_path / "run", 2)
    go(run, tmp_path / "run", found=True)
    assert learned(tmp_path / "run") == [1, 2, 3, 4]


def at_the_next_wait(stages):
    """Have an update be made at the second wait for it, as one that takes its time."""
    work, waited = stages.learner.work, []

    def working():
        if stages.learner.begun is None or stages.learner.begun[0] in waited:
            return work()
        waited.append(stages.learner.begun[0])
        return False

    stages.learner.work = working


@pytest.mark.parametrize("end", [lost, asked_to_end])
@pytest.mark.parametrize("error", [TrainingError("a log-ratio is not 0"), RuntimeError("CUDA error: out of memory")])
def test_an_update_that_fails_while_a_run_ends_costs_nothing_before_it(small_sd, tmp_path, end, error):
    run = a_run(small_sd)
    stages = AtWork(run, end)
    at_the_next_wait(stages)
    learn, parts = stages.learner.learner._minibatch, 0

    def failing(*args, **more):
        nonlocal parts
        parts += 1
        if parts == 2:
            raise error
        return learn(*args, **more)

    stages.learner.learner._minibatch = failing
    with pytest.raises((ClusterError, KeyboardInterrupt)):
        go(run, tmp_path / "run", stages=stages)
    assert checkpoints.newest(tmp_path / "run", pytest.fail) == checkpoints.folder_for(tmp_path / "run", 1)
    (fault,) = events(tmp_path / "run", "fault")
    assert fault["message"] == f"the update under way failed: {error}"
    go(run, tmp_path / "run", found=True)
    assert learned(tmp_path / "run") == [1, 2, 3, 4]


def test_an_update_that_fails_after_its_last_step_leaves_no_version(small_sd, tmp_path):
    run = a_run(small_sd)
    stages = LocalStages(run)
    merge = stages.learner.learner._merge

    def merging(noted):
        if stages.learner.learner.version == 1:
            raise RuntimeError("the store of the ranks is gone")
        merge(noted)

    stages.learner.learner._merge = merging
    with pytest.raises(RuntimeError, match="is gone"):
        go(run, tmp_path / "run", stages=stages)
    assert checkpoints.newest(tmp_path / "run", pytest.fail) is None
    assert "broken off" in events(tmp_path / "run", "fault")[-1]["message"]


def test_an_error_while_the_learner_is_at_work_lets_it_finish(small_sd, tmp_path):
    run = a_run(small_sd)
    stages = LocalStages(run)
    work, hits = stages.learner.work, 0

    def first_time():
        nonlocal hits
        if stages.learner.begun is not None and stages.learner.begun[0] == 2 and not hits:
            hits = 1
            raise ClusterError("10 sampler workers died in a row")
        return work()

    stages.learner.work = first_time
    with pytest.raises(ClusterError, match="died in a row"):
        go(run, tmp_path / "run", stages=stages)
    assert learned(tmp_path / "run") == [1, 2]
    assert checkpoints.newest(tmp_path / "run", pytest.fail) == checkpoints.folder_for(tmp_path / "run", 2)


def lost_with(run, stages, happens):
    begin = stages.learner.begin
    begun = []

    def beginning(step, batch):
        begun.append(step)
        if happens(step):
            raise LearnerLostError("CUDA error: an illegal memory access")
        begin(step, batch)

    def recover(serve):
        stages.learner.learner = Learner(run, torch.device("cpu"))
        stages.samplers.sampler = stages.learner.learner.lend()

    stages.learner.begin, stages.learner.recover = beginning, recover
    return begun


@pytest.mark.parametrize("step", [1, 4])
def test_an_error_in_a_recovery_saves_nothing_of_the_new_learner(small_sd, tmp_path, step):
    run = a_run(small_sd, checkpoints__every=2)
    stages = LocalStages(run)
    lost_with(run, stages, lambda at: at == step)
    recover = stages.learner.recover

    def recovering(serve):
        recover(serve)
        raise ModelError("a part of the new learner cannot be read: stale file handle")

    stages.learner.recover = recovering
    with pytest.raises(ModelError, match="stale"):
        go(run, tmp_path / "run", stages=stages)
    found = checkpoints.newest(tmp_path / "run", pytest.fail)
    assert found == (None if step == 1 else checkpoints.folder_for(tmp_path / "run", 2))


def test_a_signal_while_a_lost_learner_is_replaced_ends_the_run_at_once(small_sd, tmp_path, undisturbed):
    run = a_run(small_sd, checkpoints__every=2)
    stages = LocalStages(run)
    lost_with(run, stages, lambda at: at == 4)

    def recovering(serve):
        signal.raise_signal(signal.SIGTERM)
        serve()
        pytest.fail("it goes on to wait for the new learner")

    stages.learner.recover = recovering
    with pytest.raises(KeyboardInterrupt):
        go(run, tmp_path / "run", stages=stages)
    assert [event["step"] for event in events(tmp_path / "run", "stopped")] == [2]
    assert checkpoints.newest(tmp_path / "run", pytest.fail) == checkpoints.folder_for(tmp_path / "run", 2)
    go(run, tmp_path / "run", found=True)
    assert same(parameters(undisturbed(), 4), parameters(tmp_path / "run", 4))


def test_a_loss_that_comes_back_at_one_step_ends_the_run_with_its_cause(small_sd, tmp_path):
    run = a_run(small_sd, steps=9, checkpoints__every=2)
    stages = LocalStages(run)
    begun = lost_with(run, stages, lambda step: step == 6)
    with pytest.raises(
        LearnerLostError, match=r"illegal memory access; the learner was lost 3 times at step 6.*step 4"
    ):
        go(run, tmp_path / "run", stages=stages)
    assert begun == [1, 2, 3, 4, 5, 6, 5, 6, 5, 6]


def test_a_loss_that_comes_back_as_a_checkpoint_is_read_names_its_step(small_sd, tmp_path):
    run = a_run(small_sd, checkpoints__every=2)
    stages = LocalStages(run)
    begun = lost_with(run, stages, lambda step: step == 4)

    def restoring(folder, step):
        raise LearnerLostError("killed while it read")

    stages.learner.restore = restoring
    with pytest.raises(LearnerLostError, match=r"while it read; the learner was lost 3 times at step 4 .*step 2"):
        go(run, tmp_path / "run", stages=stages)
    assert begun == [1, 2, 3, 4]


def test_a_checkpoint_that_costs_the_learner_each_time_ends_the_run(small_sd, tmp_path):
    run = a_run(small_sd, steps=9, checkpoints__every=3)
    stages = LocalStages(run)
    lost_with(run, stages, lambda step: False)
    begun, begin = [], stages.learner.begin

    def beginning(step, batch):
        begun.append(step)
        begin(step, batch)

    def saving(folder, state):
        raise LearnerLostError("waited 300 s for the learner to save")

    stages.learner.begin, stages.learner.save = beginning, saving
    with pytest.raises(LearnerLostError, match=r"3 times at step 4 .*before the first checkpoint"):
        go(run, tmp_path / "run", stages=stages)
    assert begun == [1, 2, 3] * restarts.AT_ONE_STEP


def test_losses_at_ever_other_steps_with_no_newer_checkpoint_end_the_run(small_sd, tmp_path):
    run = a_run(small_sd, steps=9)
    stages = LocalStages(run)
    lost: list[int] = []

    def happens(step):
        if step > len(lost):
            lost.append(step)
            return True
        return False

    lost_with(run, stages, happens)
    with pytest.raises(LearnerLostError, match="lost 6 times before the first checkpoint"):
        go(run, tmp_path / "run", stages=stages)
    assert lost == [1, 2, 3, 4, 5, 6]


def test_trajectories_lost_again_and_again_end_the_run_with_a_checkpoint(small_sd, tmp_path):
    run = a_run(small_sd)
    stages = LocalStages(run)
    begin, begun = stages.learner.begin, []

    def beginning(step, batch):
        begun.append(step)
        if step == 2:
            raise RolloutsLostError("the trajectories of 1 groups are gone", [0])
        begin(step, batch)

    stages.learner.begin = beginning
    with pytest.raises(RolloutsLostError, match="are gone"):
        go(run, tmp_path / "run", stages=stages)
    assert begun == [1, 2, 2, 2, 2, 2]
    assert checkpoints.newest(tmp_path / "run", pytest.fail) == checkpoints.folder_for(tmp_path / "run", 1)


def test_a_signal_while_a_batch_is_sampled_again_waits_for_no_update(small_sd, tmp_path):
    run = a_run(small_sd, **of_two_prompts(tmp_path))
    stages = LocalStages(run)
    begin, lost = stages.learner.begin, [RolloutsLostError("gone", [0])]

    def beginning(step, batch):
        if step == 2 and lost:
            signal.raise_signal(signal.SIGINT)
            raise lost.pop()
        begin(step, batch)

    stages.learner.begin = beginning
    with pytest.raises(KeyboardInterrupt):
        go(run, tmp_path / "run", stages=stages)
    assert checkpoints.newest(tmp_path / "run", pytest.fail) == checkpoints.folder_for(tmp_path / "run", 1)
    go(run, tmp_path / "run", found=True)
    go(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 4), parameters(tmp_path / "run", 4))


def test_images_that_are_gone_each_time_before_a_score_end_the_run(small_sd, tmp_path):
    run = a_run(small_sd)
    stages = LocalStages(run)
    submitted, stages.scorers.lost = [], lambda: [submitted.pop()] if submitted else []
    stages.scorers.submit = submitted.append
    with pytest.raises(ClusterError, match="were lost 6 times before a score"):
        go(run, tmp_path / "run", stages=stages)


def test_a_notice_that_the_learners_machine_leaves_makes_a_checkpoint(small_sd, tmp_path):
    run = a_run(small_sd)
    stages = LocalStages(run)
    stages.learner.leaving = lambda: stages.learner.learner.version == 2
    go(run, tmp_path / "run", stages=stages)
    assert [event["step"] for event in events(tmp_path / "run", "checkpoint")] == [2, 4]


def test_an_update_that_never_ends_is_a_lost_learner(small_sd, tmp_path):
    run = a_run(small_sd, workers__task_timeout=0.3)
    stages = LocalStages(run)
    recovered = []
    stages.learner.work = lambda: False
    stages.learner.recover = lambda serve: recovered.append(1)
    with pytest.raises(LearnerLostError, match="3 times at step 1"):
        go(run, tmp_path / "run", stages=stages)
    assert len(recovered) == 2


def test_an_error_while_a_failed_run_is_saved_does_not_hide_the_first(small_sd, tmp_path):
    run = a_run(small_sd)
    stages = Disturbed(run, fail(ClusterError("a task was lost 5 times")), 16)

    def saving(folder, state):
        raise KeyError("no such version")

    stages.learner.save = saving
    with pytest.raises(ClusterError, match="lost 5 times"):
        go(run, tmp_path / "run", stages=stages)
    (fault,) = events(tmp_path / "run", "fault")
    assert "no checkpoint could be made of step" in fault["message"] and "no such version" in fault["message"]
