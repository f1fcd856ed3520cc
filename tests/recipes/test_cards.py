"""What recipes say of one card of 24 GB and of 80 GB is what `pcpo-ray plan` says, without any weights."""

import re

import pytest

from pcpo_ray.commands.plan import gpus, roles, stand_ins
from pcpo_ray.config import files, recipes

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(900)]

CARDS = {"24": "4090", "80": "H100"}
CASES = [
    ("sd15_pcpo_hpsv21", "24"),
    ("sd15_pcpo_aesthetic_interpolate", "24"),
    ("sd14_pcpo_hpsv21", "80"),
    ("sd35m_pcpo_pickscore", "24"),
    ("flux_pcpo_hpsv21", "80"),
]
"""One for each model and reward; the others of each differ in what takes no memory."""


@pytest.mark.parametrize(("name", "card"), CASES)
def test_a_recipe_takes_what_it_says_and_fits_the_card(name, card):
    head = recipes.text(name).split("\nname:")[0]
    said = re.search(rf"On one {card} GB card.*?plan: (.*?) GiB:\n(.*?)(?:\n# On|\Z)", head, re.DOTALL)
    claimed = {role: float(size) for role, size in re.findall(r"(\w+) ([\d.]+)", said[1])}
    words = next(words for words in recipes.commands(name) if words[1:3] == ["train", name] and words[-1] in said[2])
    with stand_ins.sized(files.load(name, words[3:])) as sized:
        for needed in (roles.sampler(sized.run), roles.scorer(sized.run), roles.learner(sized.run)):
            if needed.gpus:
                assert claimed.pop(needed.role) == pytest.approx(needed.total / gpus.GIB, abs=0.06)
                assert needed.total <= needed.gpus * gpus.memory_of(CARDS[card])
    assert claimed == {}
