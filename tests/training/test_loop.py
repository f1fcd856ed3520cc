"""The loop, in this process: what it records, what it refuses, and that it resumes to the bit."""

import json
import signal
import subprocess
import sys
import time
import weakref

import pytest
import torch

from pcpo_ray.commands import opening, session
from pcpo_ray.config import files
from pcpo_ray.errors import ClusterError, LearnerLostError, RewardError, RolloutsLostError, TrainingError
from pcpo_ray.process import signals
from pcpo_ray.runs import checkpoints
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training import restarts
from pcpo_ray.training.local import LocalStages
from pcpo_ray.workers.learner import autotune, loss
from pcpo_ray.workers.learner.learner import Learner
from tests.support import ROOT, small
from tests.support.running import go, parameters, same


def test_a_run_leaves_what_the_run_folder_promises(small_sd, tmp_path):
    run = small.run(small_sd, steps=3, optimizer__minibatches=2)
    recorder = go(run, tmp_path / "run")
    rows = recorder.metrics()
    assert [(row["kind"], row["step"]) for row in rows] == [
        ("evaluation", 0),
        ("train", 1),
        ("train", 2),
        ("evaluation", 2),
        ("train", 3),
        ("evaluation", 3),
    ]
    assert files.load(tmp_path / "run" / "config.yaml") == run
    from pyarrow import parquet

    scores = parquet.read_table(tmp_path / "run" / "scores.parquet").to_pylist()
    assert len(scores) == 3 * 3 * 4
    assert {row["version"] for row in scores} == {0, 1, 2}
    assert len(list((tmp_path / "run" / "images" / "step-000003").glob("*.png"))) == 4
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    first = next(event for event in events if event["kind"] == "first_update")
    assert first["max_log_ratio"] == 0 < recorder.metrics()[1]["max_log_ratio"]  # the batch's second update has moved
    assert events[-1]["kind"] == "finished"


def test_the_first_update_of_a_run_reports_a_log_ratio_of_zero(small_flux, tmp_path):
    go(small.run(small_flux, steps=1), tmp_path / "run")
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert next(event for event in events if event["kind"] == "first_update")["max_log_ratio"] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"advantage": "{kind: prompt_history}", "combine": "advantages"},
        {"optimizer__average": 0.9, "sampling__subset": "{kind: window, size: 2, order: random}"},
        {
            "objective__old_predictions": "recomputed",
            "objective__correction": 2.0,
            "optimizer__minibatches": 2,
            "rollout__max_staleness": 1,
        },
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(small_sd, tmp_path, changes):
    changes = {**changes, "steps": 4}
    go(small.run(small_sd, **changes), tmp_path / "whole")
    go(small.run(small_sd, **{**changes, "steps": 2}), tmp_path / "parts")
    found = checkpoints.folder_for(tmp_path / "parts", 2)
    recorder = go(small.run(small_sd, **changes), tmp_path / "parts", found=found)
    ends = [checkpoints.read(checkpoints.folder_for(tmp_path / name, 4)) for name in ("whole", "parts")]
    assert same(*(end.parameters for end in ends)) and same(*(end.averaged for end in ends))
    assert [row["step"] for row in recorder.metrics() if row["kind"] == "train"] == [1, 2, 3, 4]


@pytest.mark.timeout(1500)
def test_a_run_killed_in_mid_step_resumes_to_the_bit(command, small_sd, tmp_path):
    run = small.run(small_sd, steps=6, name="killed")
    path = tmp_path / "killed.yaml"
    path.write_text(files.dump(run))
    words = ["train", str(path), "--local", "--runs", str(tmp_path)]
    started = [sys.executable, "-m", "pcpo_ray.commands.app", *words]
    job = subprocess.Popen(started, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 600
    while not checkpoints.folder_for(tmp_path / "killed", 2).exists():
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline, "the run made no checkpoint in 600 s"
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    job.wait(timeout=30)
    assert not checkpoints.folder_for(tmp_path / "killed", 6).exists()
    status, said, errors = command(*words, "--resume")
    assert status == 0, said + errors
    assert "resuming killed after step" in said
    go(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 6), parameters(tmp_path / "killed", 6))


