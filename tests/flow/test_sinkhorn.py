import math

import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sknsgf.flow import kernels
from sknsgf.flow.sinkhorn import (
    SinkhornState,
    barycentric_projection,
    cross_potential,
    extend_potential,
    self_potential,
    sinkhorn_velocity,
)

TIGHT = {"tol": 1e-10, "max_iter": 3000}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def clouds(batch=1, n=30, m=40, d=2, dtype=torch.float64):
    return normal(batch, n, d, dtype=dtype), 0.5 * normal(batch, m, d, seed=1, dtype=dtype) + 1


def random_weights(batch, n, seed=2, decades=1.0, dtype=torch.float64):
    weights = 10 ** (-decades * torch.rand(batch, n, generator=generator(seed), dtype=dtype))
    return weights / weights.sum(1, keepdim=True)


def equal_weights(cloud):
    return torch.full(cloud.shape[:2], 1 / cloud.shape[1], dtype=cloud.dtype)


def half_squared_distance(x, y):
    return (x[:, :, None] - y[:, None]).square().sum(-1) / 2


def plan(x, y, a, b, g, blur):
    """Plan with exact rows for a target potential, straight from its definition."""
    scores = (g[:, None] - half_squared_distance(x, y)) / blur**2 + b.log()[:, None]
    return a[..., None] * scores.softmax(-1)


def pot_plan(x, y, a, b, blur):
    """Converged plan of one problem by POT, whose cost is the squared distance."""
    cost = torch.cdist(x, y).square()
    options = {"numItermax": 50_000, "stopThr": 1e-13, "warn": False}
    return ot.sinkhorn(a, b, cost, 2 * blur**2, method="sinkhorn_log", **options)


def pot_velocity(x, y, a, b, blur):
    means = [
        (p @ points) / p.sum(1, keepdim=True)
        for points, p in ((y, pot_plan(x, y, a, b, blur)), (x, pot_plan(x, x, a, a, blur)))
    ]
    return means[0] - means[1]


def unrolled_cost(x, y, blur, n_iter=400):
    """Entropic cost of equal weights after plain iterations that autograd can walk through."""
    cost, eps = half_squared_distance(x, y), blur**2
    f, g = torch.zeros_like(x[..., 0]), torch.zeros_like(y[..., 0])
    for _ in range(n_iter):
        f = -eps * (((g[:, None] - cost) / eps).logsumexp(2) - math.log(y.shape[1]))
        g = -eps * (((f[:, :, None] - cost) / eps).logsumexp(1) - math.log(x.shape[1]))
    return f.mean() + g.mean()


# Closed forms


def test_velocity_of_a_single_particle_is_the_way_to_a_single_target():
    x, y = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[-3.0, 7.0]]])
    torch.testing.assert_close(sinkhorn_velocity(x, y, blur=0.1).velocity, y - x)


@pytest.mark.parametrize("blur", [0.1, 0.5, 5.0])
@pytest.mark.parametrize("d", [1, 3, 20])
def test_velocity_is_the_shift_for_a_shifted_copy(d, blur):
    x = normal(2, 40, d)
    shift = torch.linspace(-2, 3, d, dtype=x.dtype)
    v = sinkhorn_velocity(x, x + shift, blur=blur, **TIGHT).velocity
    torch.testing.assert_close(v, shift.expand_as(v), atol=2e-6, rtol=0)


def test_velocity_is_zero_for_the_same_cloud_in_another_order():
    x = normal(1, 50, 3)
    order = torch.randperm(50, generator=generator())
    v = sinkhorn_velocity(x, x[:, order], blur=0.5, **TIGHT).velocity
    torch.testing.assert_close(v, torch.zeros_like(v), atol=1e-8, rtol=0)


@pytest.mark.parametrize("blur", [0.5, 1.0, 3.0])
def test_velocity_between_normal_laws_has_the_slope_of_the_closed_form(blur):
    levels = (torch.arange(600, dtype=torch.float64) + 0.5) / 600
    quantiles = math.sqrt(2) * torch.erfinv(2 * levels - 1)[None, :, None]
    scale_x, scale_y, eps = 1.0, 2.0, blur**2

    def slope_of_projection(from_scale, to_scale):  # Janati et al. 2020
        return (math.hypot(from_scale * to_scale, eps / 2) - eps / 2) / from_scale**2

    v = sinkhorn_velocity(scale_x * quantiles, scale_y * quantiles, blur=blur, tol=1e-8).velocity
    slope = (v * quantiles).sum() / quantiles.square().sum()
    expected = slope_of_projection(scale_x, scale_y) - slope_of_projection(scale_x, scale_x)
    assert slope.item() == pytest.approx(expected, abs=0.01)


