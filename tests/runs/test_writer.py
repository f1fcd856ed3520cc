"""One writer a run: who lives on this machine is not disturbed, and who was taken over writes nothing more."""

import dataclasses
import errno
import fcntl
import json
import os
import subprocess
import sys
import time

import pytest

from pcpo_ray.commands import opening
from pcpo_ray.config import files
from pcpo_ray.data.updates import DriverState
from pcpo_ray.errors import RunError, TakenOverError
from pcpo_ray.runs import disk, writer
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training.recorder import Recorder
from tests.support import small
from tests.support.running import saved

HOLD = """
import sys, time
from pathlib import Path
from pcpo_ray.runs import writer
writer.take(Path(sys.argv[1]), writer.Token.new())
print("held", flush=True)
time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that writes a run's folder; it is killed at the end."""
    started = []

    def start(folder):
        folder.mkdir(exist_ok=True)
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(30)


def taken_over(folder):
    """As if a process of another machine had resumed the run."""
    other = dataclasses.replace(writer.Token.new(), host="elsewhere", machine="another", pid=7)
    disk.replace(folder / writer.WRITER, other.text)


@pytest.fixture
def recorder(tmp_path):
    return Recorder.create(LocalFolder(local=tmp_path / "run"), small.run(tmp_path / "nowhere"))


def test_a_second_process_here_is_refused_until_the_first_is_killed(tmp_path, holder):
    folder = tmp_path / "run"
    process = holder(folder)
    before = (folder / writer.WRITER).read_bytes()
    with pytest.raises(
        RunError, match=rf"run is being written by process {process.pid} on .* \(since .*\); wait for its end"
    ):
        LocalFolder(local=folder).claim()
    assert (folder / writer.WRITER).read_bytes() == before
    process.kill()
    process.wait(30)
    home = LocalFolder(local=folder).claim()
    home.check()
    assert writer.read(folder).pid == os.getpid()


def test_resume_of_a_run_under_way_is_refused_and_changes_nothing(small_sd, tmp_path, holder):
    run = small.run(small_sd)
    Recorder.create(LocalFolder(local=tmp_path / "run"), run)
    saved(tmp_path / "run", 1)
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(tmp_path / "run"), str(copy)], check=True)
    holder(copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="copy is being written by process"):
        opening.resume(LocalFolder(local=copy), run, lambda line: None)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_who_was_taken_over_from_another_machine_writes_nothing_more(recorder):
    recorder.record("train", 1, {"loss": 1.0})
    saved(recorder.folder, 1), saved(recorder.folder, 2)
    taken_over(recorder.folder)
    before = {path: path.read_bytes() for path in recorder.folder.rglob("*") if path.is_file()}
    home = recorder.home
    for write in (
        lambda: recorder.record("train", 2, {"loss": 1.0}),
        lambda: recorder.event("fault", message="late"),
        lambda: recorder.samples("scores.parquet", 2, {"step": [2]}),
        lambda: recorder.write_images(2, {}),
        lambda: recorder.rewind(0),
        lambda: home.prune(1, 99),
        lambda: home.set_aside_after(0),
        home.discard,
        home.here().check,
    ):
        with pytest.raises(
            TakenOverError, match=r"process 7 on elsewhere .* has taken over the run .*writes nothing more"
        ):
            write()
    assert {path: path.read_bytes() for path in recorder.folder.rglob("*") if path.is_file()} == before


def test_a_checkpoint_under_way_when_the_run_is_taken_over_gets_no_name(small_sd, tmp_path):
    from pcpo_ray.training.local import LocalStages

    run = small.run(small_sd)
    home = Recorder.create(LocalFolder(local=tmp_path / "run"), run).home
    learner = LocalStages(run).learner
    save = learner.learner.policy.denoiser.save

    def slowly(folder, weights):
        taken_over(home.local)
        save(folder, weights)

    learner.learner.policy.denoiser.save = slowly
    with pytest.raises(TakenOverError, match="has taken over"):
        learner.save(home, DriverState(step=0))
    assert list((home.local / "checkpoints").iterdir()) == []


def test_another_machines_lock_or_a_disk_without_locks_is_no_obstacle(tmp_path, holder, monkeypatch):
    folder = tmp_path / "run"
    holder(folder)
    taken_over(folder)
    home = LocalFolder(local=folder).claim()
    assert writer.read(folder).id == home.writer

    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    again = LocalFolder(local=folder).claim()
    again.check()
    with pytest.raises(TakenOverError):
        home.check()


def test_a_run_whose_token_is_gone_or_on_another_nodes_disk_says_so(recorder):
    (recorder.folder / writer.WRITER).unlink()
    for write in (lambda: recorder.event("fault", message="x"), recorder.home.here().check):
        with pytest.raises(RunError, match=r"run has no \.writer here .*have runs lie on storage that all nodes share"):
            write()


def test_a_stale_handle_is_opened_again(tmp_path, monkeypatch):
    writer.take(tmp_path, writer.Token.new())
    read, failed = type(tmp_path).read_bytes, []

    def stale(path):
        if not failed:
            failed.append(path)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(path)

    monkeypatch.setattr(type(tmp_path), "read_bytes", stale)
    assert writer.read(tmp_path).pid == os.getpid()


def start(order, until, path):
    """The command, once a file says that."""
    process = subprocess.Popen(order, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 250
    while not (path.is_file() and until in path.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.1)
    return process


@pytest.mark.chaos
def test_a_second_resume_is_refused_but_goes_on_at_once_after_a_kill(small_sd, tmp_path):
    path, folder = tmp_path / "mine.yaml", tmp_path / "runs" / "mine"
    path.write_text(files.dump(small.run(small_sd, steps=400, name="mine", evaluation__every=1000)))
    order = [
        sys.executable,
        "-m",
        "pcpo_ray.commands.app",
        "train",
        str(path),
        "--local",
        "--runs",
        str(tmp_path / "runs"),
    ]
    first = start(order, '"checkpoint"', folder / "events.jsonl")
    try:
        second = subprocess.run([*order, "--resume"], capture_output=True, text=True, timeout=120)
        assert second.returncode == 1 and f"is being written by process {first.pid} on" in second.stderr
        assert first.poll() is None
    finally:
        first.kill()
        first.wait(30)
    third = start([*order, "--resume"], '"resumed"', folder / "events.jsonl")
    third.kill()
    third.wait(30)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert steps == list(range(1, len(steps) + 1))


def test_a_killed_writer_is_gone_and_one_that_lives_or_is_elsewhere_is_not(tmp_path):
    assert not writer.is_gone(tmp_path)  # nobody has written it
    code = (
        "import sys, time; from pathlib import Path; from pcpo_ray.runs import writer; "
        "writer.take(Path(sys.argv[1]), writer.Token.new()); print('taken', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "taken\n"
        assert not writer.is_gone(tmp_path)
    finally:
        other.kill()
        other.wait()
    assert writer.is_gone(tmp_path)
    token = writer.read(tmp_path)
    assert token is not None
    (tmp_path / writer.WRITER).write_text(dataclasses.replace(token, machine="another").text)
    assert not writer.is_gone(tmp_path)


def test_a_folder_that_this_process_writes_is_not_gone(tmp_path):
    writer.take(tmp_path, writer.Token.new())
    assert not writer.is_gone(tmp_path)