def test_what_was_learned_is_let_go_before_more_is_sampled(small_sd, tmp_path):
    stages = LocalStages(small.run(small_sd, steps=3))
    sampled, alive, collect, submit = [], {}, stages.samplers.collect, stages.samplers.submit

    def collected():
        found = collect()
        sampled.extend(weakref.ref(rollout.trajectory.reference) for rollout in found if rollout.trajectory)
        return found

    def submitted(task):
        if task.purpose == "train" and task.position == 0:
            alive[task.step] = sum(reference() is not None for reference in sampled)
        submit(task)

    stages.samplers.collect, stages.samplers.submit = collected, submitted
    go(small.run(small_sd, steps=3), tmp_path / "run", stages=stages)
    assert (len(sampled), alive) == (9, {1: 0, 2: 0, 3: 0})


def test_a_resumed_run_may_not_have_another_method(small_sd, tmp_path):
    go(small.run(small_sd, steps=1), tmp_path / "run")
    from pcpo_ray.errors import RunError

    with pytest.raises(RunError, match=r"credit\.kind 'reweight' -> 'native'"):
        opening.resume(
            LocalFolder(local=tmp_path / "run"), small.run(small_sd, steps=2, credit__kind="native"), lambda line: None
        )


def test_groups_whose_reward_fails_are_dropped_whole_and_counted(small_sd, tmp_path):
    rewards = "[{kind: 'tests.support.custom:Failing', options: {every: 2}}]"
    recorder = go(small.run(small_sd, steps=2, rewards=rewards), tmp_path / "run")
    dropped = [row["dropped_groups"] for row in recorder.metrics() if row["kind"] == "train"]
    assert sum(dropped) >= 2
    assert "the scorer hung up" in (tmp_path / "run" / "events.jsonl").read_text()


def test_a_reward_that_keeps_failing_stops_the_run_with_its_cause(small_sd, tmp_path):
    rewards = "[{kind: 'tests.support.custom:Exhausted', options: {after: 2}}]"
    with pytest.raises(RewardError, match="the scorer hung up"):
        go(small.run(small_sd, rewards=rewards), tmp_path / "run")


@pytest.mark.parametrize("staleness", [0, 1])
def test_what_was_learned_before_a_reward_gave_up_is_kept(small_sd, tmp_path, staleness):
    rewards = "[{kind: 'tests.support.custom:Exhausted', options: {after: 10}}]"
    run = small.run(
        small_sd, steps=6, rewards=rewards, rollout__max_staleness=staleness, rollout__reward_failures=1,
        checkpoints__every=6, evaluation__every=6,
    )  # fmt: skip
    with pytest.raises(RewardError, match="the scorer hung up"):
        go(run, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    learned = max(row["step"] for row in rows if row["kind"] == "train")
    assert checkpoints.newest(tmp_path / "run", pytest.fail) == checkpoints.folder_for(tmp_path / "run", learned)


def test_ctrl_c_in_mid_run_leaves_a_checkpoint_to_resume_from(small_sd, tmp_path):
    run = small.run(small_sd, steps=4, checkpoints__every=4)
    stages = session.stages(run, local=True, say=lambda line: None)
    calls = 0

    def interrupted(timeout):
        nonlocal calls
        calls += 1
        if calls == 16:
            raise KeyboardInterrupt
        type(stages).wait(stages, timeout)

    stages.wait = interrupted
    with pytest.raises(KeyboardInterrupt):
        go(run, tmp_path / "run", stages=stages)
    found = checkpoints.newest(tmp_path / "run", pytest.fail)
    assert found is not None
    go(run, tmp_path / "run", found=found)
    go(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 4), parameters(tmp_path / "run", 4))


