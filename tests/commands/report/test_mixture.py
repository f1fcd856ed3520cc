"""Which reward pays for which, on the report of a mixture: signs, intervals, and what is missing."""

import re

import numpy as np
import pytest

from pcpo_ray.commands.report import mixture
from pcpo_ray.commands.report.page import write
from pcpo_ray.config import files
from pcpo_ray.runs import intervals
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training.recorder import Recorder

GAINS = np.linspace(-0.2, 0.3, 12)
NOISE = np.random.default_rng(0).normal(0, 0.02, 12)


def page(folder, gains, *, rewards, watched=(), count=12, missing=()):
    """The report of a run of which each reward has the given gain by prompt, by its kind."""
    data = {
        "name": "run",
        "steps": 4,
        "model": {"kind": "stable_diffusion", "path": "shapes-sd"},
        "prompts": {"kind": "shapes"},
        "sampling": {"steps": 3, "process": {"kind": "ddim"}},
        "rewards": rewards,
        "credit": {"kind": "reweight"},
        "advantage": {"kind": "group"},
        "objective": {"kind": "log_hinge"},
        "evaluation": {"count": count, "images": 2, "every": 4, "rewards": [{"kind": kind} for kind in watched]},
    }
    record = Recorder.create(LocalFolder(local=folder), files.parse(data))
    spread = np.array([[0.01, -0.01]])
    for step in (0, 4):
        values: dict = {name: 0.5 + spread + step / 4 * gain[:count, None] for name, gain in gains.items()}
        for name in missing if step else ():
            values[name][0] = np.nan
        values = {"reward": sum(values.values()), **values}
        shape = values["reward"].shape
        record.samples(
            "evaluations.parquet",
            step,
            {
                "step": np.full(values["reward"].size, step),
                "prompt": [f"prompt {n}" for n in range(count) for _ in range(2)],
                "position": np.repeat(np.arange(count), 2),
                "sample": np.tile(np.arange(2), count),
                **{name: value.ravel() for name, value in values.items()},
            },
        )
        found = {name: intervals.estimate(value).row() for name, value in values.items()}
        record.record("evaluation", step, {"rewards": found, "images": int(np.prod(shape)), "seconds": 1.0})
    html = write(folder).read_text(encoding="utf-8")
    return html, " ".join(re.sub(r"<[^>]+>", " ", html).split())


TWO = [{"kind": "clip_score", "weight": 2}, {"kind": "shapes_oracle"}]


def row(html, one, other):
    """The pair's cells: correlation, the interval's ends, what they mean."""
    (found,) = re.findall(rf"<tr><td>{one} and {other}</td>(.*?)</tr>", html, flags=re.DOTALL)
    return [cell.replace("\u2212", "-") for cell in re.findall(r"<td[^>]*>([^<]*)</td>", found)]


@pytest.mark.parametrize(
    ("sign", "verdict"), [(-1, "▼ one pays for the other"), (1, "▲ gain together")], ids=["pays", "together"]
)
def test_a_mixture_says_which_reward_pays_for_which(tmp_path, sign, verdict):
    other = sign * GAINS + NOISE
    html, words = page(tmp_path / "run", {"clip_score": GAINS, "shapes_oracle": other}, rewards=TWO)
    found = row(html, "clip_score", "shapes_oracle")
    expected = np.corrcoef(GAINS, other)[0, 1]
    assert found[0] == f"{expected:+.2f}" and found[3] == verdict
    ends = np.tanh(np.arctanh(expected) + np.array([-1, 1]) * 1.959964 / np.sqrt(9))
    assert found[1:3] == [f"{end:+.2f}" for end in ends]
    for kind, unit in (("clip_score", "cosine"), ("shapes_oracle", "fraction of facts")):  # a curve and a scale each
        assert re.search(rf"{kind} trained on {unit}", words)
    for title in ("CLIP score", "facts shown", "weighted total"):
        assert html.count(f"{title} against steps") == 1


