"""Random transport problems of every kind: a solve is accurate, or says that it is not.

The reference is a potential in float64 that is certified here, without the solver's code: of all
plans ``a_i b_j exp((f_i + g_j - cost_ij) / eps)``, the one with both marginals is the solution.
"""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from sknsgf.flow.sinkhorn import cross_potential, self_potential, sinkhorn_velocity

TOL = 1e-3  # of the solves that are checked
ALLOWED = 10 * TOL  # mean deviation of a velocity, relative to the radius of the clouds
CERTIFIED = 1e-7  # marginal error of a reference
LARGEST_EXPONENT = 1e5  # (radius / blur) ** 2 from which estimators warn that float32 is too short


class UncertifiedError(Exception):
    """No reference was found."""


def log_uniform(random, low, high):
    return float(np.exp(random.uniform(np.log(low), np.log(high))))


def random_cloud(random, n, d):
    cloud = random.normal(size=(n, d))
    kind = random.integers(5)
    if kind == 1:  # clusters of unequal shares
        centres = log_uniform(random, 1, 10) * random.normal(size=(3, d))
        cloud = 0.3 * cloud + centres[random.choice(3, size=n, p=[0.7, 0.2, 0.1])]
    elif kind == 2:  # duplicated points
        cloud = cloud[random.integers(max(1, n // 3), size=n)]
    elif kind == 3:  # heavy tails
        cloud *= np.exp(random.normal(size=(n, 1)))
    elif kind == 4:  # a line
        cloud = cloud[:, :1] * random.normal(size=d)
    return log_uniform(random, 0.1, 10) * cloud


def random_weights(random, n):
    decades = random.choice([0.0, 1.0, 6.0])
    weights = 10 ** (-decades * random.random(n))
    return weights / weights.sum()


def random_problem(seed):
    """Clouds and weights in float32, and a blur."""
    random = np.random.default_rng(seed)
    n, m = (round(log_uniform(random, 2, 300)) for _ in range(2))
    d = round(log_uniform(random, 1, 64))
    x, y = random_cloud(random, n, d), random_cloud(random, m, d)
    y += random.choice([0.0, 1.0, 100.0]) * random.normal(size=d)
    offset = random.choice([0.0, 1.0, 1e4]) * random.normal(size=d)
    x, y = (np.float32(cloud + offset) for cloud in (x, y))
    a, b = (np.float32(random_weights(random, size)) for size in (n, m))
    spread = np.sqrt(np.vstack([x, y]).var(axis=0, dtype=float).sum())
    return x, y, a, b, max(spread, 1e-3) * log_uniform(random, 0.01, 3)


def certified_projection(x, y, a, b, g, blur):
    """Plan-weighted means of ``y`` seen from ``x``, from a potential that solves the problem."""
    h, scores = np.zeros_like(b), (g - cdist(x, y, "sqeuclidean") / 2) / blur**2 + np.log(b)
    for _ in range(2000):  # plain Sinkhorn iterations, if any are needed
        plan = np.exp(scores + h - logsumexp(scores + h, axis=1, keepdims=True))
        if np.abs(a @ plan - b).sum() < CERTIFIED:
            break
        h += np.log(b / (a @ plan).clip(1e-300))
    if np.abs(a @ plan - b).sum() >= CERTIFIED:
        raise UncertifiedError
    return plan @ y


def tensors(*arrays):
    return [torch.from_numpy(array)[None] for array in arrays]


def reference_velocity(x, y, a, b, blur):
    x, y, a, b = (np.float64(array) for array in (x, y, a, b))
    a, b = a / a.sum(), b / b.sum()
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre
    exact = {"blur": blur, "tol": CERTIFIED / 10, "max_iter": 2000}
    g = cross_potential(*tensors(x, y, a, b), **exact).potential[0].numpy()
    f = self_potential(*tensors(x, a), **exact).potential[0].numpy()
    return certified_projection(x, y, a, b, g, blur) - certified_projection(x, x, a, a, f, blur)


def outcome(seed):
    """Deviation of a velocity relative to what is allowed, and whether a fit would have warned."""
    x, y, a, b, blur = random_problem(seed)
    solved = sinkhorn_velocity(*tensors(x, y, a, b), blur=blur, tol=TOL)
    velocity = solved.velocity[0].numpy().astype(float)
    assert np.isfinite(velocity).all()
    both = np.vstack([x, y]).astype(float)
    radius = np.sqrt(((both - both.mean(axis=0)) ** 2).sum(axis=1).max())
    warned = float(solved.error) > 2 * TOL or (radius / blur) ** 2 > LARGEST_EXPONENT
    deviation = velocity - reference_velocity(x, y, a, b, blur)
    mean = np.float64(a) @ np.sqrt((deviation**2).sum(axis=1))
    rounding = np.finfo(np.float32).eps * np.sqrt((both**2).sum(axis=1).max())
    return mean / (ALLOWED * radius + 2 * rounding), warned


def check(seeds):
    n_warned = n_without_reference = 0
    for seed in seeds:
        try:
            deviation, warned = outcome(seed)
        except UncertifiedError:
            n_without_reference += 1
            continue
        assert deviation < 1 or warned, f"seed {seed}: {deviation:.1f} times what is allowed"
        n_warned += warned
    assert n_warned < 0.1 * len(seeds)
    assert n_without_reference <= 0.01 * len(seeds)


def test_random_problems_are_solved_accurately_or_reported_as_unsolved():
    check(range(50))


@pytest.mark.endurance
def test_many_random_problems_are_solved_accurately_or_reported_as_unsolved():
    check(range(50, 500))


@pytest.mark.endurance
def test_ten_thousand_random_problems_are_solved_accurately_or_reported_as_unsolved():
    check(range(10_000))
