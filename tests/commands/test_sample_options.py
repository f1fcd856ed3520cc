"""Options of `pcpo-ray sample` are told to be wrong before anything heavy is loaded."""

import subprocess
import sys

import pytest

from pcpo_ray.commands import sample_options
from pcpo_ray.errors import RunError
from tests.support.unloaded import PROGRAM


@pytest.fixture
def sampled(tmp_path):
    """Runs `sample` of a run that is there, where torch cannot be loaded."""
    (tmp_path / "runs" / "one").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl"):
        (tmp_path / "runs" / "one" / name).touch()
    for name in ("old.png", "old-2.png"):
        (tmp_path / name).touch()

    def sample(*words):
        program = PROGRAM.format(words=["sample", "one", "a ring", *words])
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)

    return sample


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--out", "x.jpg"), "images cannot be written to x.jpg; expected a name that ends in .png"),
        (("--out", "no/x.png"), "images cannot be written to no/x.png: there is no folder no"),
        (("--out", "old.png"), "old.png is there already; give another name, such as old-3.png, or delete it"),
        (("--strength", "much"), "got the strength 'much'; expected a number"),
        (("--with", "other=1"), "there is no run at other"),
        (("--with", "one"), "got 'one'; expected a run and the strengths of its adapter"),
        (("--base", "--strength", "2"), "got --base"),
    ],
)
def test_a_wrong_option_is_told_before_torch_is_loaded(sampled, words, error):
    done = sampled(*words)
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.startswith(f"error: {error}")


def test_what_is_right_goes_on_to_load(sampled):
    assert "came to load torch" in sampled("--strength", "0,1").stderr


@pytest.mark.parametrize("text", ["", "a", "1,", "nan", "1;2"])
def test_strengths_are_finite_numbers(text):
    with pytest.raises(RunError, match="got the strength"):
        sample_options.values(text)
    assert sample_options.values("0,.5") == (0, 0.5)
