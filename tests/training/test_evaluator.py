"""Evaluator: evaluations while a run trains, made once each, of the weights that count, with the images kept."""

import json
import signal

import numpy as np
import pytest
from PIL import Image

from pcpo_ray.errors import RolloutsLostError
from pcpo_ray.runs import checkpoints
from pcpo_ray.training import evaluation
from pcpo_ray.training.local import LocalStages
from pcpo_ray.training.recorder import Recorder
from tests.support import small
from tests.support.checksums import checksum
from tests.support.running import go, parameters, same


@pytest.mark.parametrize("stopped", [2, 4])
def test_an_evaluation_due_when_a_run_was_stopped_is_made_on_resume(small_sd, tmp_path, stopped):
    run = small.run(small_sd, steps=4, evaluation__every=2, checkpoints__every=4)
    stages = LocalStages(run)
    learn = stages.learner.learner.update

    def signalled(step, batch):
        if step == stopped:
            signal.raise_signal(signal.SIGINT)
        return learn(step, batch)

    stages.learner.learner.update = signalled
    with pytest.raises(KeyboardInterrupt):
        go(run, tmp_path / "run", stages=stages)
    recorder = go(run, tmp_path / "run", found=True)
    rows = {(row["kind"], row["step"]): row for row in recorder.metrics()}
    assert [step for kind, step in rows if kind == "evaluation"] == [0, 2, 4]
    whole = go(run, tmp_path / "whole")
    for row in whole.metrics():
        if row["kind"] == "evaluation":
            assert rows["evaluation", row["step"]]["rewards"] == row["rewards"]


def test_evaluations_and_the_exported_adapter_use_the_ema(small_sd, tmp_path):
    from safetensors.torch import load_file

    run = small.run(small_sd, steps=2, optimizer__average=0.9)
    go(run, tmp_path / "run")
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    published = [(event["version"], event["averaged"]) for event in events if event["kind"] == "published"]
    assert published == [(0, False), (0, True), (1, False), (2, False), (2, True)]
    found = checkpoints.folder_for(tmp_path / "run", 2)
    saved = checkpoints.read(found)
    assert not same(saved.parameters, saved.averaged)
    exported = sorted(
        value.flatten().tolist() for value in load_file(found / "pytorch_lora_weights.safetensors").values()
    )
    assert exported == sorted(value.flatten().tolist() for value in saved.averaged.values())
    sums = {(e["version"], e["averaged"]): e["checksum"] for e in events if e["kind"] == "published"}
    assert sums[2, True] == checksum(saved.averaged) != sums[2, False] == checksum(saved.parameters)
    go(small.run(small_sd, steps=2), tmp_path / "plain")
    assert same(parameters(tmp_path / "run", 2), parameters(tmp_path / "plain", 2))


def kept_images(folder):
    names = (path.relative_to(folder / "images").parts for path in sorted((folder / "images").rglob("*.png")))
    return [(int(step.removeprefix("step-")), int(name[:3])) for step, name in names]


def test_every_evaluation_keeps_images_and_shows_them_to_the_trackers(small_sd, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "SHOWN", 2)
    shown = {}
    monkeypatch.setattr(Recorder, "show", lambda self, step, images: shown.update({step: images}))
    run = small.run(small_sd, steps=2, evaluation__count=4, evaluation__images=1, evaluation__every=1)
    go(run, tmp_path / "run")
    assert kept_images(tmp_path / "run") == [(0, n) for n in range(4)] + [(1, 0), (1, 2)] + [(2, n) for n in range(4)]
    assert list(shown) == [0, 1, 2] and [len(images) for images in shown.values()] == [2, 2, 2]
    assert shown[0].keys() == shown[1].keys() == shown[2].keys()
    (first, *_) = shown[1].values()
    with Image.open(tmp_path / "run" / "images" / "step-000001" / "000-00.png") as stored:
        assert (np.asarray(stored) == first).all()


def test_images_that_are_gone_on_the_way_cost_no_evaluation(small_sd, tmp_path):
    run = small.run(small_sd, steps=2, evaluation__count=1, evaluation__every=1)
    stages = LocalStages(run)
    fetch, calls = stages.fetch, []

    def fetching(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise RolloutsLostError("images are gone")
        return fetch(handle)

    stages.fetch = fetching
    recorder = go(run, tmp_path / "run", stages=stages)
    assert [row["step"] for row in recorder.metrics() if row["kind"] == "evaluation"] == [0, 1, 2]
    assert {step for step, _ in kept_images(tmp_path / "run")} == {0, 2} and len(calls) == 3
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    told = [event["message"] for event in events if event["kind"] == "trouble"]
    assert told == ["images are gone; the evaluation of step 1 keeps no images"]


def test_images_that_are_gone_before_they_are_kept_are_made_again(small_sd, tmp_path):
    run = small.run(small_sd, steps=1, sampling__steps=2, evaluation__count=1, evaluation__every=100)
    stages = LocalStages(run)
    fetch, lost = stages.fetch, [RolloutsLostError("images are gone")]

    def fetching(handle):
        if lost:
            raise lost.pop()
        return fetch(handle)

    stages.fetch = fetching
    go(run, tmp_path / "run", stages=stages)
    go(run, tmp_path / "whole")
    here, there = (sorted((tmp_path / name / "images").rglob("*.png")) for name in ("run", "whole"))
    assert [path.read_bytes() for path in here] == [path.read_bytes() for path in there] and len(here) == 4
