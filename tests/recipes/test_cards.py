"""What recipes say of one card of 24 GB and of 80 GB is what `pcpo-ray plan` says, without any weights."""

import re

import pytest

from pcpo_ray.commands.plan import gpus, roles, stand_ins
from pcpo_ray.config import files, recipes
from tests.support.as_they_are import AS_THEY_ARE

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(900)]

CARDS = {"24": "4090", "80": "H100"}
CASES = [
    ("sd15_pcpo_hpsv21", "24"),
    ("sd15_pcpo_aesthetic_interpolate", "24"),
    ("sd14_pcpo_hpsv21", "80"),
    ("sd35m_pcpo_pickscore", "24"),
    ("flux_pcpo_hpsv21", "80"),
    ("klein4b_pcpo_pickscore", "80"),
    ("zimage_pcpo_hpsv21", "80"),
    ("sana06b_pcpo_pickscore", "24"),
]
"""One for each model and reward; the others of each differ in what takes no memory."""


@pytest.mark.parametrize(("name", "card"), CASES)
def test_a_recipe_takes_what_it_says_and_fits_the_card(name, card):
    head = recipes.text(name).split("\nname:")[0]
    said = re.search(rf"On one {card} GB card.*?plan: (.*?) GiB:\n(.*?)(?:\n# On|\Z)", head, re.DOTALL)
    claimed = {role: float(size) for role, size in re.findall(r"(\w+) ([\d.]+)", said[1])}
    words = next(words for words in recipes.commands(name) if words[1:3] == ["train", name] and words[-1] in said[2])
    check(name, words[3:], claimed, CARDS[card])


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_a_recipe_as_it_is_takes_what_it_says_and_fits_eight_cards(name):
    (said,) = re.findall(r"On eight 80 GB cards, as it is; plan: (.*?) GiB\.", recipes.text(name))
    claimed = {role: float(size) for role, size in re.findall(r"(\w+) ([\d.]+)", said)}
    run = files.load(name)
    assert run.workers.samplers.workers + run.workers.learner.ranks <= 8
    check(name, [], claimed, CARDS["80"])


def check(name, words, claimed, card):
    """Each role on a GPU takes what is claimed, and its fraction of a card has room for it."""
    with stand_ins.sized(files.load(name, words)) as sized:
        for needed in (roles.sampler(sized.run), roles.scorer(sized.run), roles.learner(sized.run)):
            if needed.gpus:
                assert claimed.pop(needed.role) == pytest.approx(needed.total / gpus.GIB, abs=0.06)
                assert needed.total <= needed.gpus * gpus.memory_of(card)
    assert claimed == {}
