"""The code of the pages on rewards and models runs as it stands there."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pcpo_ray
from pcpo_ray import config, models, rewards
from pcpo_ray.commands import session
from pcpo_ray.data.seeds import generator
from pcpo_ray.errors import ModelError
from tests.support import small
from tests.support.running import go

ROOT = Path(pcpo_ray.__file__).parent
CPU = torch.device("cpu")


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a page's Python into files named by their first line, in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    forget = []

    def write(page):
        blocks = re.findall(r"```python\n# (\S+\.py)\n(.*?)```", page.read_text(), flags=re.DOTALL)
        assert blocks
        for name, code in blocks:
            Path(name).write_text(code)
            forget.append(name.removesuffix(".py"))
            sys.modules.pop(forget[-1], None)

    yield write
    for name in forget:
        sys.modules.pop(name, None)


def test_the_pages_reward_scores(written):
    written(ROOT / "rewards" / "README.md")
    kind = config.CustomReward(kind="my_rewards:Redness", options={"scale": 2})
    rewards.check(kind)
    red = np.zeros((1, 4, 4, 3), np.uint8)
    red[..., 0] = 255
    assert list(rewards.load(kind, CPU).score(np.concatenate([red, red]), ["a red ring", "a ring"])) == [2.0, 0.0]


@pytest.mark.parametrize("page", [ROOT / "rewards" / "README.md", ROOT.parent / "README.md"])
def test_a_run_trains_on_a_pages_reward(written, page, small_sd, tmp_path):
    written(page)
    recorder = go(small.run(small_sd, steps=1, rewards="[{kind: 'my_rewards:Redness'}]"), tmp_path / "run")
    assert "Redness" in recorder.metrics()[-1]["rewards"]


def test_the_pages_rewards_are_all_that_there_are():
    page = (ROOT / "rewards" / "README.md").read_text()
    assert all(f"`{kind}`" in page for kind in config.SHIPPED_REWARDS)
    assert all(f"`{kind}`" in (ROOT / "models" / "README.md").read_text() for kind in config.BACKBONES)


TIMESTEPS = torch.tensor([501.0])

OWN = {"model__kind": "custom", "model__denoiser": "my_models:LowerCase", "model__family": "diffusion"}


def test_the_pages_model_trains_and_predicts_as_its_pipeline_does(written, small_sd, tmp_path):
    written(ROOT / "models" / "README.md")
    run = small.run(small_sd, steps=1, **OWN)
    session.check(run)
    own, plain = (models.load(r.model, r.sampling, seed=0, device=CPU) for r in (run, small.run(small_sd)))
    noise = own.initial_noise(generator(1))[None]
    with torch.no_grad():
        shouted = own.predict(noise, TIMESTEPS, own.encode(["A RED CIRCLE"]))
        assert torch.equal(shouted, plain.predict(noise, TIMESTEPS, plain.encode(["a red circle"])))
    go(run, tmp_path / "run")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("", "no attribute 'LowerCase'"),
        ("raise OSError('no disk')", "OSError: no disk"),
        ("class LowerCase:\n    pass", "derived from"),
        (
            "from pcpo_ray.models.pipeline import PipelineDenoiser\nclass LowerCase(PipelineDenoiser):\n    pass",
            r"without \['encode_one', 'forward', 'schedule_of'\]",
        ),
    ],
)
def test_a_class_that_is_no_model_is_refused_by_name(written, small_sd, code, words):
    written(ROOT / "models" / "README.md")
    Path("my_models.py").write_text(code)
    with pytest.raises(ModelError, match=words):
        session.check(small.run(small_sd, **OWN))