def test_velocity_tends_to_the_difference_of_means_when_the_blur_grows():
    x, y = clouds()
    difference = y.mean(1, keepdim=True) - x.mean(1, keepdim=True)
    v = sinkhorn_velocity(x, y, blur=1e3, **TIGHT).velocity
    torch.testing.assert_close(v, difference.expand_as(v), atol=1e-4, rtol=0)


def test_velocity_tends_to_the_optimal_matching_when_the_blur_shrinks():
    x = torch.tensor([[[0.0], [1.0], [2.0]]], dtype=torch.float64)
    y = torch.tensor([[[10.0], [5.0], [6.5]]], dtype=torch.float64)
    v = sinkhorn_velocity(x, y, blur=0.1, **TIGHT).velocity
    torch.testing.assert_close(x + v, y.sort(1).values, atol=1e-6, rtol=0)


def test_self_potential_of_a_single_point_is_zero():
    f = self_potential(torch.tensor([[[4.0, -2.0]]]), blur=0.3, tol=1e-6).potential
    torch.testing.assert_close(f, torch.zeros(1, 1), atol=1e-6, rtol=0)


def test_self_potential_of_points_far_apart_is_minus_half_eps_log_weight():
    x = torch.tensor([[[0.0], [100.0], [300.0]]], dtype=torch.float64)
    a = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    f = self_potential(x, a, blur=2.0, **TIGHT).potential
    torch.testing.assert_close(f, -2 * a.log())


# Independent oracles


@pytest.mark.parametrize(("d", "blur"), [(1, 0.2), (2, 0.3), (10, 1.0), (64, 3.0)])
def test_velocity_agrees_with_converged_pot(d, blur):
    x, y = clouds(d=d)
    a, b = random_weights(1, 30), random_weights(1, 40, seed=3)
    v = sinkhorn_velocity(x, y, a, b, blur=blur, **TIGHT).velocity
    torch.testing.assert_close(v[0], pot_velocity(x[0], y[0], a[0], b[0], blur), atol=1e-6, rtol=0)


def test_velocity_in_float32_agrees_with_converged_pot():
    x, y = clouds()
    v = sinkhorn_velocity(x.float(), y.float(), blur=0.3, tol=1e-5).velocity
    expected = pot_velocity(x[0], y[0], equal_weights(x)[0], equal_weights(y)[0], 0.3)
    torch.testing.assert_close(v[0].double(), expected, atol=2e-4, rtol=0)


def test_velocity_with_weights_over_six_decades_agrees_with_converged_pot():
    x, y = clouds()
    a, b = (random_weights(1, n, seed=n, decades=6) for n in (30, 40))
    v = sinkhorn_velocity(x, y, a, b, blur=0.5, **TIGHT).velocity
    torch.testing.assert_close(v[0], pot_velocity(x[0], y[0], a[0], b[0], 0.5), atol=1e-5, rtol=0)


def test_velocity_is_minus_the_gradient_of_the_divergence_per_unit_of_mass():
    x, y, blur = normal(1, 8, 2), 0.5 * normal(1, 6, 2, seed=1) + 1, 0.8
    moving = x.clone().requires_grad_()
    divergence = unrolled_cost(moving, y, blur) - unrolled_cost(moving, moving, blur) / 2
    (gradient,) = torch.autograd.grad(divergence, moving)
    v = sinkhorn_velocity(x, y, blur=blur, **TIGHT).velocity
    torch.testing.assert_close(v, -8 * gradient, atol=1e-7, rtol=0)


def test_dual_value_agrees_with_plain_iterations():
    x, y = clouds(n=8, m=6)
    g = cross_potential(x, y, blur=0.8, **TIGHT).potential
    f = extend_potential(x, y, g, blur=0.8)
    assert (f.mean() + g.mean()).item() == pytest.approx(unrolled_cost(x, y, 0.8).item(), abs=1e-8)


