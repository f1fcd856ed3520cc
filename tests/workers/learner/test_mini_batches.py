"""Which pairs an optimizer step learns, and on which rank."""

import random

import pytest

from pcpo_ray import config
from pcpo_ray.workers.learner import mini_batches
from tests.support import small


def pairs(blocks):
    """Every (group, image, step) of the blocks."""
    return [(block.place, row, block.k) for block in blocks for row in range(*block.rows.indices(block.rows.stop))]


def test_every_group_is_learned_once_per_epoch_for_any_updates():
    optimizer = config.Optimizer(minibatches=3, epochs=2)
    parts = mini_batches.split_groups(optimizer, 8, seed=0, step=1)
    assert len(parts) == 6 and all(2 <= len(part) <= 3 for part in parts)
    for epoch in (parts[:3], parts[3:]):
        assert sorted(place for part in epoch for place in part) == list(range(8))


def test_they_depend_on_seed_and_step_alone():
    optimizer = config.Optimizer(minibatches=2)
    drawn = mini_batches.split_groups(optimizer, 16, seed=1, step=5)
    assert drawn == mini_batches.split_groups(optimizer, 16, seed=1, step=5)
    assert drawn != mini_batches.split_groups(optimizer, 16, seed=2, step=5)
    assert drawn != mini_batches.split_groups(optimizer, 16, seed=1, step=6)


def test_fewer_groups_than_updates_are_one_an_update():
    assert [len(part) for part in mini_batches.split_groups(config.Optimizer(minibatches=4), 2, seed=0, step=1)] == [
        1,
        1,
    ]


def test_blocks_cover_all_pairs_once_in_the_order_images_then_steps():
    blocks = mini_batches.cut_into_blocks({7: (5, 2), 3: (4, 2)}, 3)
    assert [(block.place, block.rows.start, block.rows.stop, block.k) for block in blocks] == [
        *((7, 0, 3, 0), (7, 0, 3, 1), (7, 3, 5, 0), (7, 3, 5, 1)),
        *((3, 0, 3, 0), (3, 0, 3, 1), (3, 3, 4, 0), (3, 3, 4, 1)),
    ]
    assert sorted(pairs(blocks)) == [
        (place, row, k) for place, n in ((3, 4), (7, 5)) for row in range(n) for k in (0, 1)
    ]


def test_eight_ranks_on_four_groups_have_as_many_blocks_each():
    blocks = mini_batches.cut_into_blocks(dict.fromkeys((5, 2, 0, 6), (12, 10)), 12)
    shares = [mini_batches.rank_share(blocks, rank, 8) for rank in range(8)]
    assert [len(own) for own in shares] == [5] * 8
    assert all(len({block.place for block in own}) == 1 for own in shares)  # half of a group's steps


DRAWN = [random.Random(n) for n in range(40)]


@pytest.mark.parametrize("drawn", DRAWN, ids=range(len(DRAWN)))
def test_ranks_share_all_blocks_and_differ_by_at_most_one(drawn):
    images, steps, ranks = drawn.randint(1, 9), drawn.randint(1, 6), drawn.randint(1, 12)
    places = drawn.sample(range(30), drawn.randint(1, 9))
    blocks = mini_batches.cut_into_blocks(dict.fromkeys(places, (images, steps)), drawn.randint(1, images))
    shares = [mini_batches.rank_share(blocks, rank, ranks) for rank in range(ranks)]
    assert sorted(pair for own in shares for pair in pairs(own)) == sorted(pairs(blocks))
    for counts in (
        [len(own) for own in shares],
        *(
            [sum(len(block) == length for block in own) for own in shares]
            for length in {len(block) for block in blocks}
        ),
    ):
        assert max(counts) - min(counts) <= 1
    order = {block.key: number for number, block in enumerate(blocks)}
    for own in shares:
        numbers = [order[block.key] for block in own]
        assert numbers == sorted(numbers)
    # side by side: two neighbours of a kind share a group at most
    opened = sum(len({block.place for block in own}) for own in shares)
    assert opened <= len(places) + len({len(block) for block in blocks}) * (ranks - 1)
    assert mini_batches.rank_share(blocks, 0, 1) == blocks


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_a_rank_is_sent_the_groups_that_it_learns_any_block_of(small_sd, ranks):
    run = small.run(small_sd, rollout__prompts=5, optimizer__minibatches=2, optimizer__epochs=2, sampling__batch=3)
    groups = [4] * 5
    for rank in range(ranks):
        expected = set()
        for part in mini_batches.split_groups(run.optimizer, 5, seed=0, step=3):
            blocks = mini_batches.cut_into_blocks(dict.fromkeys(part, (4, 4)), 3)
            expected |= {block.place for block in mini_batches.rank_share(blocks, rank, ranks)}
        found = mini_batches.rank_groups(run, groups, 4, step=3, rank=rank, ranks=ranks)
        assert found == sorted(expected) and (ranks > 1 or found == [0, 1, 2, 3, 4])


def test_a_micro_batch_below_the_sampler_s_number_cuts_blocks_of_its_own(small_sd):
    lengths = [
        mini_batches.length_of(small.run(small_sd, rollout__images=8, sampling__batch=sampled), size)
        for sampled, size in (("null", None), (6, None), (6, 4), (6, 64), (16, None))
    ]
    assert lengths == [8, 6, 4, 6, 8]


def test_shares_that_cannot_be_even_are_said_with_numbers_that_are(small_sd):
    def said(ranks, samplers=1, **changes):
        run = small.run(
            small_sd, rollout__prompts=6, workers__learner=f"{{ranks: {ranks}, samples: true}}",
            workers__samplers__workers=samplers, **changes,
        )  # fmt: skip
        return mini_batches.uneven_shares(run, 4)

    assert said(1, 1) == said(3, 3) == said(2, 0) == []
    (groups,) = said(3, 1)
    assert groups.startswith("a batch has rollout.prompts=6 groups: 2 of 4 processes that sample make 2, the others 1")
    assert groups.endswith("; 3 share them evenly")
    blocks, _ = said(5, 0)
    assert blocks.startswith("a mini-batch has 24 blocks") and "4 of workers.learner.ranks=5 learn 5" in blocks
    assert blocks.endswith("; 4 ranks share them evenly")
    assert said(3, 1, rollout__max_staleness=1) == []  # who has less begins the next batch


def test_joined_blocks_of_minibatches_are_unique_and_in_batch_order():
    blocks = mini_batches.cut_into_blocks({0: (4, 2), 1: (4, 2)}, 2)
    assert mini_batches.joined([blocks[5:], blocks[:3], blocks[2:6]]) == blocks
