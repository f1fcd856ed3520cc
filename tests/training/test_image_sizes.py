"""Whole runs whose prompts bring sizes along."""

import re

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from pcpo_ray.commands.report.page import write
from pcpo_ray.training import trackers
from tests.support import small
from tests.support.running import go, parameters, same

SIZES = {(16, 16), (24, 32)}


def a_run(model, folder, **changes):
    rows = "".join(f"thing {n},{24 if n % 2 else ''},{32 if n % 2 else ''}\n" for n in range(12))
    (folder / "prompts.csv").write_text(f"prompt,height,width\n{rows}")
    changes = {"steps": 3, "evaluation__count": 6, "evaluation__every": 3, "checkpoints__keep": 9, **changes}
    return small.run(model, prompts=str(folder / "prompts.csv"), **changes)


@pytest.fixture(scope="module")
def finished(small_sd, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    recorder = go(a_run(small_sd, folder), folder / "run")
    return folder, recorder


def test_a_run_of_two_sizes_scores_evaluates_and_shows_both(finished):
    folder, recorder = finished
    rows = recorder.metrics()
    assert all(row["first_log_ratio"] == 0 for row in rows if row["kind"] == "train")
    for name in ("scores", "evaluations"):
        table = parquet.read_table(folder / "run" / f"{name}.parquet")
        assert np.isfinite(table["jpeg_compressibility"].to_numpy()).all()
    sizes = {Image.open(path).size[::-1] for path in (folder / "run" / "images" / "step-000003").glob("*.png")}
    assert sizes == SIZES
    write(folder / "run")
    page = (folder / "run" / "report.html").read_text()
    assert len(re.findall(r"data:image/png;base64", page)) >= 12


def test_it_continues_to_the_same_bits(finished, small_sd):
    folder, _ = finished
    again = folder / "again"
    go(a_run(small_sd, folder, steps=2), again)
    go(a_run(small_sd, folder), again, found=True)
    assert same(parameters(folder / "run", 3), parameters(again, 3))


def test_tensorboard_gets_a_grid_a_size():
    shown = []

    class Tracker:
        name = "tensorboard"

        def log_images(self, images, *, step, dataformats):
            shown.append({name: image.shape for name, image in images.items()})

    one, two = np.zeros((16, 16, 3), np.uint8), np.zeros((24, 32, 3), np.uint8)
    trackers._show(Tracker(), 1, {"a": one, "b": two, "c": one})
    assert shown == [
        {"evaluation/images 16 x 16": (2, 16, 16, 3)},
        {"evaluation/images 24 x 32": (1, 24, 32, 3)},
    ]
