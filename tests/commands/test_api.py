"""The package from Python: typed results, callbacks, and a process that is left as it was."""

import asyncio
import logging
import math
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

import pcpo_ray
from pcpo_ray import config
from pcpo_ray.commands import api
from pcpo_ray.config import files
from pcpo_ray.errors import RunError
from pcpo_ray.runs import checkpoints, ends, lines
from tests.support import small

EVEN = """
class Even:
    def score(self, images, prompts):
        return images.mean((1, 2, 3))
"""


@pytest.fixture
def asked(small_sd, tmp_path, monkeypatch):
    """A small run, and a working folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return small.run(small_sd)


def train(asked, *overrides, **options):
    return pcpo_ray.train(asked, *overrides, local=True, quiet=True, **options)


@pytest.fixture(scope="module")
def done(small_sd, tmp_path_factory):
    """A finished run and the records that its callback saw."""
    seen = []
    runs = tmp_path_factory.mktemp("runs")
    found = pcpo_ray.train(small.run(small_sd), local=True, quiet=True, runs=runs, callbacks=seen.append)
    return found, seen


def test_a_run_returns_what_it_left_as_typed_values(done):
    run, _ = done
    assert (run.name, run.ending, run.step, run.alarm) == ("small", "finished", 2, None)
    assert [type(step) for step in run.metrics] == [pcpo_ray.StepRecord] * 2
    assert all(step.samples == 12 * step.step and step.loss is not None for step in run.metrics)
    assert [evaluation.step for evaluation in run.evaluations] == [0, 2]
    assert run.evaluations[1].rewards["jpeg_compressibility"]["mean"] < 0
    assert run.checkpoint == run.folder / "checkpoints" / "step-000002" and run.adapter == run.checkpoint
    assert run.report == run.folder / "report.html" and run.report.is_file()
    assert run.verdict.text and run.config == small.run(Path(run.config.model.path))
    assert repr(run) == f"RunResult({run.place!r}: finished after step 2 of 2)"


def test_the_images_of_evaluations_come_with_prompt_and_scores(done):
    images = done[0].images
    assert {step: len(kept) for step, kept in images.items()} == {0: 4, 2: 4}
    first = images[2][1]
    assert (first.step, first.position, first.sample) == (2, 0, 1) and first.prompt.startswith("a ")
    assert first.open().size == (16, 16) and first._repr_png_().startswith(b"\x89PNG")
    mean = sum(image.scores["jpeg_compressibility"] for image in images[2]) / 4
    assert mean == pytest.approx(done[0].evaluations[1].rewards["jpeg_compressibility"]["mean"])


def test_a_callback_sees_each_record_once_it_is_recorded(done):
    run, seen = done
    assert [(record.kind, record.step) for record in seen] == [
        ("evaluation", 0),
        ("train", 1),
        ("train", 2),
        ("evaluation", 2),
    ]
    assert [record.reward_mean for record in seen if record.kind == "train"] == [
        step.reward_mean for step in run.metrics
    ]


def test_a_run_is_loaded_from_its_folder_evaluated_and_sampled(done, tmp_path):
    run, _ = done
    loaded = pcpo_ray.load_run(run.folder)
    assert pcpo_ray.load_run(run) is run
    assert loaded.config == run.config and [r.step for r in loaded.metrics] == [1, 2]
    found = pcpo_ray.evaluate(loaded, "evaluation.count=3", {"evaluation.images": 1}, local=True, quiet=True)
    assert (found.step, found.prompts, found.images, found.config.evaluation.count) == (2, 3, 3, 3)
    estimate = found.rewards["jpeg_compressibility"]
    assert estimate.mean < 0 and math.isnan(estimate.low) and not estimate.bounded
    drawn = pcpo_ray.sample(run, "a ring", images=2, seed=1, quiet=True)
    assert [image.size for image in drawn.images] == [(16, 16)] * 2
    drawn.save(tmp_path / "x.png")
    with pytest.raises(RunError, match=r"x\.png is there already; give another name, such as .*x-2\.png, or delete it"):
        drawn.save(tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").width > 2 * 160 and drawn._repr_png_().startswith(b"\x89PNG")
    both = pcpo_ray.sample(run, "a ring", images=2, seed=1, compare=True, quiet=True)
    assert (both.rows, drawn.rows) == (["before training", "after step 2"], ["after step 2"])
    assert (both.cells[1][0] == drawn.cells[0][0]).all() and (both.cells[0][0] != drawn.cells[0][0]).any()
    grid = pcpo_ray.sample(run, "a ring", images=1, strength=[0, 1], also={loaded: 0.5}, quiet=True)
    assert (grid.rows, grid.columns) == (["small 0", "small 1"], ["small 0.5"]) and len(grid.images) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"strength": "0,1"}, "got the strength '0,1'; expected a number, or a list of numbers"),
        ({"images": 0}, "got images=0; expected an integer >= 1"),
        ({"prompt": ["a ring"]}, "expected one text: call sample once for each prompt"),
    ],
)
def test_what_cannot_be_sampled_is_refused_in_words(done, options, told):
    with pytest.raises(pcpo_ray.PcpoError, match=told):
        pcpo_ray.sample(done[0], **{"prompt": "a ring", **options}, quiet=True)


def test_a_folder_without_a_run_is_named_with_the_runs_beside_it(done, tmp_path):
    with pytest.raises(pcpo_ray.PcpoError, match=r"there is no run at .*nope; there are .*small"):
        pcpo_ray.load_run(done[0].folder.with_name("nope"))
    (tmp_path / "metrics.jsonl").write_text(lines.text({"kind": "train", "step": 1, "time": 0.0}) + "\n")
    (tmp_path / "config.yaml").write_text((done[0].folder / "config.yaml").read_text())
    with pytest.raises(pcpo_ray.PcpoError, match=r"by another version of pcpo_ray: step 1: .*reward_mean"):
        _ = pcpo_ray.load_run(tmp_path).metrics


def test_a_callback_stops_a_run_which_the_same_call_continues(asked):
    def at_one(record):
        return pcpo_ray.STOP if record.kind == "train" else True  # what is not STOP is ignored

    run = train(asked, callbacks=[at_one, lambda record: None])
    assert (run.ending, run.step, run.checkpoint.name) == ("stopped", 1, "step-000001")
    onward = []
    run = train(asked, callbacks=onward.append, resume=True)
    assert (run.ending, run.step) == ("finished", 2)
    assert [(record.kind, record.step) for record in onward] == [("train", 2), ("evaluation", 2)]


def test_a_callback_that_changes_the_working_folder_costs_a_run_nothing(asked, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    here, seen = os.getcwd(), []

    def leave(record):
        os.chdir(tmp_path / "elsewhere")
        seen.append(record.kind)

    run = train(asked, callbacks=leave)
    assert (run.ending, os.getcwd(), seen.count("train")) == ("finished", here, 2)


def test_an_error_of_a_callback_ends_the_run_with_a_checkpoint(asked):
    def broken(record):
        return record.nothing

    with pytest.raises(AttributeError, match="nothing"):
        train(asked, callbacks=broken)
    left = pcpo_ray.load_run("runs/small")
    assert (left.ending, left.checkpoint.name) == ("failed", "step-000000")


def test_a_run_that_its_monitors_ended_raises_and_can_be_loaded(asked):
    keys = {"monitors": {"action": "stop", "patience": 1}, "evaluation.every": 1, "evaluation.count": 6}
    rewards, watched = ([{"kind": f"tests.support.custom:{name}"}] for name in ("Praise", "Spoilt"))
    with pytest.raises(pcpo_ray.AlarmError, match="the run has stopped after step"):
        train(asked, keys, {"evaluation.rewards": watched}, rewards=rewards, steps=4)
    left = pcpo_ray.load_run("runs/small")
    assert left.ending == "stopped" and "has stopped" in str(left.alarm)


def test_two_runs_in_one_process_each_have_their_own_precision(asked):
    for precision in ("bf16", "no"):
        run = train(asked, {"optimizer.mixed_precision": precision}, steps=1, name=precision)
        assert run.config.optimizer.mixed_precision == precision and run.step == 1
    from accelerate.state import AcceleratorState

    assert AcceleratorState._shared_state == {}


def in_a_notebook(asked, seen):
    """Train in a thread that runs an event loop, as a notebook's kernel may."""

    async def cell():
        seen.append(train(asked, steps=1))

    asyncio.run(cell())


