import numpy as np
import pytest
from scipy.stats import kstest
from sklearn.datasets import make_moons, make_s_curve
from sklearn.metrics import pairwise_distances_argmin_min

from sknsgf.datasets import (
    PAIRS,
    make_8gaussians,
    make_checkerboard,
    make_pair,
    make_plane_s_curve,
    make_scaled_moons,
    quasi_random_pair,
)

MAKERS = [make_8gaussians, make_checkerboard, make_plane_s_curve, make_scaled_moons]
CENTRES = 5 * np.array([[np.cos(k * np.pi / 4), np.sin(k * np.pi / 4)] for k in range(8)])


def nearest_centre(X):
    return ((X[:, None] - CENTRES) ** 2).sum(axis=2).argmin(axis=1)


def square(X):
    """Column and row of each point on the board, as one number."""
    column, row = np.floor((X + 4) / 2).astype(int).T
    return 4 * column + row


def nearest_moon(X):
    """Moon of each point, and its distance to the arc of sklearn shifted along the diagonal."""
    arcs, moon = make_moons(2000)
    shifts = np.linspace(0, 0.2, 101)
    cloud = (arcs[:, None] + shifts[:, None]).reshape(-1, 2)
    nearest, distance = pairwise_distances_argmin_min((X + 1) / 3, cloud)
    return np.repeat(moon, len(shifts))[nearest], distance


def test_8gaussians_has_the_stated_centres_and_covariance():
    X = make_8gaussians(40_000, random_state=0)
    centre = nearest_centre(X)
    for k in range(8):
        cluster = X[centre == k]
        np.testing.assert_allclose(cluster.mean(axis=0), CENTRES[k], atol=0.04)
        np.testing.assert_allclose(np.cov(cluster.T), np.sqrt(0.1) * np.eye(2), atol=0.025)


def test_checkerboard_is_uniform_on_the_dark_squares():
    X = make_checkerboard(8000, random_state=0)
    assert np.unique(square(X)).tolist() == [0, 2, 5, 7, 8, 10, 13, 15]
    for position in ((X + 4) / 2 % 1).T:
        assert kstest(position, "uniform").pvalue > 0.01


