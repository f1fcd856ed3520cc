"""What is advised against numbers that are not finite can be followed: it names what is narrow, or who is to blame."""

import pytest

from pcpo_ray.workers import precision
from tests.support import small

HALF = {"model__dtype": "float16", "sampling__storage": "bfloat16"}


@pytest.mark.parametrize(
    ("changes", "version", "expected"),
    [
        (HALF, 0, r"set model.dtype=float32 (now float16) and sampling.storage=float32 (now bfloat16)"),
        ({"optimizer__mixed_precision": "bf16"}, 0, "set optimizer.mixed_precision=no (now bf16)"),
        ({}, 0, "copy the files of the model, and of model.train.start, again from where they are whole"),
        ({}, 3, "continue from an earlier checkpoint with a lower optimizer.learning_rate"),
        (
            {"model__dtype": "bfloat16"},
            3,
            "set model.dtype=float32 (now bfloat16), or continue from an earlier checkpoint with a lower "
            "optimizer.learning_rate",
        ),
    ],
)
def test_a_remedy_names_only_what_is_still_to_be_changed(changes, version, expected):
    assert precision.remedy(small.run("model", **changes), version) == expected
