"""The same stages on Ray: the same bits, workers that may die, errors that arrive."""

import json
import os
import re
import signal
import time

import psutil
import pytest
import ray

from pcpo_ray.cluster.connect import connect
from pcpo_ray.cluster.control import driver
from pcpo_ray.cluster.control.client import Caller
from pcpo_ray.commands import session
from pcpo_ray.data.requests import Request
from pcpo_ray.data.types import Task
from pcpo_ray.errors import ClusterError, PcpoError, RewardError, RunError, ScheduleError
from pcpo_ray.runs import checkpoints
from pcpo_ray.training import status
from tests.support import small
from tests.support.on_ray import await_samplers
from tests.support.part import MORE
from tests.support.running import go, parameters, same

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("cluster")]


def pids(pool):
    """Process ids by worker."""
    found = ray.get([actor.alive.remote(0.0) for actor in pool.actors.values()], timeout=60)
    return {name: pid for name, (pid, _) in zip(pool.actors, found, strict=True)}


def lives(pid):
    """Whether a process is there, and is not one that has ended and that its parent has still to ask after."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("samplers", [1, 4])
def test_any_number_of_samplers_gives_the_bits_of_one_process(small_sd, tmp_path, samplers):
    run = small.run(small_sd, steps=2, workers__samplers__workers=samplers, rollout__prompts=4)
    stages = connect(run)
    await_samplers(stages, samplers)
    try:
        recorder = go(run, tmp_path / "ray", stages=stages)
    finally:
        stages.close()
    go(run, tmp_path / "local")
    assert same(parameters(tmp_path / "ray", 2), parameters(tmp_path / "local", 2))
    from pyarrow import parquet

    columns = ["step", "prompt", "sample", "jpeg_compressibility", "advantage"]
    tables = [parquet.read_table(tmp_path / name / "scores.parquet").select(columns) for name in ("ray", "local")]
    assert tables[0].equals(tables[1])
    assert (
        len({row["worker"] for row in parquet.read_table(recorder.folder / "scores.parquet").to_pylist()}) == samplers
    )


def test_a_cluster_too_small_says_what_was_asked_and_what_there_is(small_sd):
    said = []
    with pytest.raises(ClusterError, match=r"samplers \(0 of 1\).*CPU: asked for 40\.2"):
        connect(small.run(small_sd, workers__samplers="{cpus: 40}", workers__start_timeout=5), said.append)
    assert any("waiting for it to grow" in line for line in said)


@pytest.mark.chaos
def test_all_roles_share_one_gpu_by_fractions(small_sd, tmp_path):
    def shares(sampler):
        roles = {"samplers": sampler, "scorers": 0.2, "learner": 0.4}
        return {f"workers__{role}": f"{{cpus: 0.1, gpus: {share}}}" for role, share in roles.items()}

    stages = connect(small.run(small_sd, **shares(0.4)))  # a logical GPU: there need not be any
    try:
        assert ray.available_resources().get("GPU", 0.0) == pytest.approx(0.0)
        assert len(go(stages.run, tmp_path / "run", stages=stages).metrics()) == 4
    finally:
        stages.close()
    with pytest.raises(ClusterError, match=r"GPU: asked for 1\.1, the cluster has 1"):
        connect(small.run(small_sd, **shares(0.5), workers__start_timeout=20))


def used():
    """Bytes in the object store of this machine."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return get_memory_info_reply(state).store_stats.object_store_bytes_used


@MORE
@pytest.mark.chaos
def test_the_object_store_is_back_at_its_base_after_every_step(small_sd, tmp_path):
    run = small.run(small_sd, steps=6, evaluation__every=6, rollout__images=16, sampling__height=64, sampling__width=64)
    stages = connect(run)
    collect, base, highest, margin = stages.learner.collect, [], [], 2 * 2**20

    def collected():
        update = collect()
        if update is not None:
            highest.append(used())
        return update

    def admitted(task):
        if task.purpose == "train" and task.position == 0:  # of the step before there is nothing left but its weights
            deadline = time.monotonic() + 60
            while base and used() > base[0] + margin and time.monotonic() < deadline:
                time.sleep(0.2)
            base.append(used())
        submit(task)

    submit, stages.samplers.submit, stages.learner.collect = stages.samplers.submit, admitted, collected
    try:
        go(run, tmp_path / "run", stages=stages)
    finally:
        stages.close()
    assert len(base) == 6 and min(highest) > base[0] + 3 * 16 * 64 * 64 * 3
    assert max(base[1:]) <= base[0] + margin, base


