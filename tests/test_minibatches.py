"""Minibatches of rows: all rows equally often, and in each batch its share of every region."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import kstest

from sknsgf import NSGFPlusPlus, NSGFSampler
from sknsgf._minibatches import (
    DEALT_ROWS,
    FEWEST_BATCHES,
    MOST_AXES,
    MOST_HELD_OUT,
    NormalBatches,
    OtherRows,
    RowBatches,
    hold_out,
    minibatches,
    n_training_rows,
)
from sknsgf._torch_bridge import seed_of, thread_map


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_minibatches_of_rows_are_rows_of_the_array(rng):
    rows = rng.normal(size=(40, 3))
    batches = RowBatches(rows, 16, 5, seed=0)
    flows = batches[slice(1, 4)]
    assert batches.size == 16
    assert flows.shape == (3, 16, 3)
    np.testing.assert_array_equal(flows, batches[slice(0, 5)][1:4])
    assert {tuple(row) for row in flows.reshape(-1, 3)} <= {tuple(row) for row in rows}


def test_minibatches_use_all_rows_equally_often():
    batches = RowBatches(np.arange(40)[:, None], 16, 5, seed=0)
    np.testing.assert_array_equal(np.bincount(batches[slice(0, 5)].ravel()), 2)


def test_a_small_sample_is_each_minibatch():
    batches = RowBatches(np.arange(6)[:, None], 16, 3, seed=0)
    assert batches.size == 6
    for batch in batches[slice(0, 3)]:
        assert sorted(batch.ravel()) == list(range(6))


def test_minibatches_of_source_and_target_are_drawn_apart():
    first, second = (
        RowBatches(np.arange(100), 10, 4, seed_of(0, stream)) for stream in ("source", "target")
    )
    assert not np.array_equal(first[slice(0, 4)], second[slice(0, 4)])


def test_minibatches_of_normal_draws_have_the_moments_and_never_repeat():
    mean, std = np.array([3.0, -1.0]), np.array([2.0, 0.0])
    batches = NormalBatches(mean, std, 500, 0)
    first, second = batches[slice(0, 10)], batches[slice(10, 20)]
    assert first.shape == second.shape == (10, 500, 2)
    np.testing.assert_allclose(first.mean(axis=(0, 1)), mean, atol=0.1)
    np.testing.assert_allclose(first.std(axis=(0, 1)), std, atol=0.1)
    assert len(np.unique([first[..., 0], second[..., 0]])) == 10_000
    again = NormalBatches(mean, std, 500, 0)
    np.testing.assert_array_equal(again[slice(0, 10)], first)


# Stratified draws of the normal law


def distance_to_normal_law(points):
    """Largest Kolmogorov distance of the points' projections on some directions."""
    angles = np.linspace(0, np.pi, 7)
    return max(
        kstest(points @ [np.cos(angle), np.sin(angle)], "norm").statistic for angle in angles
    )


def test_each_batch_of_stratified_normal_draws_and_all_together_are_close_to_the_law():
    batches = NormalBatches(np.zeros(2), np.ones(2), 1000, 0, stratified=True)
    draws, by_chance = batches[slice(0, 16)], NormalBatches(np.zeros(2), np.ones(2), 1000, 0)
    assert max(map(distance_to_normal_law, draws)) < 0.02  # by chance about 0.04
    assert distance_to_normal_law(draws.reshape(-1, 2)) < 0.002  # by chance about 0.01
    assert distance_to_normal_law(by_chance[slice(0, 16)].reshape(-1, 2)) > 0.005


def test_stratified_normal_draws_have_the_moments_and_never_repeat(rng):
    mean, std = rng.normal(size=20), rng.uniform(1, 2, size=20)
    std[3] = 0
    batches = NormalBatches(mean, std, 500, 0, stratified=True)
    draws = np.concatenate([batches[slice(0, 10)], batches[slice(10, 20)]]).reshape(-1, 20)
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=0.1)
    np.testing.assert_allclose(np.cov(draws.T), np.diag(std**2), atol=0.2)
    varying = np.flatnonzero(std)
    assert all(len(np.unique(draws[:, feature])) == len(draws) for feature in varying)


def test_the_features_of_the_largest_spread_are_stratified_whatever_slice_is_asked_for(rng):
    std = rng.permutation(np.arange(1.0, 4 * MOST_AXES))
    batches = NormalBatches(np.zeros(len(std)), std, 500, 0, stratified=True)
    draws = batches[slice(0, 4)]
    widest = np.sort(np.argsort(std)[-MOST_AXES:])
    distance = [kstest(draw, "norm").statistic for draw in (draws / std).reshape(-1, len(std)).T]
    np.testing.assert_array_equal(np.sort(np.argsort(distance)[:MOST_AXES]), widest)
    np.testing.assert_array_equal(batches[slice(3, 4)][0][:, widest], draws[3][:, widest])