@pytest.mark.parametrize("number", signals.NUMBERS)
def test_a_signal_in_the_middle_of_an_update_takes_effect_after_it(small_sd, tmp_path, number):
    run = small.run(small_sd, steps=3, optimizer__minibatches=2, checkpoints__every=3)
    stages = LocalStages(run)
    learn, passes = stages.learner.learner._minibatch, 0

    def signalled(*args, **more):
        nonlocal passes
        passes += 1
        if passes == 4:  # half of the second update
            signal.raise_signal(number)
        return learn(*args, **more)

    stages.learner.learner._minibatch = signalled
    with signals.handled(), pytest.raises(KeyboardInterrupt):
        go(run, tmp_path / "run", stages=stages)
    go(small.run(small_sd, steps=2, optimizer__minibatches=2), tmp_path / "whole")
    assert passes == 4 and same(parameters(tmp_path / "whole", 2), parameters(tmp_path / "run", 2))


def test_waiting_for_ever_is_an_error_that_says_for_what(small_sd, tmp_path):
    run = small.run(small_sd, workers__task_timeout=0.3)
    stages = session.stages(run, local=True, say=lambda line: None)
    stages.wait = lambda timeout: time.sleep(0.05)
    with pytest.raises(ClusterError, match=r"0\.3.*evaluating step 0: 0/4 images"):
        go(run, tmp_path / "run", stages=stages)


@pytest.mark.parametrize("every", [1, 2, 9])
def test_a_lost_learner_is_restored_from_the_newest_checkpoint_to_the_bit(small_sd, tmp_path, every):
    run = small.run(small_sd, steps=4, checkpoints__every=every)
    stages = LocalStages(run)
    collect, recovered, lost = stages.learner.collect, [], iter([None, None, LearnerLostError("killed")])

    def failing():
        update = collect()
        if update is not None and (error := next(lost, None)) is not None:
            raise error
        return update

    def recover(serve):
        recovered.append(1)
        if len(recovered) == 1:
            raise LearnerLostError("killed while it started")
        stages.learner.learner = Learner(run, torch.device("cpu"))
        stages.samplers.sampler = stages.learner.learner.lend()
        stages.learner.begun = stages.learner.done = None

    stages.learner.collect, stages.learner.recover = failing, recover
    recorder = go(run, tmp_path / "run", stages=stages)
    assert recovered == [1, 1]
    go(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 4), parameters(tmp_path / "run", 4))
    assert [row["step"] for row in recorder.metrics() if row["kind"] == "train"] == [1, 2, 3, 4]
    assert "killed while it started; a new learner goes on after step" in (recorder.folder / "events.jsonl").read_text()


def test_a_learner_that_is_lost_again_and_again_ends_the_run(small_sd, tmp_path):
    run = small.run(small_sd, steps=2)
    stages = LocalStages(run)

    def failing():
        raise LearnerLostError("killed")

    def begin(step, batch):
        assert step == 1

    stages.learner.begin, stages.learner.collect = begin, failing
    with pytest.raises(LearnerLostError, match="killed"):
        go(run, tmp_path / "run", stages=stages)


def test_losses_with_steps_learned_and_saved_between_them_do_not_add_up(small_sd, tmp_path):
    steps = restarts.MAX_RESTARTS + 2
    run = small.run(small_sd, steps=steps, rollout__prompts=1, sampling__steps=2, evaluation__every=100)
    stages = LocalStages(run)
    begin, lost = stages.learner.begin, []

    def once_a_step(step, batch):
        if step not in lost:
            lost.append(step)
            raise LearnerLostError("killed")
        begin(step, batch)

    def recover(serve):
        stages.learner.learner = Learner(run, torch.device("cpu"))
        stages.samplers.sampler = stages.learner.learner.lend()

    stages.learner.begin, stages.learner.recover = once_a_step, recover
    go(run, tmp_path / "run", stages=stages)
    assert lost == list(range(1, steps + 1))