def test_target_potential_has_zero_weighted_mean():
    x, y = clouds()
    b = random_weights(1, 40)
    g = cross_potential(x + 5, y + 5, None, b, blur=0.5).potential
    assert (g * b).sum().item() == pytest.approx(0, abs=1e-10)


# Potentials at new points


def test_extension_agrees_with_the_formula_at_new_points():
    x, y = clouds(batch=2)
    b, query, blur = random_weights(2, 40), normal(2, 15, 2, seed=5), 0.4
    g = cross_potential(x, y, None, b, blur=blur).potential
    scores = (g[:, None] - half_squared_distance(query, y)) / blur**2 + b.log()[:, None]
    f = extend_potential(query, y, g, b, blur=blur)
    torch.testing.assert_close(f, -(blur**2) * scores.logsumexp(-1))
    mean = barycentric_projection(query, y, g, b, blur=blur)
    torch.testing.assert_close(mean, scores.softmax(-1) @ y)


def test_extension_by_blocks_equals_the_extension_at_once(monkeypatch):
    x, y = clouds(n=100)
    g = cross_potential(x, y, blur=0.4).potential
    extensions = extend_potential, barycentric_projection
    at_once = [extension(x, y, g, blur=0.4) for extension in extensions]
    monkeypatch.setattr(kernels, "STREAM_BLOCK", 100)
    assert len(kernels.row_blocks(x, y)) > 2
    for extension, expected in zip(extensions, at_once, strict=True):
        torch.testing.assert_close(extension(x, y, g, blur=0.4), expected)


def test_barycentric_projection_is_the_query_minus_the_gradient_of_the_potential():
    x, y = clouds()
    g = cross_potential(x, y, blur=0.4).potential
    query = normal(1, 10, 2, seed=5).requires_grad_()
    (gradient,) = torch.autograd.grad(extend_potential(query, y, g, blur=0.4).sum(), query)
    query = query.detach()
    torch.testing.assert_close(barycentric_projection(query, y, g, blur=0.4), query - gradient)


def test_each_potential_is_the_extension_of_the_other_at_convergence():
    x, y = clouds()
    g = cross_potential(x, y, blur=0.5, **TIGHT).potential
    f = extend_potential(x, y, g, blur=0.5)
    torch.testing.assert_close(extend_potential(y, x, f, blur=0.5), g, atol=1e-8, rtol=0)
    own = self_potential(x, blur=0.5, **TIGHT).potential
    torch.testing.assert_close(extend_potential(x, x, own, blur=0.5), own, atol=1e-8, rtol=0)


def test_velocity_is_the_difference_of_the_extended_projections():
    x, y = clouds()
    solved = sinkhorn_velocity(x, y, blur=0.5, **TIGHT)
    target_mean = barycentric_projection(x, y, solved.state.target, blur=0.5)
    own_mean = barycentric_projection(x, x, solved.state.self, blur=0.5)
    torch.testing.assert_close(solved.velocity, target_mean - own_mean, atol=1e-8, rtol=0)


# Weights


def test_points_without_weight_do_not_count():
    x, y = clouds(n=30, m=40)
    a, b = random_weights(1, 20), random_weights(1, 25)
    padded_a, padded_b = (torch.cat([w, torch.zeros(1, k)], 1) for w, k in ((a, 10), (b, 15)))
    v = sinkhorn_velocity(x, y, padded_a, padded_b, blur=0.5, **TIGHT).velocity
    expected = sinkhorn_velocity(x[:, :20], y[:, :25], a, b, blur=0.5, **TIGHT).velocity
    torch.testing.assert_close(v[:, :20], expected, atol=1e-8, rtol=0)


def test_particles_without_weight_move_with_the_field_of_the_others():
    x, y = clouds()
    a = torch.cat([random_weights(1, 20), torch.zeros(1, 10)], 1)
    solved = sinkhorn_velocity(x, y, a, blur=0.5, **TIGHT)
    own = self_potential(x[:, :20], a[:, :20], blur=0.5, **TIGHT).potential
    field = barycentric_projection(x, y, solved.state.target, blur=0.5)
    field -= barycentric_projection(x, x[:, :20], own, a[:, :20], blur=0.5)
    torch.testing.assert_close(solved.velocity, field, atol=1e-8, rtol=0)


