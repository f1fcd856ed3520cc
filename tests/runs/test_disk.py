"""A run that cannot write its folder says where and why, ends, and goes on once that is fixed."""

import errno
import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from pcpo_ray.config import files
from pcpo_ray.errors import RunError
from pcpo_ray.runs import checkpoints, disk
from pcpo_ray.runs.disk import writing
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training.recorder import Recorder
from tests.support import small


def test_another_error_than_the_disks_stays_what_it_is(tmp_path):
    with pytest.raises(ValueError, match="a bug"), writing(tmp_path):
        raise ValueError("a bug")


def test_a_cause_without_a_known_remedy_is_told_too(tmp_path):
    message = r"rows.jsonl cannot be written: Input/output error; fix that"
    with pytest.raises(RunError, match=message), writing(tmp_path / "rows.jsonl"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_every_record_on_a_full_disk_is_an_error_that_names_it(small_sd, tmp_path):
    recorder = Recorder.create(LocalFolder(local=tmp_path / "run"), small.run(small_sd))
    for name in ("metrics.jsonl", "events.jsonl"):
        (recorder.folder / name).symlink_to("/dev/full")
    for record, name in (
        (lambda: recorder.record("train", 1, {"loss": 1.0}), "metrics.jsonl"),
        (lambda: recorder.event("fault", message="sampler-0 is gone"), "events.jsonl"),
    ):
        with pytest.raises(RunError, match=rf"run/{name} cannot be written: No space left on device; free some space"):
            record()


def test_a_file_in_the_way_of_a_folder_is_named(small_sd, tmp_path):
    recorder = Recorder.create(LocalFolder(local=tmp_path / "run"), small.run(small_sd))
    for name in ("scores.parquet", "images"):
        (recorder.folder / name).write_text("in the way")
    with pytest.raises(RunError, match=r"scores.parquet/step-000001.parquet cannot be written"):
        recorder.samples("scores.parquet", 1, {"reward": [1.0]})
    with pytest.raises(RunError, match=r"images/step-000001 cannot be written"):
        recorder.write_images(1, {0: np.zeros((1, 8, 8, 3), np.uint8)})


def train(path, runs, *words, bound=(), **options):
    command = [
        *bound,
        sys.executable,
        "-m",
        "pcpo_ray.commands.app",
        "train",
        str(path),
        "--local",
        "--runs",
        str(runs),
        *words,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


@pytest.mark.chaos
def test_a_disk_that_takes_no_more_ends_the_run_which_goes_on_later(small_sd, tmp_path):
    path, runs = tmp_path / "small.yaml", tmp_path / "runs"
    path.write_text(files.dump(small.run(small_sd, checkpoints__every=2)))
    limit = 9000  # bytes a file: enough for all but the optimizer's

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = train(path, runs, preexec_fn=limited)
    assert done.returncode == 1, done.stdout
    message = done.stderr.splitlines()[-1]
    saved = checkpoints.folder_for(runs / "small", 2)
    assert message.startswith(f"error: {saved} cannot be written: "), done.stderr
    assert "File too large" in message and message.endswith("then go on with --resume")
    assert "Traceback" not in done.stderr
    assert not list(saved.parent.iterdir())
    done = train(path, runs, "--resume")
    assert done.returncode == 0 and (saved / "state.json").is_file(), done.stderr


@pytest.mark.chaos
def test_a_folder_not_writable_is_named_before_anything_is_loaded(small_sd, tmp_path):
    bound = ["setpriv", "--bounding-set=-dac_override"] if os.getuid() == 0 else []  # root is bound by permissions too
    path, runs = tmp_path / "small.yaml", tmp_path / "runs"
    path.write_text(files.dump(small.run(small.hollow(small_sd, tmp_path / "small-sd"))))
    runs.mkdir(mode=0o555)
    done = train(path, runs, bound=bound)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: the run folder {runs}/small cannot be made: [Errno 13] Permission denied: '{runs}/small'"
    )
    runs.chmod(0o755)
    (runs / "small").mkdir()
    (runs / "small" / "config.yaml").write_text(path.read_text())
    (runs / "small" / "events.jsonl").touch()
    (runs / "small").chmod(0o555)
    done = train(path, runs, "--resume", bound=bound)
    assert done.returncode == 1
    assert f"error: {runs}/small cannot be written: Permission denied" in done.stderr
    assert "let this user write there" in done.stderr and "Traceback" not in done.stderr


def test_a_line_and_a_file_are_on_the_disk_before_anything_counts_on_them(small_sd, tmp_path, monkeypatch):
    recorder = Recorder.create(LocalFolder(local=tmp_path / "run"), small.run(small_sd))
    folder = str(recorder.folder)
    done = small.watch_disk(monkeypatch)
    recorder.record("train", 1, {"loss": 1.0})
    assert done == [("sync", f"{folder}/metrics.jsonl"), ("sync", folder)]
    done.clear()
    recorder.record("train", 2, {"loss": 1.0})
    recorder.event("fault", message="x")
    assert [path for _, path in done[:2]] == [f"{folder}/metrics.jsonl", f"{folder}/events.jsonl"]
    for write, name in (
        (lambda: recorder.samples("scores.parquet", 1, {"step": [1]}), "scores.parquet/step-000001.parquet"),
        (lambda: recorder.write_images(1, {0: np.zeros((1, 8, 8, 3), np.uint8)}), "images/step-000001"),
        (lambda: recorder.rewind(1), "metrics.jsonl"),
    ):
        done.clear()
        write()
        renamed = next(
            n for n, (kind, path) in enumerate(done) if kind == "rename" and path.endswith(f"-> {folder}/{name}")
        )
        made = done[renamed][1].partition(" -> ")[0]
        assert [kind for kind, path in done[:renamed] if path.startswith(made)][-1] == "sync"
        assert done[renamed + 1] == ("sync", str((recorder.folder / name).parent))


def test_half_a_line_does_not_stay_to_swallow_the_next_one(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    disk.append(path, '{"a": 1}')
    fsync = os.fsync

    def full(file):
        os.ftruncate(file, os.fstat(file).st_size - 3)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"rows\.jsonl cannot be written: No space left"):
        disk.append(path, '{"b": 2}')
    monkeypatch.setattr(os, "fsync", fsync)
    disk.append(path, '{"c": 3}')
    assert path.read_text() == '{"a": 1}\n{"c": 3}\n'


def test_a_file_that_is_not_whole_replaces_none_and_leaves_nothing(tmp_path):
    path = tmp_path / "page"
    disk.replace(path, "good")
    with pytest.raises(RunError, match="page cannot be written"), disk.replacing(path) as made:
        made.write_text("ha")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_text() == "good" and list(tmp_path.iterdir()) == [path]


REFUSED = """
import resource, sys
from pathlib import Path
from pcpo_ray.errors import RunError
from pcpo_ray.runs import disk
path, most = Path(sys.argv[1]), resource.RLIM_INFINITY
disk.append(path, "first")
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, most))
try:
    disk.append(path, "x" * 3000)
except RunError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
disk.append(path, "third")
"""


def test_of_a_line_that_a_disk_takes_in_part_nothing_stays(tmp_path):
    path = tmp_path / "rows.jsonl"
    done = subprocess.run([sys.executable, "-c", REFUSED, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "rows.jsonl cannot be written" in done.stdout, done.stderr
    assert path.read_text() == "first\nthird\n"