def test_stratified_normal_draws_of_another_hand_are_others():
    size = DEALT_ROWS // FEWEST_BATCHES
    batches = NormalBatches(np.zeros(2), np.ones(2), size, 0, stratified=True)
    first, later = batches[slice(0, 1)], batches[slice(FEWEST_BATCHES, FEWEST_BATCHES + 1)]
    assert len(np.unique(np.vstack([first[0], later[0]]), axis=0)) == 2 * size


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_stratified_normal_draws_of_any_size_and_one_feature_are_finite(size):
    batches = NormalBatches(np.zeros(1), np.ones(1), size, 0, stratified=True)
    draws = batches[slice(0, 40)]
    assert draws.shape == (40, size, 1)
    assert np.isfinite(draws).all()


@pytest.mark.parametrize(("kind", "close"), [("stratified", True), ("random", False)])
def test_the_parameter_says_how_the_normal_law_is_drawn_from(rng, kind, close):
    moments = {"source_mean_": np.zeros(2), "source_std_": np.ones(2)}
    estimator = SimpleNamespace(minibatches=kind, seed_=0, **moments)
    X = rng.normal(size=(1000, 2))
    particles, _ = minibatches(estimator, None, X, 1000, 1, ("source", "target"))
    assert (distance_to_normal_law(particles[slice(0, 1)][0]) < 0.015) == close


# Rows held out for early stopping


@pytest.mark.parametrize("left_out", [[], [0], [9], [0, 1, 2], [2, 3, 7, 9], list(range(9))])
def test_the_other_rows_are_all_but_those_left_out(rng, left_out):
    X = rng.normal(size=(10, 3))
    others, expected = OtherRows(X, np.array(left_out, dtype=int)), np.delete(X, left_out, axis=0)
    assert len(others) == len(expected)
    rows = rng.integers(len(expected), size=(4, 5))
    np.testing.assert_array_equal(others[rows], expected[rows])


@pytest.mark.parametrize(
    ("n_rows", "fraction", "n_held_out"),
    [(200, 0.1, 20), (201, 0.1, 21), (2, 0.1, 1), (2, 0.9, 1), (10**6, 0.1, MOST_HELD_OUT)],
)
def test_a_share_of_the_rows_of_both_samples_is_held_out(n_rows, fraction, n_held_out):
    X, Y = np.arange(n_rows), -np.arange(n_rows)
    estimator = SimpleNamespace(early_stopping=True, validation_fraction=fraction, seed_=0)
    training, held_out = hold_out(estimator, X, Y)
    for sample, kept, out in zip((X, Y), training, held_out, strict=True):
        assert len(out) == n_held_out
        assert len(kept) == n_training_rows(estimator, sample) == n_rows - n_held_out
        both = np.concatenate([kept[np.arange(len(kept))], out])
        np.testing.assert_array_equal(np.sort(both), np.sort(sample))
    assert n_held_out == 1 or not np.array_equal(held_out[0], -held_out[1])  # drawn apart


def test_of_the_normal_law_nothing_is_held_out():
    estimator = SimpleNamespace(early_stopping=True, validation_fraction=0.1, seed_=0)
    (source, target), (other, held_out) = hold_out(estimator, None, np.arange(50))
    assert source is None
    assert other is None
    assert (len(target), len(held_out)) == (45, 5)


def test_without_early_stopping_the_samples_are_left_as_they_are():
    estimator, X = SimpleNamespace(early_stopping=False), np.arange(5)
    samples, held_out = hold_out(estimator, None, X)
    assert samples[0] is None
    assert samples[1] is X
    assert held_out is None
    assert n_training_rows(estimator, X) == 5


# Stratified


def stratified(X, size, n_batches, seed=0):
    """Indices of the rows of all batches, stratified."""
    batches = RowBatches(np.asarray(X), size, n_batches, seed, stratified=True)
    everything = batches[slice(0, n_batches)]
    np.testing.assert_array_equal(everything, batches.X[batches.rows])
    return batches.rows


@pytest.mark.parametrize(
    ("n_rows", "n_features", "size", "n_batches"),
    [(640, 2, 64, 10), (500, 3, 64, 7), (100, 1, 99, 9), (300, 20, 2, 200), (50, 2, 7, 1)],
)
def test_stratified_rows_are_those_of_random_batches(rng, n_rows, n_features, size, n_batches):
    X = rng.normal(size=(n_rows, n_features))
    dealt, random = stratified(X, size, n_batches), RowBatches(X, size, n_batches, 0).rows
    assert dealt.shape == random.shape == (n_batches, size)
    np.testing.assert_array_equal(np.sort(dealt, axis=None), np.sort(random, axis=None))