def test_a_point_cut_in_two_halves_changes_nothing():
    x, y = clouds()
    a = random_weights(1, 30)
    halves = torch.cat([a[:, :1] / 2, a[:, 1:], a[:, :1] / 2], 1)
    v = sinkhorn_velocity(torch.cat([x, x[:, :1]], 1), y, halves, blur=0.5, **TIGHT).velocity
    expected = sinkhorn_velocity(x, y, a, blur=0.5, **TIGHT).velocity
    torch.testing.assert_close(v[:, :30], expected, atol=1e-8, rtol=0)
    torch.testing.assert_close(v[:, 30], expected[:, 0], atol=1e-8, rtol=0)


# Symmetries


def test_velocity_follows_a_permutation_of_the_particles_and_ignores_one_of_the_targets():
    x, y = clouds()
    a, b = random_weights(1, 30), random_weights(1, 40)
    p, q = (torch.randperm(n, generator=generator()) for n in (30, 40))
    v = sinkhorn_velocity(x, y, a, b, blur=0.5, **TIGHT).velocity
    permuted = sinkhorn_velocity(x[:, p], y[:, q], a[:, p], b[:, q], blur=0.5, **TIGHT).velocity
    torch.testing.assert_close(permuted, v[:, p], atol=1e-8, rtol=0)


def test_an_offset_of_1000_costs_no_accuracy_in_float32():
    x, y = (cloud.mul(1024).round().div(1024).float() for cloud in clouds())  # exact when shifted
    v = sinkhorn_velocity(x, y, blur=0.2, tol=1e-5).velocity
    shifted = sinkhorn_velocity(x + 1000, y + 1000, blur=0.2, tol=1e-5).velocity
    torch.testing.assert_close(shifted, v, atol=1e-3, rtol=0)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_velocity_scales_with_the_data_and_the_blur(factor):
    x, y = clouds(dtype=torch.float32)
    v = sinkhorn_velocity(x, y, blur=0.3, tol=1e-5).velocity
    scaled = sinkhorn_velocity(factor * x, factor * y, blur=factor * 0.3, tol=1e-5).velocity
    torch.testing.assert_close(scaled / factor, v, atol=1e-4, rtol=0)


def test_a_problem_alone_gives_what_it_gives_in_a_batch():
    x, y = clouds(batch=4)
    y = y * torch.tensor([0.1, 1.0, 3.0, 10.0], dtype=y.dtype)[:, None, None]
    together = sinkhorn_velocity(x, y, blur=0.7, **TIGHT)
    for i in range(4):
        alone = sinkhorn_velocity(x[i : i + 1], y[i : i + 1], blur=0.7, **TIGHT)
        torch.testing.assert_close(together.velocity[i], alone.velocity[0], atol=1e-7, rtol=0)