def test_an_error_in_a_worker_arrives_as_it_was_raised(small_sd, tmp_path):
    run = small.run(small_sd, rewards="[{kind: 'tests.support.custom:Exhausted', options: {after: 2}}]")
    stages = connect(run)
    try:
        with pytest.raises(RewardError, match="the scorer hung up"):
            go(run, tmp_path / "ray", stages=stages)
    finally:
        stages.close()


def test_a_reward_that_ends_its_process_while_it_is_built_is_named_at_once(small_sd):
    words = r"(?s)SystemExit: no licence, which would end the whole process \(.*test_scorer\.py, line \d+\)"
    with pytest.raises(RewardError, match=words):  # not a ClusterError at the deadline
        connect(small.run(small_sd, rewards="[{kind: 'tests.workers.test_scorer:Exits'}]"))


def test_a_reward_that_raises_is_named_before_the_run_with_file_and_line(small_sd):
    run = small.run(small_sd, rewards="[{kind: 'tests.support.custom:Failing', options: {every: 1}}]")
    with pytest.raises(RewardError, match=r"before the run, and failed: .*hung up \(.*custom\.py, line \d+\)"):
        connect(run)


def test_a_worker_that_cannot_start_is_an_error_that_says_why(small_sd, tmp_path):
    import shutil

    copy = shutil.copytree(small_sd, tmp_path / "small-sd-broken")
    (copy / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut short")
    with pytest.raises(PcpoError, match="cannot be loaded"):
        connect(small.run(copy))


def test_a_checkpoint_that_cannot_be_written_ends_the_run_by_name(small_sd, tmp_path):
    stages = connect(run := small.run(small_sd))
    Disturbed(stages, t1=lambda found: (tmp_path / "run" / "checkpoints").write_text("in the way"))
    try:
        with pytest.raises(RunError, match=r"run/checkpoints/step-000001 cannot be written: Not a directory"):
            go(run, tmp_path / "run", stages=stages)
    finally:
        stages.close()


def test_closing_leaves_no_worker_behind(small_sd):
    stages = connect(small.run(small_sd))
    found = [*pids(stages.samplers).values(), *pids(stages.scorers).values()]
    found.append(ray.get(stages.learner.actors[0].alive.remote(0.0), timeout=60)[0])
    stages.close()
    stages.close()
    deadline = time.monotonic() + 60
    while left := [pid for pid in found if lives(pid)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.1)


def test_the_driver_never_holds_latents(small_sd):
    stages = connect(small.run(small_sd))
    try:
        stages.publish(oldest=0)
        prompts, _ = session.sources(small.run(small_sd))
        stages.samplers.submit(
            Task(step=1, position=0, prompt=prompts.batch(1, 1)[0], images=4, version=0, purpose="train")
        )
        found = []
        deadline = time.monotonic() + 60
        while not found and time.monotonic() < deadline:
            stages.wait(1.0)
            found = stages.samplers.collect()
        assert isinstance(found[0].trajectory.reference, ray.ObjectRef)
        assert isinstance(found[0].images.reference, ray.ObjectRef)
    finally:
        stages.close()


class Disturbed:
    """Does something to a run's stages when so many tasks have been submitted."""

    def __init__(self, stages, **at):
        self.stages, self.at, self.count = stages, {int(key[1:]): what for key, what in at.items()}, 0
        submit = stages.samplers.submit

        def submitted(task):
            submit(task)
            self.count += 1
            if self.count in self.at:
                self.at.pop(self.count)(stages)

        stages.samplers.submit = submitted


def kill_a_sampler(stages):
    os.kill(next(iter(pids(stages.samplers).values())), signal.SIGKILL)


def kill_all_samplers(stages):
    for pid in pids(stages.samplers).values():
        os.kill(pid, signal.SIGKILL)


def kill_a_scorer(stages):
    os.kill(next(iter(pids(stages.scorers).values())), signal.SIGKILL)


def kill_the_learner(stages):
    os.kill(ray.get(stages.learner.actors[0].alive.remote(0.0), timeout=60)[0], signal.SIGKILL)


def stop_a_sampler(stages):
    os.kill(next(iter(pids(stages.samplers).values())), signal.SIGSTOP)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (kill_a_sampler, "sampler-0 is gone"),
        pytest.param(kill_the_learner, "a new learner goes on after step", marks=pytest.mark.chaos),
        pytest.param(kill_all_samplers, "sampler-1 is gone", marks=pytest.mark.chaos),
        pytest.param(kill_a_scorer, "scorer-0 is gone", marks=pytest.mark.chaos),
        pytest.param(stop_a_sampler, "it was silent for|takes long over a task", marks=pytest.mark.chaos),
    ],
)
def test_a_fault_in_mid_run_changes_no_bit(small_sd, tmp_path, fault, said):
    run = small.run(small_sd, steps=3, workers__samplers__workers=2, workers__silence_timeout=8)
    stages = connect(run)
    await_samplers(stages, 2)
    # 2 evaluation tasks, then 3 a step
    Disturbed(stages, t7=fault)
    try:
        recorder = go(run, tmp_path / "ray", stages=stages)
    finally:
        stages.close()
    assert re.search(said, (recorder.folder / "events.jsonl").read_text())
    go(run, tmp_path / "local")
    assert same(parameters(tmp_path / "ray", 3), parameters(tmp_path / "local", 3))
    assert [row["step"] for row in recorder.metrics() if row["kind"] == "train"] == [1, 2, 3]


