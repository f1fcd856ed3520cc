"""Overrides of an evaluation."""

import pytest

from pcpo_ray.commands.evaluate import read_to_evaluate
from pcpo_ray.errors import (
    ConfigError,
)
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training.recorder import Recorder
from tests.support import small


@pytest.mark.parametrize(
    ("changes", "override", "words"),
    [
        ({}, "prompts={kind: shapes, form: thing}", "override evaluation.prompts"),
        ({"evaluation__sampling": "{steps: 4}"}, "sampling.steps=3", "evaluation.sampling.steps=4; override that"),
        (
            {"evaluation__sampling": "{deterministic: true}"},
            "sampling.process={kind: ddim, eta: 0.5}",
            "evaluation.sampling.deterministic=True; override that",
        ),
    ],
)
def test_an_override_that_would_tell_nothing_of_the_run_is_refused(tmp_path, changes, override, words):
    Recorder.create(LocalFolder(local=tmp_path / "run"), small.run("model", **changes))
    with pytest.raises(ConfigError, match=words):
        read_to_evaluate(tmp_path / "run", [override])
    other = read_to_evaluate(tmp_path / "run", ["sampling.guidance_scale=3", "evaluation.count=7"])
    assert (other.evaluated.guidance_scale, other.evaluation.count) == (3, 7)
