"""The run folder can be read while a run goes on, after it was killed, and without this package."""

import dataclasses
import io
import json
import math
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from pcpo_ray.config import files
from pcpo_ray.errors import RunError, TakenOverError
from pcpo_ray.runs import disk, look, writer
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training import trackers
from pcpo_ray.training.recorder import Recorder
from tests.support import small


@pytest.fixture
def run(small_sd):
    return small.run(small_sd)


@pytest.fixture
def recorder(run, tmp_path):
    return Recorder.create(LocalFolder(local=tmp_path / "runs" / "small"), run)


def events(recorder):
    return [json.loads(line) for line in (recorder.folder / "events.jsonl").read_text().splitlines()]


def test_a_new_folder_holds_the_resolved_config(recorder, run):
    assert files.load(recorder.folder / "config.yaml") == run


def test_a_folder_that_exists_is_refused_and_left_as_it_is(recorder, run):
    before = (recorder.folder / "config.yaml").read_bytes()
    with pytest.raises(RunError, match=r"small exists; continue it with --resume .*, give another name"):
        Recorder.create(LocalFolder(local=recorder.folder), small.run(Path("elsewhere"), steps=9))
    assert (recorder.folder / "config.yaml").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_a_named_error(run, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunError, match="cannot be made"):
        Recorder.create(LocalFolder(local=tmp_path / "file" / "small"), run)


def test_lines_are_there_as_soon_as_they_are_recorded_nan_included(recorder):
    recorder.record("train", 1, {"loss": 0.5, "idle": {"samplers": 0.25}})
    recorder.record("train", 2, {"loss": math.nan})
    first, second = recorder.metrics()
    assert (first["kind"], first["step"], first["loss"], first["idle"]) == ("train", 1, 0.5, {"samplers": 0.25})
    assert math.isnan(second["loss"])
    recorder.event("fault", message="sampler-1 died")
    assert [(row["kind"], row["message"]) for row in events(recorder)] == [("fault", "sampler-1 died")]


def test_nan_is_null_in_the_files_and_stays_so_after_a_resume(recorder, run):
    recorder.record("train", 1, {"reward_mean": math.nan, "rewards": {"a": math.inf}})
    recorder.event("missing", score=math.nan)
    Recorder.reopen(recorder.home, run, 1)
    for name in ("metrics.jsonl", "events.jsonl"):
        text = (recorder.folder / name).read_text()
        assert "null" in text and "NaN" not in text and "Infinity" not in text
    assert math.isnan(recorder.metrics()[0]["rewards"]["a"])


