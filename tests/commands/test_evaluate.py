"""Overrides of an evaluation."""

import subprocess
import sys

import pytest

from pcpo_ray.commands.evaluate_options import read_to_evaluate
from pcpo_ray.errors import ConfigError
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


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["steps=8"], "^steps: got a key of training, and .*did you mean sampling.steps.*leave it out"),
        (["rollout.prompts=4", "monitors={patience: 3}"], "rollout.prompts, monitors.patience: got keys of training"),
        (["optimizer.learning_rate=1"], "optimizer.learning_rate: got a key of training"),
        (
            ["evaluation.sampling={steps: 2}", "sampling.trained_steps=1"],
            "sampling.trained_steps: got a key of training",
        ),
        (["trackers=[wandb]", "evaluation.count=3"], "^trackers.0: got a key of training"),
    ],
)
def test_an_override_of_training_alone_is_refused_by_name(tmp_path, overrides, words):
    Recorder.create(LocalFolder(local=tmp_path / "run"), small.run("model"))
    with pytest.raises(ConfigError, match=words):
        read_to_evaluate(tmp_path / "run", overrides)


def test_a_key_of_training_is_taken_where_another_override_needs_it(tmp_path):
    Recorder.create(LocalFolder(local=tmp_path / "run"), small.run("model"))
    both = ["optimizer.compile=true", "objective.old_predictions=recomputed"]
    with pytest.raises(ConfigError, match="old_predictions"):
        read_to_evaluate(tmp_path / "run", both[:1])
    assert read_to_evaluate(tmp_path / "run", both).optimizer.compile


ALONE = """
import sys
from pcpo_ray.commands import app
from pcpo_ray.errors import ConfigError
from typer.testing import CliRunner
found = CliRunner().invoke(app.app, ["evaluate", *sys.argv[1:]])
assert isinstance(found.exception, ConfigError), found.exception
print(found.exception, "torch" in sys.modules)
"""


@pytest.mark.parametrize("override", ["evaluation.cuont=8", "steps=8"])
def test_a_wrong_override_is_told_before_torch_is_loaded(tmp_path, override):
    Recorder.create(LocalFolder(local=tmp_path / "run"), small.run("model"))
    words = [sys.executable, "-c", ALONE, str(tmp_path / "run"), override]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "did you mean" in done.stdout and done.stdout.endswith("False\n"), done.stderr
