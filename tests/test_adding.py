"""The recipes "To add ..." of ARCHITECTURE.md, each done in a copy of the package."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.support import ROOT

CREDIT = '''
@config
class Halved:
    """Half of the native weights."""

    families: ClassVar[tuple[Family, ...]] = ("diffusion", "flow")
    changes_sampler: ClassVar[bool] = False

    kind: Literal["halved"] = "halved"


Credit = Annotated[
    Halved | '''

REWARD = '''
@config
class Brightness(ShippedReward):
    """The mean of all pixels, 0..1."""

    scorer = "pcpo_ray.rewards.brightness:Brightness"
    network = "none"
    scales: ClassVar[Scales] = {"brightness": Scale("0 to 1", "how bright the image is")}

    kind: Literal["brightness"]
    weight: Number = 1.0


Reward = Annotated[
    Brightness | '''

SCORER = """
class Brightness:
    def score(self, images, prompts):
        return images.mean(axis=(1, 2, 3)) / 255
"""

MODEL = '''
from pcpo_ray.models.stable_diffusion import StableDiffusion


class Loud(StableDiffusion):
    """Stable Diffusion that reads every prompt in capitals."""

    def encode_one(self, text):
        return super().encode_one(text.upper())
'''

METRIC = """LEARNING = (
    _gauge("log_ratio_std", "", "Standard deviation of the log-ratio.", field="step.log_ratio_std"),
"""

CHART = """LEARNING = Row(
    "Is it learning",
    (
        chart("Log-ratio", "Its standard deviation.", Query(gauge("log_ratio_std"), "std"), **FREE),
"""

EDITS = {
    "credit": [
        ("config/algorithm.py", "\nCredit = Annotated[\n    ", CREDIT),
        ("config/__init__.py", "    GroupAdvantage,\n", "    GroupAdvantage,\n    Halved,\n"),
        ("algorithm/credit.py", "\ndef reweight(", "\ndef halved(steps, trained):\n    found = native(steps, trained)\n"
         "    return replace(found, weights=tuple(w / 2 for w in found.weights))\n\n\ndef reweight("),
        ("algorithm/credit.py", "from dataclasses import ", "from dataclasses import replace, "),
        ("models/steps.py", "        case config.Native():", "        case config.Halved():\n"
         "            return credit.halved(steps, trained)\n        case config.Native():"),
    ],
    "reward": [
        ("config/rewards.py", "\nReward = Annotated[\n    ", REWARD),
        ("rewards/brightness.py", "", SCORER),
    ],
    "model": [
        ("config/model.py", 'ShippedKind = Literal[', 'ShippedKind = Literal["loud", '),
        ("config/model.py", 'Mapping[ShippedKind, Backbone] = {', 'Mapping[ShippedKind, Backbone] = {\n'
         '    "loud": Backbone("pcpo_ray.models.loud:Loud", "diffusion", "StableDiffusionPipeline"),'),
        ("models/loud.py", "", MODEL),
    ],
    "metric": [
        ("metrics/catalogue.py", "LEARNING = (\n", METRIC),
        ("metrics/dashboards/training.py", 'LEARNING = Row(\n    "Is it learning",\n    (\n', CHART),
    ],
}  # fmt: skip

TRAIN = """
import sys
from pathlib import Path

import pcpo_ray
from pcpo_ray.metrics import dashboards
from pcpo_ray.metrics.catalogue import CATALOGUE
from tests.support import custom, running, small

assert Path(pcpo_ray.__file__).is_relative_to(Path.cwd())
changes = {"model__kind": "loud", "credit__kind": "halved", "rewards": "[{kind: brightness}]"}
recorder = running.go(small.run(sys.argv[1], steps=1, **changes), Path("run"))
row = [row for row in recorder.metrics() if row["kind"] == "train"][-1]
assert 0 < row["rewards"]["brightness"] < 1 and row["first_log_ratio"] == 0 and row["moved_fraction"] > 0
assert "pcpo_log_ratio_std" in {metric.name for metric in CATALOGUE}
assert all("pcpo_log_ratio_std" in dashboards.files()[name] for name in sys.argv[2:])
"""


@pytest.fixture
def copy(tmp_path):
    """A copy of the package and of the tests' helpers; its checkpoints are the repository's."""
    leave = shutil.ignore_patterns("checkpoints", "__pycache__")
    shutil.copytree(ROOT / "pcpo_ray", tmp_path / "pcpo_ray", ignore=leave)
    shutil.copy(ROOT / "pcpo_ray" / "runs" / "checkpoints.py", tmp_path / "pcpo_ray" / "runs")
    (tmp_path / "pcpo_ray" / "shapes" / "checkpoints").symlink_to(ROOT / "pcpo_ray" / "shapes" / "checkpoints")
    shutil.copytree(ROOT / "tests" / "support", tmp_path / "tests" / "support", ignore=leave)
    (tmp_path / "tests" / "__init__.py").touch()
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text())
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def add(copy, edits):
    for name, before, after in edits:
        path = copy / "pcpo_ray" / name
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        assert text.count(before) == 1 or not (before or text), f"{name} has {text.count(before)} of {before!r}"
        path.write_text(text.replace(before, after) if before else after, encoding="utf-8")


def run(copy, *words):
    env = {**os.environ, "PYTHONPATH": str(copy)}
    return subprocess.run([sys.executable, *words], cwd=copy, env=env, capture_output=True, text=True, timeout=280)


def test_a_credit_a_reward_a_model_and_a_metric_are_added(copy, small_sd):
    for edits in EDITS.values():
        add(copy, edits)
    done = run(copy, "-c", TRAIN, str(small_sd), "deploy/METRICS.md", "deploy/grafana/dashboards/training.json")
    assert done.returncode == 0, done.stderr


@pytest.mark.recipes
def test_mypy_names_the_place_that_a_new_credit_kind_lacks(copy):
    add(copy, EDITS["credit"][:2])
    done = run(copy, "-m", "mypy", "pcpo_ray/models/steps.py")
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert "models/steps.py" in line and "Halved" in line