@pytest.mark.parametrize("bad", [b"\0" * 300, b'{"kind": "train", "step": 2, "lo', b"\xff\xfe"])
def test_lines_damaged_by_a_power_cut_are_named_kept_aside_and_end_nothing(recorder, run, bad):
    for step in (1, 2, 3):
        recorder.record("train", step, {"loss": step})
        recorder.event("published", version=step)
    for name in ("metrics.jsonl", "events.jsonl"):
        path = recorder.folder / name
        first, _, *rest = path.read_bytes().split(b"\n")
        path.write_bytes(b"\n".join([first, bad, *rest]))
    before = (recorder.folder / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2: not what a run records.*; --resume goes on without"):
        recorder.metrics()
    again = Recorder.reopen(recorder.home, run, 3)
    assert [row["step"] for row in again.metrics()] == [1, 3]
    assert [row["version"] for row in events(again) if row["kind"] == "published"] == [1, 3]
    (kept,) = recorder.folder.glob("metrics.jsonl.damaged-*")
    assert kept.read_bytes() == before
    assert [f"{name}.jsonl, line 2" in line for name, line in zip(("metrics", "events"), again.repaired, strict=True)]
    assert [row["message"] for row in events(again) if row["kind"] == "damaged"] == again.repaired


def test_a_line_cut_short_by_a_kill_is_left_out_and_gone_after_a_resume(recorder, run):
    recorder.record("train", 1, {"loss": 1.0})
    recorder.event("published", version=1)
    for name in ("metrics.jsonl", "events.jsonl"):
        with (recorder.folder / name).open("a") as file:
            file.write('{"kind": "train", "step": 2, "lo')
    assert [row["step"] for row in recorder.metrics()] == [1]
    again = Recorder.reopen(recorder.home, run, 1)
    again.record("train", 2, {"loss": 2.0})
    again.event("published", version=2)
    assert [row["loss"] for row in again.metrics()] == [1.0, 2.0]
    assert [row["version"] for row in events(again)] == [1, 2]


def test_a_resumed_run_forgets_what_it_recorded_past_its_checkpoint(recorder, run):
    for step in (0, 1, 2, 3):
        recorder.record("train", step, {"loss": step})
        for dataset in ("scores.parquet", "evaluations.parquet"):
            recorder.samples(dataset, step, {"step": [step] * 2, "reward": [0.0, 1.0]})
    again = Recorder.reopen(recorder.home, run, 1)
    assert [row["step"] for row in again.metrics()] == [0, 1]
    for dataset in ("scores.parquet", "evaluations.parquet"):
        assert parquet.read_table(recorder.folder / dataset)["step"].to_pylist() == [0, 0, 1, 1]


def test_a_run_resumed_without_a_checkpoint_starts_with_empty_records(recorder, run):
    recorder.record("evaluation", 0, {"images": 4})
    recorder.samples("evaluations.parquet", 0, {"step": [0]})
    again = Recorder.reopen(recorder.home, run, -1)
    assert again.metrics() == []
    assert not list((recorder.folder / "evaluations.parquet").iterdir())


def test_samples_of_a_step_recorded_again_replace_the_old_ones(recorder):
    recorder.samples("scores.parquet", 1, {"reward": [1.0, math.nan]})
    recorder.samples("scores.parquet", 1, {"reward": [2.0, math.nan]})
    values = parquet.read_table(recorder.folder / "scores.parquet")["reward"].to_numpy()
    assert values[0] == 2.0
    assert np.isnan(values[1])
    assert [path.name for path in (recorder.folder / "scores.parquet").iterdir()] == ["step-000001.parquet"]


def test_images_are_stored_as_they_are_by_prompt_and_sample(recorder):
    groups = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)
    recorder.write_images(10, dict(enumerate(groups)))
    with Image.open(recorder.folder / "images" / "step-000010" / "001-02.png") as stored:
        assert np.array_equal(np.asarray(stored), groups[1, 2])
    assert len(list((recorder.folder / "images" / "step-000010").iterdir())) == 6


def test_a_tracker_that_is_not_installed_is_named(small_sd, tmp_path):
    recorder = Recorder.create(LocalFolder(local=tmp_path / "run"), small.run(small_sd, trackers="[aim]"))
    with pytest.raises(RunError, match="'aim' is not installed"):
        recorder.start_trackers()


