"""What a config points to is known by its bytes, wherever it lies; what changed is named."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pcpo_ray.errors import RunError
from pcpo_ray.training import inputs
from tests.support import small

OWN = "class Mine:\n    def score(self, images, prompts):\n        return [0.0] * len(images)\n"


def images(folder):
    folder.mkdir()
    for n in range(3):
        Image.fromarray(np.full((16, 16, 3), n, np.uint8)).save(folder / f"{n}.PNG")
    (folder / "about.txt").write_text("not an image")
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a file of each kind that a config points to; nothing is loaded, so their contents do not matter."""
    for name in (
        "prompts.txt",
        "held.jsonl",
        "head.pth",
        "hps.pt",
        "clip.pt",
        "lpips.pth",
        "inception.pth",
        "lora.bin",
    ):
        (tmp_path / name).write_text(name)
    for name, kind in (("pick", "clip"), ("dino", "dinov2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": kind}))
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "processor").mkdir()
    (tmp_path / "processor" / "merges.txt").write_text("a b")
    images(tmp_path / "images")
    (tmp_path / "list.txt").write_text("images/2.PNG\nimages/0.PNG\n")
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


POINTED = [
    ("prompts", "{kind: file, path: prompts.txt}", "prompts.path", "prompts.txt"),
    ("evaluation__prompts", "{kind: file, path: held.jsonl}", "evaluation.prompts.path", "held.jsonl"),
    ("model__single_file", "lora.bin", "model.single_file", "lora.bin"),
    ("model__train__start", "lora.bin", "model.train.start", "lora.bin"),
    ("model__train__start", "pick", "model.train.start", "pick/model.safetensors"),
    ("rewards", "[{kind: grain}, {kind: aesthetic, head: head.pth, weights: clip.pt}]", "rewards.1.head", "head.pth"),
    ("rewards", "[{kind: hps_v2.1, weights: hps.pt}]", "rewards.0.weights", "hps.pt"),
    ("rewards", "[{kind: clip_score, model: ViT-B-32-quickgelu, weights: clip.pt}]", "rewards.0.weights", "clip.pt"),
    ("rewards", "[{kind: clip_score, model: ./pick}]", "rewards.0.model", "pick/model.safetensors"),
    ("rewards", "[{kind: pickscore, model: ./pick}]", "rewards.0.model", "pick/config.json"),
    (
        "rewards",
        "[{kind: pickscore, model: ./pick, processor: processor}]",
        "rewards.0.processor",
        "processor/merges.txt",
    ),
    ("rewards", "[{kind: 'mine:Mine'}]", "rewards.0.kind", "mine.py"),
    (
        "rewards",
        f"[{{kind: 'mine:Mine', options: {{where: [{{file: clip.pt, n: 3, long: {5000 * 'x'}, odd: \"\\0\"}}]}}}}]",
        "rewards.0.options.where.0.file",
        "clip.pt",
    ),
    (
        "evaluation__rewards",
        "[{kind: diversity, model: ./pick}]",
        "evaluation.rewards.0.model",
        "pick/model.safetensors",
    ),
    (
        "evaluation__quality",
        "{features: {kind: inception, weights: inception.pth}}",
        "evaluation.quality.features.weights",
        "inception.pth",
    ),
    (
        "evaluation__quality",
        "{features: {kind: dinov2, model: dino}}",
        "evaluation.quality.features.model",
        "dino/model.safetensors",
    ),
    (
        "evaluation__quality",
        "{features: {kind: clip, model: ./pick}}",
        "evaluation.quality.features.model",
        "pick/model.safetensors",
    ),
    (
        "evaluation__quality",
        "{features: {kind: clip}, lpips: {weights: lpips.pth}}",
        "evaluation.quality.lpips.weights",
        "lpips.pth",
    ),
    (
        "evaluation__quality",
        "{features: {kind: clip}, reference: {kind: images, path: images}, neighbours: 1}",
        "evaluation.quality.reference.path",
        "images/1.PNG",
    ),
    (
        "evaluation__quality",
        "{features: {kind: clip}, reference: {kind: images, path: list.txt}, neighbours: 1}",
        "evaluation.quality.reference.path",
        "images/0.PNG",
    ),
]


@pytest.mark.parametrize(("key", "value", "named", "file"), POINTED, ids=lambda value: str(value)[:40])
def test_every_file_that_a_config_points_to_is_seen_to_change(small_sd, place, key, value, named, file):
    files = inputs.of_run(small.run(small_sd, **{key: value}))
    began = inputs.digests(files)
    assert set(files) >= {"model.path", named}
    (place / file).write_bytes((place / file).read_bytes() + b"#")
    (text,) = [text for _, text in inputs.changed(began, files, inputs.digests(files))]
    assert text.startswith(f"{named}: ") and text.endswith(f"{file} is not the file that the run began with")


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("name", ["model_index.json", "scheduler/", "tokenizer/", "text_encoder/", "vae/", "er/"])
def test_every_part_of_a_model_is_seen_to_change(request, tmp_path, kind, name):
    """`er/` stands for the last part of any kind's, be it unet or transformer."""
    model = shutil.copytree(request.getfixturevalue(f"small_{kind}"), tmp_path / f"small-{kind}")
    files = inputs.of_run(small.run(model))
    began = inputs.digests(files)
    changed = [
        path for path in sorted(model.rglob("*")) if name in path.relative_to(model).as_posix() and path.is_file()
    ]
    with changed[-1].open("ab") as file:
        file.write(b" ")
    (text,) = [text for _, text in inputs.changed(began, files, inputs.digests(files))]
    assert text == f"model.path: {changed[-1]} is not the file that the run began with"