@pytest.mark.parametrize("thread", [False, True])
def test_a_notebook_keeps_its_process_as_it_was(asked, thread, monkeypatch):
    def settings():
        return {
            "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
            "dtype": torch.get_default_dtype(),
            "threads": torch.get_num_threads(),
            "path": list(sys.path),
            "handlers of loggers": list(logging.root.handlers),
            "level": logging.getLogger("diffusers").level,
            "random": torch.random.get_rng_state().tolist(),
            "hook": sys.unraisablehook,
        }

    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("mine.py").write_text(EVEN)
    asked = files.changed(asked, ["rewards=[{kind: 'mine:Even'}]", "workers.learner.threads=2"])
    torch.set_default_dtype(torch.float64)  # a run computes as it always does
    try:
        before, seen = settings(), []
        if thread:
            worker = threading.Thread(target=in_a_notebook, args=(asked, seen))
            worker.start()
            worker.join(120)
        else:
            in_a_notebook(asked, seen)
        after = settings()
    finally:
        torch.set_default_dtype(torch.float32)
        sys.modules.pop("mine", None)
    assert [run.step for run in seen] == [1]
    saved = checkpoints.read(seen[0].checkpoint)
    assert {value.dtype for value in saved.parameters.values()} == {torch.float32}
    assert {name: value for name, value in after.items() if value != before[name]} == {}


