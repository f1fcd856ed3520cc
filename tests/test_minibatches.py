"""Which groups an optimizer step learns, and on which rank."""

from pcpo_ray import config, minibatches


def test_every_group_is_learned_once_an_epoch_whatever_the_number_of_updates_and_ranks():
    optimizer = config.Optimizer(updates=3, epochs=2)
    parts = minibatches.of(optimizer, 8, seed=0, step=1)
    assert len(parts) == 6 and all(2 <= len(part) <= 3 for part in parts)
    for epoch in (parts[:3], parts[3:]):
        assert sorted(place for part in epoch for place in part) == list(range(8))
    for ranks in (1, 2, 3):
        shares = [[minibatches.share(part, rank, ranks) for rank in range(ranks)] for part in parts]
        assert all(
            sorted(n for own in share for n in own) == sorted(part) for share, part in zip(shares, parts, strict=True)
        )
        assert all(max(map(len, share)) - min(map(len, share)) <= 1 for share in shares)


def test_they_depend_on_seed_and_step_alone():
    optimizer = config.Optimizer(updates=2)
    drawn = minibatches.of(optimizer, 16, seed=1, step=5)
    assert drawn == minibatches.of(optimizer, 16, seed=1, step=5)
    assert drawn != minibatches.of(optimizer, 16, seed=2, step=5)
    assert drawn != minibatches.of(optimizer, 16, seed=1, step=6)


def test_fewer_groups_than_updates_are_one_an_update():
    assert [len(part) for part in minibatches.of(config.Optimizer(updates=4), 2, seed=0, step=1)] == [1, 1]
