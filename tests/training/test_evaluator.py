"""Evaluator: evaluations while a run trains, made once each, of the weights that count, with the images kept."""

import json
import signal

import pytest

from pcpo_ray.errors import RolloutsLostError
from pcpo_ray.runs import checkpoints
from pcpo_ray.training.local import LocalStages
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