def test_overrides_are_texts_mappings_and_keywords(small_sd, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(files.dump(small.run(small_sd)))
    given = ["steps=7", {"optimizer.learning_rate": 1e-05, "model.train": config.Lora(rank=4)}]
    keys = {"name": "yes", "model.path": Path(small_sd), "rewards": [{"kind": "grain"}], "trackers": ()}
    for source in (path, str(path), small.run(small_sd), files.plain(small.run(small_sd))):
        run = api._read(source, [*api._texts(given), *files.as_overrides(keys)])
        assert (run.name, run.steps, run.optimizer.learning_rate) == ("yes", 7, 1e-5)
        assert run.model.train.rank == 4 and run.rewards[0].kind == "grain"


@pytest.mark.parametrize(
    ("overrides", "keys", "message"),
    [
        ((), {"stpes": 3}, r"stpes: unknown key \(did you mean 'steps'\?\)"),
        (("steps=3",), {"steps": 4}, "steps=3 and steps=4 both set steps"),
        ((), {"resume": "maybe"}, "got resume='maybe'; expected True, False or 'if_started'"),
        ((), {"model": object()}, "model: got <object object .*expected a number, a text"),
        (
            (),
            {"callback": print},
            r"callback: unknown key \(did you mean callbacks=\?\); expected an option, of local, ",
        ),
        ((), {"callbacks": [print, "x"]}, "got the callback 'x'; expected a function of a record"),
        ((), {"rewards": Path}, "goes by its import path, as in rewards='pathlib[^']*:Path'"),
        ((), {"on_step": print}, "on_step: unknown key; expected an option, of local, resume, runs, callbacks"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_starts(asked, overrides, keys, message):
    with pytest.raises(pcpo_ray.PcpoError, match=message):
        pcpo_ray.train(asked, *overrides, local=True, quiet=True, **keys)
    assert not Path("runs").exists()


def test_a_run_says_nothing_if_quiet_and_what_goes_on_otherwise(asked, capsys):
    train(asked, steps=1)
    assert capsys.readouterr().out == ""
    pcpo_ray.train(asked, steps=1, name="loud", local=True)
    assert "step 1/1: reward" in capsys.readouterr().out


def test_every_name_of_the_package_is_there_and_no_other():
    assert {*pcpo_ray.__all__} <= {*dir(pcpo_ray)}
    assert all(getattr(pcpo_ray, name) is not None for name in pcpo_ray.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        _ = pcpo_ray.Trainer


def test_a_run_interrupted_while_its_workers_start_has_stopped(asked, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pcpo_ray.commands.train._start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(asked)
    assert ends.ending(tmp_path / "runs" / "small") == {"state": "stopped", "error": ""}
    assert train(asked, resume=True).step == asked.steps