# Storage


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_streamed_solves_equal_dense_ones(dtype, monkeypatch):
    monkeypatch.setattr(kernels, "STREAM_BLOCK", 1000)  # many blocks of rows, the last one shorter
    x, y = clouds(batch=2, n=100, m=70, dtype=dtype)
    a, b = random_weights(2, 100, dtype=dtype), random_weights(2, 70, dtype=dtype)
    options = {"blur": 0.4, "tol": 1e-5 if dtype == torch.float32 else 1e-10, "max_iter": 1000}
    dense = sinkhorn_velocity(x, y, a, b, **options)
    streamed = sinkhorn_velocity(x, y, a, b, max_bytes=1, **options)
    assert max(streamed.error.max(), dense.error.max()) < options["tol"]
    tolerance = 1e-4 if dtype == torch.float32 else 1e-8
    torch.testing.assert_close(streamed.velocity, dense.velocity, atol=tolerance, rtol=0)
    for one, other in zip(streamed.state, dense.state, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


def test_max_bytes_decides_between_stored_and_streamed_kernels():
    x, y = clouds(batch=2, n=30, m=40)
    assert kernels.fits(x, y, 2 * 30 * 40 * 8)
    assert not kernels.fits(x, y, 2 * 30 * 40 * 8 - 1)


# Warm starts


def test_a_warm_start_reaches_the_same_velocity_in_fewer_iterations():
    x, y = clouds()
    cold = sinkhorn_velocity(x, y, blur=0.2, tol=1e-8, max_iter=2000)
    warm = sinkhorn_velocity(x, y, blur=0.2, tol=1e-8, max_iter=2000, state=cold.state)
    assert cold.n_iterations > 20
    assert warm.n_iterations <= 4
    torch.testing.assert_close(warm.velocity, cold.velocity, atol=1e-6, rtol=0)


def test_the_potential_shrinks_with_the_way_that_is_left_after_a_step():
    state = SinkhornState(torch.tensor([[4.0, -4.0]]), torch.tensor([[1.0]])).after_step(0.25)
    assert state.target.tolist() == [[3.0, -3.0]]
    assert state.self.tolist() == [[1.0]]


def test_a_state_without_potentials_is_a_cold_start():
    x, y = clouds()
    empty = SinkhornState(None, None).after_step(0.5)
    from_empty, cold = (sinkhorn_velocity(x, y, blur=0.3, state=s) for s in (empty, None))
    assert torch.equal(from_empty.velocity, cold.velocity)


def test_the_state_after_a_step_beats_a_cold_start_and_the_unchanged_state():
    x, y = clouds(n=60, m=60)
    first = sinkhorn_velocity(x, y, blur=0.1, tol=1e-2, max_iter=1000)
    x = x + 0.3 * first.velocity
    iterations = [
        sinkhorn_velocity(x, y, blur=0.1, tol=1e-2, max_iter=1000, state=state).n_iterations
        for state in (first.state.after_step(0.3), first.state, None)
    ]
    assert iterations[0] < min(iterations[1:]) / 1.5


# What is reported


@pytest.mark.parametrize("max_iter", [1, 5, 200])
def test_reported_cross_error_is_the_marginal_error_of_the_returned_potential(max_iter):
    x, y = clouds(batch=3)
    a, b = random_weights(3, 30), random_weights(3, 40)
    solved = cross_potential(x, y, a, b, blur=0.3, tol=1e-4, max_iter=max_iter)
    marginal = plan(x, y, a, b, solved.potential, 0.3).sum(1)
    torch.testing.assert_close(solved.error, (marginal - b).abs().sum(1), atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("max_iter", [1, 3, 200])
def test_self_error_of_the_returned_potential_is_at_most_the_reported_one(max_iter):
    x = clouds(batch=3)[0]
    a = random_weights(3, 30)
    solved = self_potential(x, a, blur=0.3, tol=1e-4, max_iter=max_iter)
    f = solved.potential
    entries = (f[:, :, None] + f[:, None] - half_squared_distance(x, x)) / 0.3**2
    marginal = (a[..., None] * a[:, None] * entries.exp()).sum(1)
    assert ((marginal - a).abs().sum(1) <= solved.error + 1e-12).all()


@pytest.mark.parametrize(("m", "larger"), [(1, "self"), (40, "cross")])
def test_velocity_reports_the_larger_of_the_two_errors(m, larger):
    x, y = clouds(m=m)
    options = {"blur": 0.1, "tol": 1e-6, "max_iter": 3}
    errors = {"cross": cross_potential(x, y, **options).error}
    errors["self"] = self_potential(x, **options).error
    assert max(errors, key=errors.get) == larger
    torch.testing.assert_close(sinkhorn_velocity(x, y, **options).error, errors[larger])


@pytest.mark.parametrize("solve", [cross_potential, sinkhorn_velocity])
def test_a_solve_ends_below_a_thousandth_by_default(solve):
    assert (solve(*clouds(), blur=0.1).error < 1e-3).all()
    assert (self_potential(clouds()[0], blur=0.1).error < 1e-3).all()


@pytest.mark.parametrize("blur", [0.05, 0.3])
def test_iterations_are_counted_at_every_temperature(blur, monkeypatch):
    calls, marginal = [], kernels.DenseKernel.marginal

    def counted(*args):
        calls.append(1)
        return marginal(*args)

    monkeypatch.setattr(kernels.DenseKernel, "marginal", counted)
    assert cross_potential(*clouds(), blur=blur).n_iterations == len(calls)


def test_one_iteration_is_not_reported_as_converged():
    x, y = clouds()
    solved = sinkhorn_velocity(x, y, blur=0.1, tol=1e-3, max_iter=1)
    assert (solved.error > 1e-3).all()


def exact_error(x, y, g, blur):
    """Marginal error of the plan of a potential, in double precision and with no floor."""
    x, y, g = x.double(), y.double(), g.double()
    plan = ((g[:, None] - half_squared_distance(x, y)) / blur**2).softmax(-1) / x.shape[1]
    return (plan.sum(1) - 1 / y.shape[1]).abs().sum(-1)


@pytest.mark.parametrize("blur", [0.003, 0.01])
def test_a_matching_problem_is_solved(blur):
    x, y = clouds(n=100, m=100, dtype=torch.float32)
    solved = cross_potential(x, y, blur=blur, tol=1e-3)
    assert (solved.error < 1e-3).all()
    assert (exact_error(x, y, solved.potential, blur) < 1e-3).all()


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("max_bytes", [2**29, 1])
@pytest.mark.parametrize("gap", [1.0, 10.0])
def test_mass_crosses_the_gaps_between_far_clusters_of_unequal_shares(gap, max_bytes, warm):
    spread = 1e-2 * torch.stack([normal(30, 3), normal(30, 3, seed=1)]).float()
    shares = torch.tensor([[13, 10, 7], [9, 10, 11]])  # rows of each cloud in each cluster
    x, y = (torch.arange(3.0).repeat_interleave(s)[:, None] for s in shares)
    x, y = (gap * x + spread[0])[None], (gap * y + spread[1])[None]
    easy = cross_potential(x, x, blur=0.1).potential
    options = {"blur": 0.1, "tol": 1e-3, "max_bytes": max_bytes}
    solved = cross_potential(x, y, init=easy if warm else None, **options)
    assert (solved.error < 1e-3).all()
    assert (exact_error(x, y, solved.potential, 0.1) < 2e-3).all()


def test_a_stalled_problem_does_not_change_the_others_of_its_batch():
    x, y = (torch.cat([cloud, cloud]).float() for cloud in clouds())
    x[1, :17] += 1e3
    y[1, :19] += 1e3
    both = sinkhorn_velocity(x, y, blur=0.5, tol=1e-4)
    alone = sinkhorn_velocity(x[:1], y[:1], blur=0.5, tol=1e-4)
    assert (both.error < 1e-4).all()
    assert both.n_iterations > alone.n_iterations
    torch.testing.assert_close(both.velocity[:1], alone.velocity, atol=1e-3, rtol=0)


def test_error_has_one_value_a_problem():
    x, y = clouds(batch=3)
    y[1] = x[1].mean(0)  # one target point for all: converged at once
    solved = cross_potential(x, y, blur=0.05, tol=1e-9, max_iter=10)
    assert solved.error.shape == (3,)
    assert solved.error[1] < 1e-9
    assert (solved.error[[0, 2]] > 1e-9).all()


@pytest.mark.parametrize(
    ("d", "blur", "most"), [(2, 0.5, 30), (2, 0.1, 150), (10, 0.5, 60), (64, 2.0, 30)]
)
def test_cold_solves_converge_within_a_known_number_of_iterations(d, blur, most):
    x, y = clouds(batch=2, n=256, m=256, d=d, dtype=torch.float32)
    solved = sinkhorn_velocity(x, y, blur=blur, tol=1e-3)
    assert (solved.error < 1e-3).all()
    assert solved.n_iterations <= most


@pytest.mark.parametrize("blur", [0.02, 0.01])
def test_more_iterations_leave_no_larger_error_when_the_blur_is_too_small(blur):
    x, y = normal(1, 40, 2), normal(1, 30, 2, seed=1) + 0.2
    few, many = (
        cross_potential(x, y, blur=blur, tol=1e-4, max_iter=max_iter).error.item()
        for max_iter in (1, 300)
    )
    assert many <= few


# Degenerate clouds


def degenerate_clouds():
    x, y = clouds(dtype=torch.float32)
    point = torch.zeros(1, 1, 2)
    return {
        "one particle": (point, y),
        "one target": (x, point),
        "a pile of particles": (point.expand(1, 9, 2), y),
        "a pile of targets": (x, point.expand(1, 9, 2)),
        "piles at the same place": (point.expand(1, 9, 2), point.expand(1, 5, 2)),
        "points on a line": (x[..., :1].expand(1, 30, 2), y),
        "duplicated particles": (torch.cat([x, x], 1), y),
        "two far clusters": (x, torch.cat([y, y + 40], 1)),
    }


@pytest.mark.parametrize("name", degenerate_clouds())
def test_degenerate_clouds_converge_and_keep_the_mean_displacement(name):
    x, y = degenerate_clouds()[name]
    solved = sinkhorn_velocity(x, y, blur=0.5, tol=1e-4, max_iter=500)
    assert (solved.error < 1e-4).all()
    mean_velocity = solved.velocity.mean(1)  # both marginals exact: the means must match
    torch.testing.assert_close(mean_velocity, y.mean(1) - x.mean(1), atol=5e-3, rtol=0)


# Good manners


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("other_default", [torch.float32, torch.float64])
def test_results_have_the_dtype_of_the_clouds_whatever_the_default(dtype, other_default):
    x, y = clouds(dtype=dtype)
    default = torch.get_default_dtype()
    torch.set_default_dtype(other_default)
    try:
        solved = sinkhorn_velocity(x, y, blur=0.5)
        parts = [solved.velocity, solved.error, *solved.state]
        parts.append(extend_potential(x, y, solved.state.target, blur=0.5))
    finally:
        torch.set_default_dtype(default)
    assert {part.dtype for part in parts} == {dtype}


def test_tensors_of_the_caller_are_left_unchanged():
    x, y = clouds()
    a, b = random_weights(1, 30), random_weights(1, 40)
    state = sinkhorn_velocity(x, y, a, b, blur=0.3, tol=1e-2).state
    given_tensors = x, y, a, b, *state
    before = [tensor.clone() for tensor in given_tensors]
    sinkhorn_velocity(x, y, a, b, blur=0.3, tol=1e-6, state=state)
    assert all(torch.equal(*pair) for pair in zip(given_tensors, before, strict=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_velocity_is_the_same_without_gradients_and_carries_no_graph(mode):
    x, y = clouds()
    expected = sinkhorn_velocity(x, y, blur=0.5).velocity
    x.requires_grad_()
    with mode():
        v = sinkhorn_velocity(x, y, blur=0.5).velocity
    assert not v.requires_grad
    assert torch.equal(v, expected)


def test_results_do_not_depend_on_global_seeds():
    x, y = clouds()
    before = torch.get_rng_state()
    first = sinkhorn_velocity(x, y, blur=0.5).velocity
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, sinkhorn_velocity(x, y, blur=0.5).velocity)


# Random problems


@st.composite
def random_problems(draw):
    n, m = draw(st.integers(2, 80)), draw(st.integers(2, 80))
    d = draw(st.integers(1, 32))
    seed = draw(st.integers(0, 2**31))
    x, y = normal(1, n, d, seed=seed), normal(1, m, d, seed=seed + 1)
    x = 10 ** draw(st.floats(-1, 1)) * x
    if draw(st.booleans()):  # duplicates
        x = torch.cat([x, x[:, : n // 2]], 1)
    y = y + 10 ** draw(st.floats(-2, 2))  # from overlapping to far apart
    decades = draw(st.sampled_from([0.0, 1.0, 6.0]))
    a, b = (random_weights(1, c.shape[1], seed=seed, decades=decades) for c in (x, y))
    offset = draw(st.sampled_from([0.0, 1.0, 1e4]))
    x, y = (x + offset).float(), (y + offset).float()
    spread = torch.cat([x, y], 1).double().std(1).norm().item()
    blur = draw(st.floats(0.2, 2)) * spread
    return x, y, a, b, blur, spread


@given(random_problems())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_random_problems_in_float32_are_close_to_the_converged_float64_solution(problem):
    x, y, a, b, blur, spread = problem
    reference = sinkhorn_velocity(x.double(), y.double(), a, b, blur=blur, tol=1e-9, max_iter=2000)
    assert reference.error.max() < 1e-9
    solved = sinkhorn_velocity(x, y, a.float(), b.float(), blur=blur, tol=1e-4, max_iter=500)
    assert solved.error.max() < 1e-4
    assert solved.velocity.isfinite().all()
    deviation = (solved.velocity.double() - reference.velocity).norm(dim=-1)
    mean_deviation = (a * deviation).sum().item()
    assert mean_deviation < 1e-3 * spread


def test_a_blur_below_the_precision_of_the_numbers_is_reported_as_an_error_and_not_as_nan():
    x, y = (normal(1, 20, 2, seed=seed, dtype=torch.float32) for seed in (0, 1))
    assert float(sinkhorn_velocity(x, y, blur=1e-8).error) > 1e-2


def test_tensors_that_require_gradients_are_accepted_and_get_none():
    x, y = normal(1, 20, 2).requires_grad_(), normal(1, 20, 2, seed=1)
    assert not sinkhorn_velocity(x, y, blur=0.5).velocity.requires_grad


def test_clouds_that_are_far_apart_lose_no_accuracy():
    x = normal(1, 60, 2)
    y = normal(1, 50, 2, seed=1)
    near = sinkhorn_velocity(x, y, blur=0.3, tol=1e-6).velocity
    far = sinkhorn_velocity(x, y + 1024.0, blur=0.3, tol=1e-6).velocity - 1024.0
    torch.testing.assert_close(far, near, rtol=0, atol=2e-3)


def test_wide_clouds_with_many_targets_are_streamed_by_blocks_of_their_own_size():
    x, y = normal(1, 150, 100, dtype=torch.float32), normal(1, 4200, 100, dtype=torch.float32)
    stored = sinkhorn_velocity(x, y, blur=5.0)
    streamed = sinkhorn_velocity(x, y, blur=5.0, max_bytes=1000)
    torch.testing.assert_close(streamed.velocity, stored.velocity, rtol=0, atol=1e-4)


@pytest.mark.parametrize("length", [2.0, 3.0])
def test_tight_clusters_far_apart_are_solved_or_reported_as_unsolved(length):
    place = 1e-3 * torch.arange(60.0)
    x = (torch.tensor([0.0] * 20 + [length] * 40) + place)[None, :, None].double()
    y = (torch.tensor([1.0] * 30 + [1 + length] * 30) + place)[None, :, None].double()
    solved = cross_potential(x, y, blur=0.1, tol=1e-2)
    f = extend_potential(x, y, solved.potential, blur=0.1)
    cost = (x[:, :, None] - y[:, None]).square().sum(-1) / 2
    plan = torch.exp((f[..., None] + solved.potential[:, None] - cost) / 0.1**2) / 60**2
    true_error = (plan.sum(1) - 1 / 60).abs().sum(-1)
    torch.testing.assert_close(solved.error, true_error, rtol=1e-3, atol=1e-6)


def test_tight_clusters_of_unequal_shares_are_transported_from_a_cold_start():
    spread = 0.02 * normal(1, 100, 1)
    x = torch.tensor([-1.0] * 70 + [1.0] * 30)[None, :, None] + spread
    y = torch.tensor([-1.0] * 30 + [1.0] * 70)[None, :, None] + spread.flip(1)
    solved = sinkhorn_velocity(x, y, blur=0.1)
    assert float(solved.error) < 1e-3
    torch.testing.assert_close(
        solved.velocity.mean(), torch.tensor(0.8).double(), rtol=0, atol=0.01
    )


@pytest.mark.parametrize("start", ["cold", "far off"])
@pytest.mark.parametrize("storage", ["without room for products", "streamed"])
def test_products_kept_for_all_kernels_of_a_solve_change_nothing(storage, start):
    x, y = normal(2, 50, 70), 3 * normal(2, 40, 70, seed=1) + 1
    kernel_bytes = 2 * 50 * 40 * 8
    room = kernel_bytes if storage == "without room for products" else 1000
    init = None if start == "cold" else y.new_zeros(2, 40)  # kernels are stored anew on the way
    kept = cross_potential(x, y, blur=2.0, tol=1e-9, init=init)
    other = cross_potential(x, y, blur=2.0, tol=1e-9, init=init, max_bytes=room)
    torch.testing.assert_close(kept.potential, other.potential, rtol=0, atol=1e-6)


@pytest.mark.parametrize("d", [kernels.NARROW, kernels.NARROW + 1, kernels.WIDE])
def test_velocity_of_any_width_is_that_of_the_same_points_with_zeros_appended(d):
    x, y = clouds(batch=2, d=d)
    v = sinkhorn_velocity(x, y, blur=1.0, **TIGHT).velocity
    x, y = (torch.nn.functional.pad(cloud, (0, 90)) for cloud in (x, y))
    wide = sinkhorn_velocity(x, y, blur=1.0, **TIGHT).velocity
    torch.testing.assert_close(wide[..., :d], v, rtol=0, atol=1e-7)
    assert (wide[..., d:] == 0).all()