def test_a_batch_whose_trajectories_are_gone_is_sampled_again_to_the_bit(small_sd, tmp_path):
    run = small.run(small_sd, steps=2)
    stages = LocalStages(run)
    begin, begun, sampled = stages.learner.begin, [], []

    def beginning(step, batch):
        begun.append(step)
        begin(step, batch)

    collect, lost = (
        stages.learner.collect,
        iter([RolloutsLostError("node lost", [0, 2]), RolloutsLostError("node lost", [1])]),
    )

    def failing():
        if stages.learner.begun is not None and (error := next(lost, None)) is not None:
            stages.learner.begun = None
            raise error
        return collect()

    submit = stages.samplers.submit

    def submitting(task):
        sampled.append(task.step)
        submit(task)

    stages.samplers.submit = submitting
    stages.learner.begin, stages.learner.collect = beginning, failing
    go(run, tmp_path / "run", stages=stages)
    assert begun == [1, 1, 1, 2] and sampled.count(1) == 3 + 2 + 1
    go(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 2), parameters(tmp_path / "run", 2))


def test_a_resumed_run_keeps_the_micro_batch_that_it_had_found(small_sd, tmp_path, monkeypatch):
    run = small.run(small_sd, steps=4, optimizer__micro_batch="auto")
    monkeypatch.setattr(autotune, "measure", lambda *_: torch.tensor([0.4, 0.1, 0.2, 0.3]))
    monkeypatch.setattr(loss, "FIRST_RATIO_LIMIT", 1.0)  # what was not seen to give the same bits may not
    go(run, tmp_path / "whole")
    go(small.run(small_sd, steps=2, optimizer__micro_batch="auto"), tmp_path / "run")
    path = tmp_path / "run" / "events.jsonl"
    (event,) = [e for e in map(json.loads, path.read_text().splitlines()) if e["kind"] == "micro_batch"]
    assert (event["step"], event["pairs"]) == (1, 8)
    assert event["seconds_a_pair"] == pytest.approx({"4": 0.4, "8": 0.1, "16": 0.2, "32": 0.3})
    monkeypatch.setattr(autotune, "measure", lambda *_: pytest.fail("tried anew"))
    go(run, tmp_path / "run", found=2)
    assert same(parameters(tmp_path / "run", 4), parameters(tmp_path / "whole", 4))


NOTHING = {
    "weights did not move in the last 10 steps .*: all scores of a group were equal": {
        "rewards": "[{kind: 'tests.support.custom:Equal'}]"
    },
    "weights did not move in the last 10 steps .*; raise optimizer.learning_rate": {"optimizer__learning_rate": 1e-12},
}


@pytest.mark.parametrize("message", NOTHING)
def test_a_run_that_trains_on_nothing_ends_with_a_checkpoint_and_its_cause(small_sd, tmp_path, message):
    cheap = {"sampling__steps": 2, "rollout__prompts": 1, "evaluation__count": 1, "checkpoints__every": 100}
    run = small.run(small_sd, steps=20, evaluation__every=100, **cheap, **NOTHING[message])
    with pytest.raises(TrainingError, match=message):
        go(run, tmp_path / "run")
    assert checkpoints.newest(tmp_path / "run", pytest.fail) == checkpoints.folder_for(tmp_path / "run", 10)
    with pytest.raises(TrainingError, match="after step 11, with a checkpoint"):  # nothing is forgotten by resuming
        go(run, tmp_path / "run", found=10)


def test_weights_that_move_let_a_run_go_on_and_every_step_says_how_far(small_sd, tmp_path):
    recorder = go(small.run(small_sd, steps=2), tmp_path / "run")
    rows = [row for row in recorder.metrics() if row["kind"] == "train"]
    assert all(row["moved_fraction"] > 0.4 and 0 < row["update_ratio"] < 1 for row in rows)
    assert [row["skipped_gradients"] for row in rows] == [0, 0]
