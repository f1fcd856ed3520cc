"""The same stages on Ray: the same bits, workers that may die, errors that arrive."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import ray

from pcpo_ray import runs
from pcpo_ray.cluster import actors, connect
from pcpo_ray.errors import ClusterError, PcpoError, RewardError
from tests import small
from tests.test_train import go, parameters, same

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    os.environ["RAY_AUTH_MODE"] = "disabled"
    # the driver's path must hold this folder's parent, so that workers can import the tests' rewards
    sys.path.insert(0, str(Path(__file__).parents[2]))
    ray.init(address="local", num_cpus=4, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize("samplers", [1, 4])
def test_any_number_of_samplers_gives_the_bits_of_one_process(small_sd, tmp_path, samplers):
    run = small.run(small_sd, steps=2, workers__samplers__workers=samplers, rollout__prompts=4)
    stages = connect(run)
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


def test_a_sampler_killed_in_mid_run_is_replaced_and_changes_no_bit(small_sd, tmp_path):
    run = small.run(small_sd, steps=3, workers__samplers__workers=2)
    stages = connect(run)
    pids = ray.get([actor.ready.remote() for actor in stages.samplers.pool.workers], timeout=60)
    submit, count = stages.samplers.submit, 0

    def kill_under_way(task):
        nonlocal count
        submit(task)
        count += 1
        if count == 5:
            os.kill(pids[0], signal.SIGKILL)

    stages.samplers.submit = kill_under_way
    try:
        recorder = go(run, tmp_path / "ray", stages=stages)
    finally:
        stages.close()
    assert '"kind": "fault"' in (recorder.folder / "events.jsonl").read_text()
    go(run, tmp_path / "local")
    assert same(parameters(tmp_path / "ray", 3), parameters(tmp_path / "local", 3))


def test_a_cluster_too_small_says_what_was_asked_and_what_there_is(small_sd):
    with pytest.raises(ClusterError, match="CPU: asked for 4"):
        connect(small.run(small_sd, workers__samplers="{workers: 40, cpus: 1}"))


def test_an_error_in_a_worker_arrives_as_it_was_raised(small_sd, tmp_path):
    run = small.run(small_sd, rewards="[{kind: 'tests.test_train:Failing', options: {every: 1}}]")
    stages = connect(run)
    try:
        with pytest.raises(RewardError, match="the scorer hung up"):
            go(run, tmp_path / "ray", stages=stages)
    finally:
        stages.close()


def test_a_worker_that_cannot_start_is_an_error_that_says_why(small_sd, tmp_path):
    import shutil

    copy = shutil.copytree(small_sd, tmp_path / "small-sd-broken")
    (copy / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut short")
    with pytest.raises(PcpoError, match="cannot be loaded"):
        connect(small.run(copy))


def test_closing_leaves_no_worker_behind(small_sd):
    run = small.run(small_sd)
    stages = connect(run)
    pids = ray.get([actor.ready.remote() for actor in stages.actors], timeout=60)
    stages.close()
    stages.close()
    deadline = time.monotonic() + 30
    while alive := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"still there: {alive}"
        time.sleep(0.1)


def test_the_store_says_which_versions_it_holds():
    store = ray.remote(actors.WeightStore).options(num_cpus=0).remote(gpus=0)
    with pytest.raises(Exception, match=r"asked for \(version, averaged\) \(7, False\)"):
        ray.get(store.find.remote((7, False)), timeout=60)
    ray.kill(store)


def test_the_driver_never_holds_latents(small_sd):
    run = small.run(small_sd)
    stages = connect(run)
    try:
        stages.learner.publish()
        prompts, _ = runs.sources(run)
        from pcpo_ray.trajectory import Task

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