def test_a_run_is_resized_paced_and_stopped_through_its_controller(small_sd, tmp_path):
    run = small.run(small_sd, name="spoken-to", steps=50)
    stages = connect(run)
    stages.exchange(status.starting(run))
    here = ray.get_runtime_context().gcs_address
    with pytest.raises(ClusterError, match=r"no run named 'other'.*there are spoken-to"):
        Caller("other", here)
    with pytest.raises(ClusterError, match="a run named 'spoken-to' is going on"):
        driver.DriverControl("spoken-to", {})
    caller = Caller("spoken-to", here)

    def ask(stages):
        caller.ask(Request(samplers=2, max_staleness=1))

    def stop(stages):
        caller.ask(Request(stop=True))

    Disturbed(stages, t6=ask, t20=stop)
    try:
        recorder = go(run, tmp_path / "ray", stages=stages)
        told = caller.status()
    finally:
        stages.close()
    events = [json.loads(line) for line in (recorder.folder / "events.jsonl").read_text().splitlines()]
    done = events[-1]["step"]
    assert events[-1]["kind"] == "stopped" and 2 < done < 50
    assert checkpoints.newest(recorder.folder, pytest.fail) == checkpoints.folder_for(recorder.folder, done)
    assert told["samplers"]["wanted"] == 2 and told["max_staleness"] == 1
    ages = {row["step"]: row["step"] - 1 - row["version"] for row in parquet_rows(recorder.folder)}
    assert ages[1] == 0 and ages[done] == 1


def parquet_rows(folder):
    from pyarrow import parquet

    return parquet.read_table(folder / "scores.parquet").to_pylist()


def test_samplers_come_and_go_in_mid_run_and_change_no_bit(small_sd, tmp_path):
    run = small.run(small_sd, steps=4)
    stages = connect(run)
    Disturbed(stages, t3=lambda found: found.resize(samplers=4, scorers=2), t12=lambda found: found.resize(samplers=2))
    try:
        recorder = go(run, tmp_path / "ray", stages=stages)
        assert stages.pool_status()["samplers"].wanted == 2
    finally:
        stages.close()
    go(run, tmp_path / "local")
    assert same(parameters(tmp_path / "ray", 4), parameters(tmp_path / "local", 4))
    assert len(recorder.metrics()) == 7


def test_a_ray_that_was_there_before_is_used_and_left_there(small_sd):
    with session.begun(small.run(small_sd), local=False, say=lambda line: None):
        assert ray.is_initialized()
    with pytest.raises(ScheduleError), session.begun(small.run(small_sd, sampling__steps=1001), local=False, say=print):
        pytest.fail("it must not begin")
    assert ray.is_initialized()
