"""What a caption tells, place by place."""

import pytest
import torch

from pcpo_ray.commands.pretrain.facts import ATTRIBUTES, BOTTOM, FACTS, LEFT, TOP, facts, misread
from pcpo_ray.shapes.captions import parse


def table(text):
    said, told = facts([parse(text)])
    shape = (6, len(ATTRIBUTES))
    return said[0].view(shape), told[0].view(shape)


def test_a_relation_places_things_on_one_axis_and_leaves_the_other_open():
    said, told = table("a red circle above a blue square")
    at = {place: {ATTRIBUTES[i] for i in said[place].nonzero().flatten()} for place in (TOP, BOTTOM, LEFT)}
    assert at == {TOP: {"red", "circle"}, BOTTOM: {"blue", "square"}, LEFT: set()}
    assert told[TOP].all() and told[BOTTOM].all() and not told[LEFT].any()


def test_the_other_way_round_says_the_same():
    for one, other in zip(
        table("a red circle above a blue square"), table("a blue square below a red circle"), strict=True
    ):
        assert torch.equal(one, other)


def test_a_caption_without_places_tells_only_what_there_is():
    said, told = table("a red circle and a blue square")
    assert told[:-1].sum() == 0 and told[-1].all()
    assert {ATTRIBUTES[i] for i in said[-1].nonzero().flatten()} == {"red", "circle", "blue", "square"}


def test_sure_and_right_costs_nothing_and_unstated_facts_do_not_count():
    said, told = facts([parse("a red circle at the top")])
    sure = (2 * said - 1) * 50
    assert misread(sure, said, told) == pytest.approx(0, abs=1e-6)
    assert misread(torch.where(told > 0, sure, -sure), said, told) == pytest.approx(0, abs=1e-6)
    assert misread(-sure, said, told) == pytest.approx(50)
    assert said.shape == (1, FACTS)
