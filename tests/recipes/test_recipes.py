"""Each published recipe for two steps, on a small random model of its own architecture; one of each kind on Ray.

What a recipe says of rewards, credit and sampling is computed by the same code in one process and on Ray. Minutes, so
apart from `make test`: `make recipes`.
"""

import pytest

from pcpo_ray.config import files
from tests.support import ROOT
from tests.support.own_ray import own_ray
from tests.support.two_steps import SMALLER, two_steps

pytestmark = pytest.mark.recipes

CONFIGS = ROOT / "configs"
RECIPES = sorted(path for path in CONFIGS.glob("*.yaml") if not path.name.startswith(("shapes_", "words_")))
ON_RAY = {files.load(path).model.kind: path for path in RECIPES}.values()
SMALL_MODEL = ["sampling.height=16", "sampling.width=16", "rewards=[{kind: jpeg_compressibility}]"]


@pytest.fixture(scope="module")
def one_ray():
    with own_ray(num_cpus=2, logging_level="ERROR"):
        yield


def test_every_recipe_names_its_source():
    assert len(RECIPES) >= 22
    for path in RECIPES:
        assert "arXiv" in path.read_text().splitlines()[0], path.name


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs(path, tmp_path, model_of_kind, request):
    asked = files.load(path)
    folder = model_of_kind(asked.model.kind)
    own = [f"model.path={folder}", f"model.text_cache={tmp_path / 'texts'}"]
    run = files.load(path, [*SMALLER, *SMALL_MODEL, *own])
    if on_ray := path in ON_RAY:
        request.getfixturevalue("one_ray")
    rows = two_steps(run, tmp_path / "run", local=not on_ray)
    assert ("kl" in rows[0]) == (asked.objective.kl > 0)
