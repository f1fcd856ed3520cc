"""Images with a run's adapter, and with several composed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pcpo_ray.commands import sample_grid, sample_options
from pcpo_ray.config import files
from pcpo_ray.data.seeds import generator
from pcpo_ray.data.updates import DriverState
from pcpo_ray.errors import RunError
from pcpo_ray.models import load
from pcpo_ray.models.policy import Policy
from pcpo_ray.runs import checkpoints
from tests.support import small
from tests.support.checkpointing import write_checkpoint

CPU = torch.device("cpu")


def silent(text, done, total):
    pass


@pytest.fixture
def made(small_sd, tmp_path):
    """Makes a run with one checkpoint, its adapter drawn from a seed."""

    def make(name, seed, **changes):
        run = small.run(small_sd, name=name, **changes)
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(files.dump(run))
        denoiser = load(run.model, run.sampling, seed=0, device=CPU)
        with torch.no_grad():
            for index, parameter in enumerate(denoiser.trainable().values()):
                parameter.normal_(0, 0.5, generator=generator(seed, index))
        write_checkpoint(
            checkpoints.folder_for(folder, 1),
            version=1,
            state=DriverState(step=1),
            parameters=denoiser.trainable(),
            averaged={},
            optimizer={"none": torch.zeros(1)},
            export=lambda into: None,
        )
        return folder

    return make


def test_a_composed_prediction_is_the_base_plus_what_each_adapter_changes(small_sd, made):
    saved = [
        checkpoints.read(checkpoints.folder_for(made(name, seed), 1)).best for name, seed in (("one", 1), ("two", 2))
    ]
    policy = Policy(small.run(small_sd), CPU)
    latents, conditioning = torch.randn(2, 4, 8, 8), policy.denoiser.encode(["a ring", "a ring"])
    with torch.no_grad():
        base = policy.predict(latents, 1, conditioning)
        single = []
        for adapter in saved:
            for name, parameter in policy.denoiser.trainable().items():
                parameter.copy_(adapter[name])
            single.append(policy.predict(latents, 1, conditioning))
        policy.compose([(saved[0], 0.5), (saved[1], -2.0)])
        composed = policy.predict(latents, 1, conditioning)
        policy.compose([(saved[0], 0.0)])
        nothing = policy.predict(latents, 1, conditioning)
        policy.compose([])
        with policy.denoiser.without_adapter():
            assert torch.equal(policy.predict(latents, 1, conditioning), base)
    expected = base + 0.5 * (single[0] - base) - 2.0 * (single[1] - base)
    assert torch.allclose(composed, expected, atol=1e-5) and not torch.allclose(composed, single[0], atol=1e-3)
    assert torch.equal(nothing, base)


def test_a_grid_of_strengths_is_one_image(made, tmp_path):
    one, two = made("one", 1), made("two", 2)
    adapters = [sample_options.parse(f"{one}=0,0.5,1", Path), sample_options.parse(f"{two}=0,1", Path)]
    out = tmp_path / "grid.png"
    sample_grid.grid(adapters, "a ring", images=2, seed=0, say=pytest.fail, waiting=silent).save(out)
    pixels = np.asarray(Image.open(out).convert("RGB"))
    assert pixels.shape[0] > 300 and pixels.std() > 10


def test_the_strength_one_of_one_adapter_is_that_adapter(made, tmp_path, small_sd):
    folder = made("one", 1)
    adapters = [sample_options.parse(f"{folder}=0,1", Path)]
    found = sample_grid.grid(adapters, "a ring", images=2, seed=3, say=pytest.fail, waiting=silent)
    assert (found.rows, found.columns) == (["one 0", "one 1"], [""])
    run = small.run(small_sd)
    for checkpoint, cell in ((None, found.cells[0][0]), (checkpoints.folder_for(folder, 1), found.cells[1][0])):
        plain = sample_grid.plain(run, [checkpoint], "a ring", images=2, seed=3, waiting=silent)
        ((alone,),) = plain.cells
        assert np.abs(alone.astype(int) - cell).max() <= 1  # base + (adapter - base) rounds
        assert [image.size for image in plain.images] == [(16, 16)] * 2
    assert (found.cells[0][0] != found.cells[1][0]).any()


def test_before_and_after_are_two_rows_from_the_same_noise(made, tmp_path, small_sd):
    checkpoint = checkpoints.folder_for(made("one", 1), 1)

    def drawn(*found):
        return sample_grid.plain(small.run(small_sd), found, "a ring", images=2, seed=3, waiting=silent)

    both = drawn(None, checkpoint)
    assert both.rows == ["before training", "after step 1"] and both.names == ["seed 3, 1", "seed 3, 2"]
    for row, alone in zip(both.cells, (drawn(None), drawn(checkpoint)), strict=True):
        assert (row[0] == alone.cells[0][0]).all()
    assert (both.cells[0][0] != both.cells[1][0]).any()
    both.save(tmp_path / "both.png")
    drawn(checkpoint).save(tmp_path / "one.png")
    with Image.open(tmp_path / "both.png") as two, Image.open(tmp_path / "one.png") as one:
        assert two.width == one.width > 2 * 160 and two.height > one.height + 160  # small images are magnified


def test_each_denoising_step_of_each_row_is_told(made, small_sd):
    told = []
    checkpoint = checkpoints.folder_for(made("one", 1), 1)
    sample_grid.plain(
        small.run(small_sd), [None, checkpoint], "a ring", images=2, seed=3, waiting=lambda *one: told.append(one)
    )
    assert told[0] == ("loading the model", 0, 0)
    rows = ("before training", "after step 1")
    steps = [(f"drawing 2 images, {row}: denoising step {n}/4", n, 4) for row in rows for n in range(4)]
    assert told[1:] == steps


@pytest.mark.parametrize("text", ["runs/x", "runs/x=", "runs/x=a", "runs/x=1,,2", "runs/x=nan"])
def test_strengths_that_are_none_are_named(text):
    with pytest.raises(RunError, match="expected a run and the strengths of its adapter"):
        sample_options.parse(text, Path)


def test_adapters_of_another_shape_or_model_do_not_compose(made, tmp_path):
    one = made("one", 1)
    for name, changes, words in (
        ("wide", {"model__train": "{kind: lora, rank: 4}"}, r"one model only: .*model\.train\.rank 2 -> 4"),
        ("full", {"model__train": "{kind: full}"}, "expected model.train.kind=lora"),
    ):
        other = made(name, 2, **changes)
        adapters = [sample_options.parse(f"{one}=1", Path), sample_options.parse(f"{other}=1", Path)]
        with pytest.raises(RunError, match=rf"{name} trains .*{words}"):
            sample_grid.grid(adapters, "a ring", images=1, seed=0, say=pytest.fail, waiting=silent)


@pytest.mark.parametrize("name", ["sample.jpg", "absent/sample.png"])
def test_an_image_that_cannot_be_written_is_refused_before_it_is_sampled(name, command, hollow, tmp_path):
    (tmp_path / "runs" / "none").mkdir(parents=True)
    shutil.copy(hollow, tmp_path / "runs" / "none" / "config.yaml")
    status, _, errors = command("sample", "runs/none", "x", "--out", name)
    assert status == 1 and "cannot be written" in errors