def test_in_one_dimension_each_batch_has_one_of_so_many_neighbours(rng):
    X = rng.normal(size=(8 * 64, 1))
    ranks = X[:, 0].argsort().argsort()[stratified(X, 64, 8)]
    np.testing.assert_array_equal(np.sort(ranks, axis=1) // 8, np.tile(np.arange(64), (8, 1)))


@pytest.mark.parametrize("n_features", [2, 40])
def test_each_batch_has_its_share_of_far_clusters(rng, n_features):
    n_batches, size = 32, 256
    cluster = rng.permutation(np.repeat([0, 1, 2], [4096, 3072, 1024]))
    centres = rng.normal(size=(3, n_features)) * 50
    X = centres[cluster] + rng.normal(size=(len(cluster), n_features))
    counts = [np.bincount(cluster[batch], minlength=3) for batch in stratified(X, size, n_batches)]
    assert abs(np.array(counts) - [128, 96, 32]).max() <= 3
    by_chance = RowBatches(X, size, n_batches, 0).rows
    counts = [np.bincount(cluster[batch], minlength=3) for batch in by_chance]
    assert abs(np.array(counts) - [128, 96, 32]).max() > 9


def test_clusters_that_no_feature_tells_apart_have_their_shares(rng):
    n_features = 4 * MOST_AXES
    side = rng.permutation(np.repeat([-1, 1], 1024))
    X = rng.normal(size=(2048, n_features)) + side[:, None]  # 11 apart, but 2 in each feature
    shares = (side[stratified(X, 128, 16)] > 0).mean(axis=1)
    assert np.ptp(shares) <= 4 / 128  # by chance about 0.15


def test_who_of_the_neighbours_goes_to_which_batch_is_chance(rng):
    X = rng.normal(size=(512, 2))
    first, again, other = (stratified(X, 32, 16, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    shared = [len(np.intersect1d(a, b)) for a, b in zip(first, other, strict=True)]
    assert np.mean(shared) < 3  # two of 32 by chance


def test_batches_are_dealt_a_hand_at_a_time(rng):
    size, n_batches = 512, 2 * DEALT_ROWS // 512 + 1
    X = rng.normal(size=(4096, 1))
    batches = RowBatches(X, size, n_batches, 0, stratified=True)
    by_chance = batches.rows.copy()
    batches[slice(0, 1)]
    is_dealt = (batches.rows != by_chance).any(axis=1)
    n_together = is_dealt.sum()
    assert 2 < n_together <= DEALT_ROWS // size
    assert is_dealt[:n_together].all()
    before = batches.rows[0].copy()
    batches[slice(0, n_batches)]
    np.testing.assert_array_equal(batches.rows[0], before)
    np.testing.assert_array_equal(batches.rows, stratified(X, size, n_batches))


def test_large_batches_are_dealt_several_at_a_time(rng):
    size = DEALT_ROWS // 4
    X = rng.normal(size=(2 * size, 1))
    medians = np.median(X[stratified(X, size, FEWEST_BATCHES)], axis=(1, 2))
    assert np.ptp(medians) < 1e-3  # by chance about 0.02


def test_a_batch_alone_is_left_to_chance(rng):
    X = rng.normal(size=(100, 2))
    np.testing.assert_array_equal(stratified(X, 40, 1), RowBatches(X, 40, 1, 0).rows)


def test_threads_that_ask_at_once_get_the_same_batches(rng):
    X = rng.normal(size=(5000, 3))
    batches = RowBatches(X, 100, 40, 0, stratified=True)
    asked = [slice(i, i + 1) for i in range(40)]
    got = thread_map(batches.__getitem__, asked, n_jobs=4)
    np.testing.assert_array_equal(np.concatenate(got), X[stratified(X, 100, 40)])


def test_a_large_offset_changes_nothing(rng):
    X = rng.integers(-1000, 1000, size=(600, 20)).astype(float)
    np.testing.assert_array_equal(stratified(X, 50, 12), stratified(X + 2.0**40, 50, 12))


@pytest.mark.parametrize("value", [0.0, 1e150, 1e-300])
@pytest.mark.filterwarnings("error")
def test_equal_and_extreme_rows_are_dealt_as_well(rng, value):
    X = value * rng.choice([-1.0, 1.0], size=(90, 2))
    np.testing.assert_array_equal(np.bincount(stratified(X, 30, 6).ravel()), 2)


def test_rows_of_a_file_are_dealt_as_those_in_memory(rng, tmp_path):
    X = rng.normal(size=(300, 3)).astype(np.float32)
    np.save(tmp_path / "X.npy", X)
    kind = {"n_flows": 3, "flow_batch_size": 64, "max_iter": 5, "random_state": 0}
    flows = [NSGFSampler(**kind).fit(rows, X + 3) for rows in (X, str(tmp_path / "X.npy"))]
    assert flows[0].loss_curve_ == flows[1].loss_curve_


@pytest.mark.parametrize("estimator", [NSGFSampler(), NSGFPlusPlus()])
def test_minibatches_matter_where_a_sample_is_larger_than_a_batch(rng, estimator):
    X, Y = rng.normal(size=(120, 2)), rng.normal(size=(130, 2)) + 3

    def fitted(size, minibatches):
        kind = {"flow_batch_size": size, "n_flows": 4, "max_iter": 5, "random_state": 0}
        return estimator.set_params(**kind, minibatches=minibatches).fit(X, Y).transform(X)

    assert not np.array_equal(fitted(32, "stratified"), fitted(32, "random"))
    np.testing.assert_array_equal(fitted(200, "stratified"), fitted(200, "random"))