@pytest.mark.parametrize("n_samples", [500, 501])
def test_moons_are_the_arcs_of_sklearn_shifted_along_the_diagonal(n_samples):
    moon, distance = nearest_moon(make_scaled_moons(n_samples, random_state=0))
    assert distance.max() < 0.005
    assert moon.sum() in (n_samples // 2, (n_samples + 1) // 2)


def test_s_curve_has_the_moments_of_that_of_sklearn():
    X = make_plane_s_curve(40_000, random_state=0)
    expected = 1.5 * make_s_curve(40_000, noise=0.05, random_state=0)[0][:, [0, 2]]
    np.testing.assert_allclose(X.mean(axis=0), expected.mean(axis=0), atol=0.05)
    np.testing.assert_allclose(np.cov(X.T), np.cov(expected.T), atol=0.05)


@pytest.mark.parametrize("name", ["8gaussians", "moons", "s-curve", "checkerboard"])
def test_normal_source_is_standard(name):
    X, _ = make_pair(name, (20_000, 1), random_state=0)
    for column in X.T:
        assert kstest(column, "norm").pvalue > 0.01
    assert abs(np.corrcoef(X.T)[0, 1]) < 0.03


def test_8gaussians_moons_has_both_laws():
    X_source, X_target = make_pair("8gaussians-moons", 400, random_state=0)
    assert np.linalg.norm(X_source - CENTRES[nearest_centre(X_source)], axis=1).max() < 2.5
    assert X_target.min() >= -1 - 3
    assert X_target.max() <= 3 * 2.2 - 1


@pytest.mark.parametrize("n_samples", [5, 803, 1600])
@pytest.mark.parametrize(
    # The clouds of 8gaussians overlap a little: about one row in 1400 is nearer to another centre.
    ("make", "piece", "n_strayed"),
    [(make_8gaussians, nearest_centre, 3), (make_checkerboard, square, 0)],
)
def test_pieces_are_balanced(make, piece, n_strayed, n_samples):
    _, counts = np.unique(piece(make(n_samples, random_state=0)), return_counts=True)
    assert len(counts) == min(8, n_samples)
    assert counts.max() - counts.min() <= 1 + n_strayed


def test_extra_rows_go_to_random_pieces():
    first = [nearest_centre(make_8gaussians(1, random_state=seed))[0] for seed in range(60)]
    assert set(first) == set(range(8))


@pytest.mark.parametrize("make", MAKERS)
def test_rows_are_shuffled(make):
    X = make(2000, random_state=0)
    for column in X.T:
        assert abs(np.corrcoef(column[1:], column[:-1])[0, 1]) < 0.1


@pytest.mark.parametrize("make", MAKERS)
def test_makers_return_float64_rows_that_the_seed_determines(make):
    X = make(31, random_state=7)
    assert X.shape == (31, 2)
    assert X.dtype == np.float64
    np.testing.assert_array_equal(X, make(31, random_state=7))
    assert not np.array_equal(X, make(31, random_state=8))
    assert make().shape == (2000, 2)


@pytest.mark.parametrize("draw", [make_pair, quasi_random_pair])
@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_determined_by_the_seed_alone(name, draw):
    state = np.random.get_state()  # noqa: NPY002
    pair = draw(name, 32, random_state=3)
    assert np.array_equal(state[1], np.random.get_state()[1])  # noqa: NPY002
    for X, again, from_instance, other in zip(
        pair,
        draw(name, 32, random_state=3),
        draw(name, 32, random_state=np.random.RandomState(3)),  # noqa: NPY002
        draw(name, 32, random_state=4),
        strict=True,
    ):
        assert X.shape == (32, 2)
        assert X.dtype == np.float64
        np.testing.assert_array_equal(X, again)
        np.testing.assert_array_equal(X, from_instance)
        assert not np.array_equal(X, other)


@pytest.mark.parametrize("name", PAIRS)
def test_sizes_of_a_pair_may_differ(name):
    X_source, X_target = make_pair(name, (9, np.int64(21)), random_state=0)
    assert X_source.shape == (9, 2)
    assert X_target.shape == (21, 2)


def test_source_and_target_rows_are_unrelated():
    for draw in (make_pair, quasi_random_pair):
        X_source, X_target = draw("checkerboard", 2048, random_state=0)
        assert abs(np.corrcoef(X_source.T, X_target.T)[:2, 2:]).max() < 0.1


@pytest.mark.parametrize("n_samples", [16, 2048])
def test_quasi_random_pieces_are_balanced(n_samples):
    X_source, X_target = quasi_random_pair("8gaussians-moons", n_samples, random_state=0)
    np.testing.assert_allclose(np.bincount(nearest_centre(X_source)), n_samples // 8, atol=3)
    assert nearest_moon(X_target)[0].sum() == n_samples // 2
    _, X_target = quasi_random_pair("checkerboard", n_samples, random_state=0)
    np.testing.assert_array_equal(
        np.unique(square(X_target), return_counts=True)[1], n_samples // 8
    )


@pytest.mark.parametrize("name", PAIRS)
def test_quasi_random_means_vary_less_than_those_of_random_rows(name):
    def spread_of_means(draw):
        means = [np.hstack(draw(name, 256, random_state=seed)).mean(axis=0) for seed in range(20)]
        return np.std(means, axis=0)

    assert np.all(spread_of_means(quasi_random_pair) < spread_of_means(make_pair) / 3)


@pytest.mark.parametrize("name", PAIRS)
def test_quasi_random_samples_of_one_law_are_close(name):
    ot = pytest.importorskip("ot")

    def floor(draw):
        first, second = (draw(name, 256, random_state=seed)[1] for seed in (0, 1))
        return np.sqrt(ot.emd2([], [], ot.dist(first, second)))

    assert floor(quasi_random_pair) < 0.7 * floor(make_pair)


@pytest.mark.parametrize("draw", [make_pair, quasi_random_pair])
@pytest.mark.parametrize("name", ["8-gaussians", None, ["moons"]])
def test_unknown_pair_raises(name, draw):
    with pytest.raises(
        ValueError, match=rf"The 'name' parameter of {draw.__name__} .*'moons'.*Got"
    ):
        draw(name)


@pytest.mark.parametrize("n_samples", [0, 2.0, True, "3"])
@pytest.mark.parametrize("make", MAKERS)
def test_bad_number_of_rows_raises(make, n_samples):
    message = rf"'n_samples' parameter of {make.__name__} must be an int in .* Got {n_samples!r}"
    with pytest.raises(ValueError, match=message):
        make(n_samples)


@pytest.mark.parametrize("n_samples", [0, (1, 2, 3), (4, 0), None, "ab"])
def test_bad_sizes_of_a_pair_raise(n_samples):
    with pytest.raises(ValueError, match=r"'n_samples' .* or a pair \(n_source, n_target\) .* Got"):
        make_pair("moons", n_samples)


@pytest.mark.parametrize("n_samples", [8, 100, 64.0, (64, 64)])
def test_quasi_random_size_must_be_a_power_of_two(n_samples):
    with pytest.raises(ValueError, match=r"must be a power of 2 in the range \[16, inf\)\. Got"):
        quasi_random_pair("moons", n_samples)