def test_each_pair_of_three_rewards_has_its_own_verdict(tmp_path):
    gains = {"clip_score": GAINS, "shapes_oracle": -GAINS + NOISE, "jpeg_compressibility": GAINS + NOISE}
    html, _ = page(tmp_path / "run", gains, rewards=[*TWO, {"kind": "jpeg_compressibility"}])
    assert row(html, "clip_score", "shapes_oracle")[3] == "▼ one pays for the other"
    assert row(html, "clip_score", "jpeg_compressibility")[3] == "▲ gain together"
    assert row(html, "shapes_oracle", "jpeg_compressibility")[3] == "▼ one pays for the other"


@pytest.mark.parametrize(
    ("watched", "sign", "verdict"),
    [
        ("grid", 1, "▼ one pays for the other"),
        ("grid", -1, "▲ gain together"),
        ("nsfw", 1, "▼ one pays for the other"),
        ("jpeg_compressibility", 1, "rise together"),
        ("jpeg_compressibility", -1, "one rises, one falls"),
    ],
)
def test_a_watched_reward_counts_by_the_direction_that_is_good(tmp_path, watched, sign, verdict):
    gains = {"clip_score": GAINS, watched: sign * GAINS + NOISE}
    html, _ = page(tmp_path / "run", gains, rewards=[{"kind": "clip_score"}], watched=[watched])
    assert row(html, "clip_score", watched)[3] == verdict


def test_a_reward_trained_against_pays_where_it_rises(tmp_path):
    rewards = [{"kind": "clip_score"}, {"kind": "jpeg_incompressibility", "weight": -1}]
    html, _ = page(tmp_path / "run", {"clip_score": GAINS, "jpeg_incompressibility": GAINS + NOISE}, rewards=rewards)
    assert row(html, "clip_score", "jpeg_incompressibility")[3] == "▼ one pays for the other"


def test_gains_without_a_clear_sign_or_without_spread_have_no_verdict(tmp_path):
    gains = {"clip_score": GAINS, "shapes_oracle": np.abs(GAINS - GAINS.mean()), "grid": np.zeros(12)}
    html, _ = page(tmp_path / "run", gains, rewards=TWO, watched=["grid"])
    assert row(html, "clip_score", "shapes_oracle")[3] == "◆ unclear"
    assert row(html, "clip_score", "grid") == ["-", "-", "-", "no verdict"]
    assert row(html, "shapes_oracle", "grid")[0] == "-"


def test_a_prompt_without_scores_is_left_out(tmp_path):
    other = -GAINS + NOISE
    gains = {"clip_score": GAINS, "shapes_oracle": other}
    html, _ = page(tmp_path / "run", gains, rewards=TWO, missing=["shapes_oracle"])
    expected = np.corrcoef(GAINS[1:], other[1:])[0, 1]
    assert row(html, "clip_score", "shapes_oracle")[0] == f"{expected:+.2f}"


@pytest.mark.parametrize(
    ("gains", "rewards", "count"),
    [
        ({"clip_score": GAINS}, [{"kind": "clip_score"}], 12),
        ({"clip_score": GAINS, "shapes_oracle": GAINS}, TWO, 5),
    ],
    ids=["one reward", "few prompts"],
)
def test_one_reward_or_few_prompts_have_no_such_table(tmp_path, gains, rewards, count):
    assert "pays for which" not in page(tmp_path / "run", gains, rewards=rewards, count=count)[1]


def test_images_without_a_score_are_left_out_of_their_prompts_gain():
    one, other = np.repeat(GAINS[:, None], 2, axis=1), np.repeat(-GAINS[:, None], 2, axis=1)
    other[3, 0], one[5, 1] = np.nan, 100.0
    other[5, 1] = np.nan
    assert mixture.correlation(one, other)["r"] == pytest.approx(-1)
