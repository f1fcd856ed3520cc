"""One fact changed: which facts, and never into a caption that could be true as well."""

from pcpo_ray.commands.pretrain.variants import variants
from pcpo_ray.shapes.captions import captions, parse


def test_each_variant_is_another_caption_of_the_grammar():
    for text in captions("held_out")[::40]:
        for others in variants(parse(text)).values():
            assert all(parse(other.text) == other and other.text != text for other in others)


def test_a_position_changes_only_to_one_a_image_cannot_have_as_well():
    (changed,) = variants(parse("a red circle at the top"))["position"]
    assert changed.position == "at the bottom"
    assert len(variants(parse("a red circle in the center"))["position"]) == 4


def test_and_is_never_changed_since_every_relation_may_be_true_of_it():
    assert "relation" not in variants(parse("a red circle and a blue square"))
    assert {v.relation for v in variants(parse("a red circle above a blue square"))["relation"]} == {
        "below",
        "to the left of",
        "to the right of",
    }


def test_colours_are_swapped_only_where_that_changes_what_is_shown():
    (swapped,) = variants(parse("a red circle above a blue square"))["swap"]
    assert swapped.text == "a blue circle above a red square"
    assert "swap" not in variants(parse("a red circle above a red square"))
    assert "swap" not in variants(parse("a red circle above a blue circle"))