def test_a_moved_model_is_the_same_whatever_its_file_times(small_sd, tmp_path):
    moved = shutil.copytree(small_sd, tmp_path / "elsewhere-sd")
    for path in moved.rglob("*"):
        os.utime(path, (1, 1))
    (moved / "README.md").write_text("About it.")
    (moved / "unet" / ".cache").mkdir()
    (moved / "unet" / ".cache" / "download.json").write_text("{}")
    began, now = (inputs.digests(inputs.of_run(small.run(model))) for model in (small_sd, moved))
    assert began == now and len(began["model.path"]) == 10


def test_a_shipped_model_is_the_same_as_its_folder(tmp_path):
    from pcpo_ray import shapes

    copy = shutil.copytree(shapes.checkpoint("shapes-sd"), tmp_path / "copy")
    changes = {"model__train": "{kind: lora}", "sampling__height": 64, "sampling__width": 64}
    shipped, copied = (inputs.digests(inputs.of_run(small.run(path, **changes))) for path in ("shapes-sd", copy))
    assert shipped == copied


def test_files_that_are_gone_or_new_are_named(small_sd, tmp_path):
    model = shutil.copytree(small_sd, tmp_path / "small-sd")
    began = inputs.digests(inputs.of_run(small.run(model)))
    (model / "unet" / "config.json").rename(model / "unet" / "other.json")
    files = inputs.of_run(small.run(model))
    assert [text for _, text in inputs.changed(began, files, inputs.digests(files))] == [
        "model.path: unet/config.json of what the run began with is gone",
        f"model.path: {model}/unet/other.json was not there when the run began",
    ]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(RunError, match=r"gone\.bin cannot be read: No such file"):
        inputs.digest(tmp_path / "gone.bin")


TENSORS = {
    "large": torch.arange(100_000, dtype=torch.float32),
    "small": torch.arange(5, dtype=torch.float32),
    "middle": torch.arange(9_000, dtype=torch.float32),
    "empty": torch.zeros(0),
}


@pytest.mark.parametrize(
    ("name", "place"), [("large", 0), ("large", -1), ("small", 0), ("small", -1), ("middle", 0), ("middle", -1)]
)
def test_of_a_large_file_every_tensor_is_looked_at(tmp_path, monkeypatch, name, place):
    monkeypatch.setattr(inputs, "LARGE", 1000)
    save_file(TENSORS, tmp_path / "one.safetensors")
    other = TENSORS[name].clone()
    other[place] += 1
    save_file({**TENSORS, name: other}, tmp_path / "two.safetensors")
    save_file(TENSORS, tmp_path / "same.safetensors")
    one, two, same = (inputs.digest(tmp_path / f"{file}.safetensors") for file in ("one", "two", "same"))
    assert one == same != two


def test_of_a_large_file_little_is_read_and_all_of_the_middling_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "LARGE", 1000)
    path = tmp_path / "one.safetensors"
    save_file({"large": torch.zeros(4_000_000), "middle": torch.zeros(16_000)}, path)
    with path.open("rb") as file:
        read = inputs._blocks(file, path.stat().st_size)
    assert read is not None
    (_, head), *blocks = read
    covered = np.zeros(path.stat().st_size, bool)
    for start, length in [(0, head), *blocks]:
        covered[start : start + length] = True
    large, middle = 16_000_000, 64_000
    assert covered.sum() == head + inputs.PLACES * inputs.BLOCK + middle < large // 50
    assert covered[[0, head - 1, head, -1]].all()


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 2000, b"\x02\0\0\0\0\0\0\0[]" + b"x" * 2000, b"\x02\0\0\0\0\0\0\0{}x"]
)
def test_a_large_file_that_only_ends_like_one_is_read_whole(tmp_path, monkeypatch, content):
    monkeypatch.setattr(inputs, "LARGE", -1)
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    before = inputs.digest(path)
    path.write_bytes(content + b"1")
    assert inputs.digest(path) != before


def test_digests_that_are_known_are_not_made_again(small_sd):
    files, known = inputs.of_run(small.run(small_sd)), {}
    found = inputs.digests(files, known)
    assert inputs.digests(files, dict.fromkeys(known, "known"))["model.path"].keys() == found["model.path"].keys()
    assert set(inputs.digests(files, dict.fromkeys(known, "known"))["model.path"].values()) == {"known"}


def test_recorded_inputs_are_read_as_written_or_refused_by_name(tmp_path):
    began = {"prompts.path": {"*.txt": "0f"}, "model.train.start": {}}
    (tmp_path / "inputs.json").write_text(inputs.dump(began))
    assert inputs.read(tmp_path) == began
    assert inputs.read(tmp_path / "absent") is None
    (tmp_path / "inputs.json").write_text("{")
    with pytest.raises(RunError, match=r"inputs\.json cannot be read"):
        inputs.read(tmp_path)
