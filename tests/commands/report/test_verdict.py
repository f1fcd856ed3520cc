"""The sentence on a run."""

import pytest

from pcpo_ray.commands.report.verdict import sentence
from pcpo_ray.runs.intervals import Estimate
from tests.support import small


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.1, 0.3, " rose: "), (-0.3, -0.1, " FELL: "), (-0.1, 0.3, "NOT clearly"), (0.0, 0.3, "NOT clearly")],
)
def test_the_verdict_claims_no_more_than_the_interval_shows(low, high, words):
    gained = Estimate(mean=(low + high) / 2, low=low, high=high)
    text = sentence(small.run("model"), gained, 64)
    assert words in text and text.startswith("The held-out reward")
    trained_on = sentence(small.run("model", evaluation__held_out=False), gained, 64)
    assert words in trained_on and trained_on.startswith("The reward of training prompts")
    assert "64 images" in text