def logged(file):
    """What a TensorBoard file holds: values by tag and step. A record is its length, a sum, its bytes and a sum."""
    from tensorboardX.proto.event_pb2 import Event

    data, place, found = file.read_bytes(), 0, {}
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        event = Event.FromString(data[place + 12 : place + 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        place += 12 + length + 4
    return found


def test_a_tracker_that_is_asked_for_gets_every_number_by_its_step(small_sd, tmp_path):
    recorder = Recorder.create(LocalFolder(local=tmp_path / "run"), small.run(small_sd, trackers="[tensorboard]"))
    recorder.start_trackers()
    recorder.record(
        "train", 1, {"loss": 0.5, "idle": {"samplers": 0.25}, "per_timestep": {"clip_fraction": [0.0, None]}}
    )
    recorder.record("train", 2, {"loss": 0.25, "kl": math.nan})
    recorder.close()
    (file,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    assert logged(file) == {
        ("train/loss", 1): 0.5,
        ("train/idle/samplers", 1): 0.25,
        ("train/per_timestep/clip_fraction/000", 1): 0.0,
        ("train/loss", 2): 0.25,
    }


def test_a_tracker_that_can_gets_the_images_of_an_evaluation_as_one_grid(small_sd, tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    recorder = Recorder.create(LocalFolder(local=tmp_path / "run"), small.run(small_sd, trackers="[tensorboard]"))
    recorder.start_trackers()
    recorder.show(4, {prompt: np.full((8, 8, 3), 100, np.uint8) for prompt in ("a cat", "a dog")})
    recorder.close()
    (file,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    data, place, found = file.read_bytes(), 0, []
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        event = Event.FromString(data[place + 12 : place + 12 + length])
        found += [(value.tag, event.step, value.image) for value in event.summary.value]
        place += 12 + length + 4
    ((tag, step, image),) = found
    assert (tag, step) == ("evaluation/images", 4) and image.height >= 8 and image.width >= 16
    with Image.open(io.BytesIO(image.encoded_image_string)) as shown:
        assert (np.asarray(shown)[2:6, 2:6] == 100).all()


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_trackers_with_captions_get_the_prompts(name, monkeypatch):
    logged = []
    library = types.SimpleNamespace(Image=lambda image, caption: (caption, image.shape))
    monkeypatch.setitem(sys.modules, name, library)
    tracker = types.SimpleNamespace(name=name, log=lambda values, step: logged.append((step, values)))
    trackers._show(tracker, 4, {"a cat": np.zeros((8, 8, 3), np.uint8)})
    assert logged == [(4, {"evaluation/images": [("a cat", (8, 8, 3))]})]


def test_a_tracker_without_images_is_given_none():
    trackers._show(types.SimpleNamespace(name="mlflow"), 4, {"a cat": np.zeros((8, 8, 3), np.uint8)})


def test_a_tracker_that_does_not_start_is_named_with_its_cause(small_sd, tmp_path, monkeypatch):
    from accelerate.tracking import TensorBoardTracker

    def start(self):
        raise ConnectionError("not logged in")

    monkeypatch.setattr(TensorBoardTracker, "start", start)
    recorder = Recorder.create(LocalFolder(local=tmp_path / "run"), small.run(small_sd, trackers="[tensorboard]"))
    with pytest.raises(RunError, match="'tensorboard' does not start: ConnectionError: not logged in"):
        recorder.start_trackers()


def test_a_start_that_was_killed_before_there_was_a_run_is_made_anew(run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    LocalFolder(local=folder).claim(new=True)
    (folder / "inputs.json").write_text("{}")
    (folder / ".config.yaml.0123.unfinished").write_text("cut")
    look.check_start(str(tmp_path), "run", resume=False)
    assert not look.is_run(folder)
    Recorder.create(LocalFolder(local=folder), run, began={})
    assert look.is_run(folder)
    with pytest.raises(RunError, match="exists; continue it with --resume"):
        look.check_start(str(tmp_path), "run", resume=False)


def test_a_start_deletes_no_run_that_another_machine_took_over(run, tmp_path, monkeypatch):
    folder, replace = tmp_path / "run", Recorder._replace

    def taken_over(recorder, name, text):
        token = dataclasses.replace(writer.Token.new(), machine="another")
        disk.replace(folder / writer.WRITER, token.text)
        replace(recorder, name, text)

    monkeypatch.setattr(Recorder, "_replace", taken_over)
    with pytest.raises(TakenOverError):
        Recorder.create(LocalFolder(local=folder), run, began={})
    assert (folder / writer.WRITER).exists()


def test_of_two_starts_at_once_the_later_one_deletes_nothing(run, tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def held(place):
        (place / writer.WRITER).write_text("the other's")
        raise RunError("is being written by process 1")

    monkeypatch.setattr(writer, "lock", held)
    with pytest.raises(RunError, match="is being written"):
        Recorder.create(LocalFolder(local=folder), run)
    assert (folder / writer.WRITER).read_text() == "the other's"
