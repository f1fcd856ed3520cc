"""The Fréchet distance against scipy's matrix square root, which is how clean-fid and the original have it."""

import numpy as np
import pytest
from scipy import linalg

from pcpo_ray.rewards.quality.frechet import distance, normal


def clean_fid(one, other):
    """As clean-fid says: means, np.cov, and scipy's square root of the covariances' product."""
    apart = one.mean(0) - other.mean(0)
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = linalg.sqrtm(first @ second)
    return apart @ apart + np.trace(first) + np.trace(second) - 2 * np.trace(np.real(root))


def sets(count, others, dimensions, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(dimensions, dimensions)) / np.sqrt(dimensions)
    return rng.normal(size=(count, dimensions)), rng.normal(0.3, 1.2, size=(others, dimensions)) @ mix


@pytest.mark.parametrize("dimensions", [1, 2, 16, 64])
def test_it_is_what_scipy_gives_to_a_millionth(dimensions):
    one, other = sets(400, 300, max(2, dimensions))
    found = distance(normal(one), normal(other))
    assert found == pytest.approx(clean_fid(one, other), rel=1e-6)


def test_it_is_clean_fids_number_on_features_that_were_saved(tmp_path):
    one, other = sets(200, 250, 32)
    for name, values in (("one", one), ("other", other)):
        np.save(tmp_path / f"{name}.npy", values.astype(np.float32))
    one, other = (np.load(tmp_path / f"{name}.npy") for name in ("one", "other"))
    expected = clean_fid(one.astype(np.float64), other.astype(np.float64))
    assert distance(normal(one), normal(other)) == pytest.approx(expected, rel=1e-6)


def test_the_distance_of_1d_normals_is_that_of_their_means_and_stds():
    grid = np.linspace(-1, 1, 101)[:, None]
    one, other = 2 * grid, 5 * grid + 3
    assert distance(normal(one), normal(other)) == pytest.approx(9 + (3 * grid.std(ddof=1)) ** 2, rel=1e-9)


def test_equal_sets_are_at_0_even_with_fewer_images_than_dimensions():
    few = np.random.default_rng(0).normal(size=(20, 128))
    assert distance(normal(few), normal(few)) == pytest.approx(0, abs=1e-9)
    assert distance(normal(few), normal(few[::-1])) == pytest.approx(0, abs=1e-9)


def test_with_fewer_images_than_dimensions_the_eigenvalues_agree():
    one, other = sets(30, 40, 64)
    product = np.cov(one, rowvar=False) @ np.cov(other, rowvar=False)
    shared = np.sqrt(linalg.eigvals(product).astype(complex)).real.sum()
    apart = one.mean(0) - other.mean(0)
    expected = apart @ apart + one.var(0, ddof=1).sum() + other.var(0, ddof=1).sum() - 2 * shared
    assert distance(normal(one), normal(other)) == pytest.approx(expected, rel=1e-6)


def test_smaller_samples_of_one_distribution_are_farther_apart():
    """The bias, about as 1 / N: why only distances at equal N are compared."""
    rng = np.random.default_rng(0)

    def apart(count):
        return np.mean(
            [distance(normal(rng.normal(size=(count, 16))), normal(rng.normal(size=(count, 16)))) for _ in range(20)]
        )

    found = {count: apart(count) for count in (50, 200, 800)}
    assert found[50] > 3 * found[200] > 9 * found[800] > 0
    assert found[50] * 50 == pytest.approx(found[800] * 800, rel=0.35)
